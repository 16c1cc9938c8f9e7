-- Notes which servers agents use this one with.
--
-- KEYS  1 servers
-- ARGV  1 the agent's list of servers  2 how long it counts, in ms
-- Result the list that counts
--
-- Atomic because of two agents with different lists, one must be told the other's. The list is forgotten
-- when no agent has come for so long that what was granted under it is over.

local servers = redis.call('GET', KEYS[1])
if servers and servers ~= ARGV[1] then return servers end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return ARGV[1]
