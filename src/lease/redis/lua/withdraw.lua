-- Takes back a grant that did not get a quorum.
--
-- KEYS  1 lease  2 floor  3 index  4 expiry
-- ARGV  1 path  2 leader  3 token  4 retention ms
-- Result nothing
--
-- Atomic because only the lease with exactly this token may go.

local lease = redis.call('HMGET', KEYS[1], 'leader', 'token')
if lease[1] == ARGV[2] and lease[2] == ARGV[3] then
  redis.call('DEL', KEYS[1])
  redis.call('ZREM', KEYS[3], ARGV[1])
  redis.call('ZREM', KEYS[4], ARGV[1])
end
-- The grant itself may still be on its way, over a connection that was given up: it will be stale.
local floor = redis.call('GET', KEYS[2])
if not floor or tonumber(floor) <= tonumber(ARGV[3]) then
  redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[4])
end
