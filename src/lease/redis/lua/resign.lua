-- Deletes the leader's lease.
--
-- KEYS  1 lease  2 index  3 expiry
-- ARGV  1 path  2 leader  3 token (0: not given)
-- Result 'resigned', 'missing', 'held' or 'stale'
--
-- Atomic because the lease could pass to another leader between the look and the deletion.

local lease = redis.call('HMGET', KEYS[1], 'leader', 'token')
if not lease[1] then return 'missing' end
if lease[1] ~= ARGV[2] then return 'held' end
if ARGV[3] ~= '0' and ARGV[3] ~= lease[2] then return 'stale' end
redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
return 'resigned'
