-- Notes how agents use the server, and tells how others do.
--
-- KEYS  1 agents (hash: nodes, guard ms, guard_at ms)
-- ARGV  1 the agent's list of nodes  2 its guard ms  3 its longest term ms
-- Result the longest guard ms that counts; the list that counts
--
-- Atomic because of two agents with different lists, one must be told the other's. The list is forgotten
-- when no agent has come for so long that what was granted under it is over; so is a guard that is longer
-- than all others.

local now, guard = now_ms(), tonumber(ARGV[2])
local known = redis.call('HMGET', KEYS[1], 'nodes', 'guard', 'guard_at')
local longest = tonumber(known[2] or 0)
local left = longest > guard and known[3] + longest - now or 0
if left <= 0 then longest = guard end
if known[1] and known[1] ~= ARGV[1] then return string.format('%.0f', longest) .. '\n' .. known[1] end

redis.call('HSET', KEYS[1], 'nodes', ARGV[1])
if left <= 0 then
  redis.call('HSET', KEYS[1], 'guard', ARGV[2], 'guard_at', string.format('%.0f', now))
end
redis.call('PEXPIRE', KEYS[1], math.max(left, guard, tonumber(ARGV[3])))
return string.format('%.0f', longest) .. '\n' .. (known[1] or ARGV[1])
