-- Shared by the scripts that extend terms; prepended to them when the agent is built.
--
-- Renews the leader's lease. Returns 'renewed' token, 'held', 'stale' or 'behind'; nil when there is no lease.
--
-- Atomic because the lease could pass to another leader between the check and the renewal.

local function renew(key, mark, leader, token, term, retention)
  local lease = redis.call('HMGET', key, 'leader', 'token', 'attempt')
  if lease[1] then
    if lease[1] ~= leader then return 'held' end
    if token ~= '0' and token ~= lease[2] then
      return tonumber(token) < tonumber(lease[2]) and 'stale' or 'behind'
    end
    local keep = term + retention
    -- The extension acknowledges the lease: no grant of it may be rolled back any more.
    if lease[3] then
      redis.call('HDEL', key, 'attempt', 'before', 'low')
      local past = string.gsub(key, '}:lease:', '}:past:', 1)
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
    if redis.call('PTTL', key) < tonumber(term) then redis.call('PEXPIRE', key, term) end
    -- The high-water mark outlives the lease, however long that is extended.
    if redis.call('PTTL', mark) < keep and redis.call('PEXPIRE', mark, keep) == 0 then
      redis.call('SET', mark, lease[2], 'PX', keep)
    end
    return 'renewed\n' .. lease[2]
  end
end
