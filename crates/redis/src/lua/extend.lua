-- Renews the leader's lease.
--
-- KEYS  1 lease  2 high-water mark
-- ARGV  1 leader  2 token (0: not given)  3 term ms  4 retention ms
-- Result that of renew.lua; or the result of vacancy.lua

local reply = renew(KEYS[1], KEYS[2], ARGV[1], ARGV[2], ARGV[3], ARGV[4])
if reply then return reply end
