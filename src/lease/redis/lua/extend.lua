-- Renews the leader's lease.
--
-- KEYS  1 lease  2 floor
-- ARGV  1 leader  2 token (0: not given)  3 term ms  4 retention ms
-- Result 'renewed' token, 'missing', 'held', 'stale' or 'behind', as common.lua has it
--
-- Atomic because the lease could pass to another leader between the look and the renewal.

local lease = redis.call('HMGET', KEYS[1], 'leader', 'token', 'attempt')
if not lease[1] then return 'missing' end
if lease[1] ~= ARGV[1] then return 'held' end
if ARGV[2] ~= '0' and ARGV[2] ~= lease[2] then
  return tonumber(ARGV[2]) < tonumber(lease[2]) and 'stale' or 'behind'
end
-- It is in use: no grant of it may be withdrawn any more.
if lease[3] then redis.call('HDEL', KEYS[1], 'attempt', 'before') end
-- Never shorter: an extension that was delayed on its way must not undo a later, longer one.
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[3]) then redis.call('PEXPIRE', KEYS[1], ARGV[3]) end
-- The floor outlives the lease, however long that is extended.
local keep = ARGV[3] + ARGV[4]
if redis.call('PTTL', KEYS[2]) < keep and redis.call('PEXPIRE', KEYS[2], keep) == 0 then
  redis.call('SET', KEYS[2], lease[2], 'PX', keep)
end
return 'renewed\n' .. lease[2]
