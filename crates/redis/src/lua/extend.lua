-- Renews the leader's lease.
--
-- KEYS  1 lease  2 high-water mark
-- ARGV  1 leader  2 token (0: not given)  3 term ms  4 retention ms
-- Result 'renewed' token, 'held', 'stale' or 'behind'; or the result of vacancy.lua
--
-- Atomic because the lease could pass to another leader between the check and the renewal.

local lease = redis.call('HMGET', KEYS[1], 'leader', 'token', 'attempt')
if lease[1] then
  if lease[1] ~= ARGV[1] then return 'held' end
  if ARGV[2] ~= '0' and ARGV[2] ~= lease[2] then
    return tonumber(ARGV[2]) < tonumber(lease[2]) and 'stale' or 'behind'
  end
  local keep = ARGV[3] + ARGV[4]
  -- The extension acknowledges the lease: no grant of it may be rolled back any more.
  if lease[3] then
    redis.call('HDEL', KEYS[1], 'attempt', 'before', 'low')
    local past = string.gsub(KEYS[1], '}:lease:', '}:past:', 1)
    -- While the slot moves to another server, a key that is not among KEYS is not available: an error.
    local acknowledged = redis.pcall('HGET', past, 'acknowledged')
    if type(acknowledged) ~= 'table' then
      if not acknowledged or tonumber(acknowledged) < tonumber(lease[2]) then
        redis.call('HSET', past, 'acknowledged', lease[2])
      end
      redis.call('PEXPIRE', past, keep)
    end
  end
  -- Never shorter: a delayed extension must not undo a later, longer one.
  if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[3]) then redis.call('PEXPIRE', KEYS[1], ARGV[3]) end
  -- The high-water mark outlives the lease, however long that is extended.
  if redis.call('PTTL', KEYS[2]) < keep and redis.call('PEXPIRE', KEYS[2], keep) == 0 then
    redis.call('SET', KEYS[2], lease[2], 'PX', keep)
  end
  return 'renewed\n' .. lease[2]
end
