-- Reads the election's lease.
--
-- KEYS  1 lease
-- Result {leader, token, value, elected_at, remaining ms}, or nil
--
-- Atomic because the lease and its remaining time must be of the same instant.

return read_lease(KEYS[1])
