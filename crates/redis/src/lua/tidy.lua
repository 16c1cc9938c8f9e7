-- Drops entries of the index whose elections are over; appended to the scripts that do so, as their end.
--
-- Takes locals: index, expiry, leases (prefix of all lease keys), now, most (how many entries to examine) and
-- result, which the script returns.
--
-- An entry is dropped when its lease is gone and the time recorded for it has passed by a margin. Members of a
-- cluster record by their own clocks, and for some seconds agents may use different members: a minute is more
-- than both, and keeps no more than the elections that lapsed within a minute. A lease that was extended has
-- its time recorded anew, since extensions do not write the index. Nothing is dropped on a server that imports
-- the slot: the leases may still be on the other. On the other, those that have moved cannot be looked up, and
-- their entries stay.
local MARGIN_MS = 60000

if ARGV[#ARGV] == 'asking' then return result end
local over = redis.pcall('ZRANGEBYSCORE', expiry, '-inf', now - MARGIN_MS, 'LIMIT', 0, most)
for _, path in ipairs(over) do
  local left = redis.pcall('PTTL', leases .. path)
  if left == -2 then
    redis.pcall('ZREM', index, path)
    redis.pcall('ZREM', expiry, path)
  elseif type(left) == 'number' then
    redis.pcall('ZADD', expiry, now + math.max(left, 0), path)
  end
end
return result
