-- Takes back a grant that was not answered.
--
-- KEYS  1 lease  2 floor  3 index  4 expiry
-- ARGV  1 path  2 attempt  3 token  4 retention ms
-- Result nothing
--
-- Atomic because only the lease that this very grant wrote may change: a repeated request or an extension
-- may have come in between, and then it is in use.

local keep = tonumber(ARGV[4])
local lease = redis.call('HMGET', KEYS[1], 'attempt', 'before')
if lease[1] == ARGV[2] then
  local before = lease[2] ~= '' and cmsgpack.unpack(lease[2])
  local left = before and before[6] - now_ms() or 0
  if left > 0 then
    redis.call('HSET', KEYS[1], 'leader', before[1], 'token', before[2], 'value', before[3],
      'request_id', before[4], 'elected_at', before[5])
    redis.call('HDEL', KEYS[1], 'attempt', 'before')
    redis.call('PEXPIRE', KEYS[1], left)
    keep = keep + left
  else
    redis.call('DEL', KEYS[1])
    redis.call('ZREM', KEYS[3], ARGV[1])
    redis.call('ZREM', KEYS[4], ARGV[1])
  end
end
-- The grant itself may still be on its way, over a connection that was given up: it will be stale.
keep_floor(KEYS[2], ARGV[3], keep)
