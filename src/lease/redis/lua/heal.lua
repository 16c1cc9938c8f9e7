-- Writes a lease that a quorum of nodes is known to hold.
--
-- KEYS  1 lease  2 floor  3 index  4 expiry
-- ARGV  1 path  2 leader  3 token  4 term ms  5 value  6 elected at  7 retention ms  8 run
-- Result 1 when it is written, else 0
--
-- Atomic because a later grant must not be overwritten, also one that this server has forgotten: then it is
-- in another run.

if run() ~= ARGV[8] then return 0 end
local token, term = tonumber(ARGV[3]), tonumber(ARGV[4])
local floor = redis.call('GET', KEYS[2])
if floor and token < tonumber(floor) then return 0 end
local lease = redis.call('HMGET', KEYS[1], 'leader', 'token')
if lease[1] then
  if lease[1] ~= ARGV[2] or tonumber(lease[2]) > token then return 0 end
  term = math.max(term, redis.call('PTTL', KEYS[1]))
  if lease[2] ~= ARGV[3] then redis.call('HDEL', KEYS[1], 'request_id') end
  redis.call('HDEL', KEYS[1], 'attempt', 'before')
end
redis.call('HSET', KEYS[1], 'leader', ARGV[2], 'token', ARGV[3], 'value', ARGV[5], 'elected_at', ARGV[6])
redis.call('PEXPIRE', KEYS[1], term)
keep_floor(KEYS[2], ARGV[3], term + ARGV[7])
redis.call('ZADD', KEYS[3], 0, ARGV[1])
redis.call('ZADD', KEYS[4], now_ms() + term, ARGV[1])
return 1
