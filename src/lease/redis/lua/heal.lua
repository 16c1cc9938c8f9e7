-- Writes a lease that a quorum of nodes is known to hold.
--
-- KEYS  1 lease  2 floor  3 index  4 expiry  5 marker
-- ARGV  1 path  2 leader  3 token  4 term ms  5 value  6 elected at  7 retention ms
--       8 run  9 '1' if only a lease that is there may be written  10 guard ms ('' turns it off)
-- Result 1 when it is written, else 0
--
-- Atomic because a later grant must not be overwritten, also one that this server has forgotten: then it is
-- in another run.

if run() ~= ARGV[8] then return 0 end
if ARGV[10] ~= '' and redis.call('HGET', KEYS[5], 'run') ~= ARGV[8] then return 0 end
local token, term = tonumber(ARGV[3]), tonumber(ARGV[4])
local floor = redis.call('GET', KEYS[2])
if floor and token < tonumber(floor) then return 0 end
local lease = redis.call('HMGET', KEYS[1], 'leader', 'token')
if lease[1] then
  if lease[1] ~= ARGV[2] or tonumber(lease[2]) > token then return 0 end
  term = math.max(term, redis.call('PTTL', KEYS[1]))
  if lease[2] ~= ARGV[3] then redis.call('HDEL', KEYS[1], 'request_id') end
  redis.call('HDEL', KEYS[1], 'attempt', 'before')
elseif ARGV[9] == '1' then
  return 0
end
redis.call('HSET', KEYS[1], 'leader', ARGV[2], 'token', ARGV[3], 'value', ARGV[5], 'elected_at', ARGV[6])
redis.call('PEXPIRE', KEYS[1], term)
keep_floor(KEYS[2], ARGV[3], term + ARGV[7])
redis.call('ZADD', KEYS[3], 0, ARGV[1])
redis.call('ZADD', KEYS[4], now_ms() + term, ARGV[1])
return 1
