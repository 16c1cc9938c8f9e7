-- Reads the election's lease.
--
-- KEYS  1 lease
-- Result the lease, or ''
--
-- Atomic because the lease and its remaining time must be of the same instant.

local lease = read_lease(KEYS[1])
return lease and lines(lease) or ''
