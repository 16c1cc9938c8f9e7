-- Reads the election's lease.
--
-- KEYS  1 lease
-- Result the lease; or the result of vacancy.lua
--
-- Atomic because the lease and its remaining time must be of the same instant.

local lease = read_lease(KEYS[1])
if lease then return 'lease\n' .. lines(lease) end
