-- Writes a lease if the election allows it.
--
-- KEYS  1 lease (hash)  2 floor (string)  3 marker (hash)  4 index (zset: path, by name)
--       5 expiry (zset: path, by the time at which a lease may be over)
-- ARGV  1 path  2 candidate  3 token  4 term ms  5 elected at  6 retention ms  7 guard ms ('' turns it
--       off)  8 attempt
--       and unless it is the usual campaign, over the candidate's own lease, without value and request id:
--       9 value  10 request id ('' for none)  11 '1' if a lease with the request id is to be found
--       12 over: 'vacant', 'own', 'leader' or 'anyone'  13 leader that hands over  14 its token (0: not
--       given)
-- Result 'granted' token, 'held' and the lease, 'mismatch', 'stale' floor, 'unmarked', or 'guarded' ms
--
-- Atomic because between looking at lease, floor and marker and writing the lease, no other grant may
-- come: two candidates would both find the election vacant.
-- The lease's fields 'attempt' and 'before' are for withdraw.lua.
-- Touches lease keys beyond KEYS[1] when it tidies the index; they share the hash tag of KEYS[1].

-- What a withdrawal goes back to: the lease's fields, and the time at which it would have lapsed.
local function before(key, until_ms)
  local fields = redis.call('HMGET', key, 'leader', 'token', 'value', 'request_id', 'elected_at')
  fields[4] = fields[4] or ''
  fields[6] = string.format('%.0f', until_ms)
  return cmsgpack.pack(fields)
end

local value, request_id, over = ARGV[9] or '', ARGV[10] or '', ARGV[12] or 'own'
local lease = read_lease(KEYS[1])
local own = lease and lease[1] == ARGV[2]
if lease and over ~= 'anyone' then
  if over == 'leader' and lease[1] == ARGV[13] then
    if ARGV[14] ~= '0' and ARGV[14] ~= lease[2] then return 'mismatch' end
  elseif over ~= 'own' or not own then
    return 'held\n' .. lines(lease)
  end
end

if ARGV[7] ~= '' then
  local wait = guard_ms(KEYS[3], ARGV[7])
  if not wait then return 'unmarked' end
  if wait > 0 then return 'guarded\n' .. wait end
end

local now = now_ms()
local term = tonumber(ARGV[4])
if own then term = math.max(term, lease[5]) end

if own and request_id ~= '' and ARGV[11] == '1' and redis.call('HGET', KEYS[1], 'request_id') == request_id then
  -- A grant that comes twice goes back to what there was before its first coming.
  if redis.call('HGET', KEYS[1], 'attempt') ~= ARGV[8] then
    redis.call('HSET', KEYS[1], 'attempt', ARGV[8], 'before', before(KEYS[1], now + lease[5]))
  end
  redis.call('PEXPIRE', KEYS[1], term)
  keep_floor(KEYS[2], lease[2], term + ARGV[6])
  return 'granted\n' .. lease[2]
end

local floor = redis.call('GET', KEYS[2])
if floor and tonumber(ARGV[3]) <= tonumber(floor) then return 'stale\n' .. floor end

redis.call('HSET', KEYS[1], 'before', lease and before(KEYS[1], now + lease[5]) or '')
redis.call('HSET', KEYS[1], 'leader', ARGV[2], 'token', ARGV[3], 'value', value,
  'request_id', request_id, 'elected_at', ARGV[5], 'attempt', ARGV[8])
redis.call('PEXPIRE', KEYS[1], term)
keep_floor(KEYS[2], ARGV[3], term + ARGV[6])
redis.call('ZADD', KEYS[4], 0, ARGV[1])
redis.call('ZADD', KEYS[5], now + term, ARGV[1])

-- Every grant looks at a few entries that may be over, more than the one it adds, so the index stays
-- as large as what is held. Extensions do not write the index: a lease that was extended is put back.
local leases = string.sub(KEYS[1], 1, -#ARGV[1] - 1)
for _, path in ipairs(redis.call('ZRANGEBYSCORE', KEYS[5], '-inf', now, 'LIMIT', 0, 4)) do
  local left = redis.call('PTTL', leases .. path)
  if left >= 0 then
    redis.call('ZADD', KEYS[5], now + left, path)
  else
    redis.call('ZREM', KEYS[4], path)
    redis.call('ZREM', KEYS[5], path)
  end
end
return 'granted\n' .. ARGV[3]
