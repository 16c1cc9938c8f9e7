-- Writes a lease if the election allows it; held.lua is its first half.
--
-- KEYS  1 lease (hash)  2 high-water mark (string)  3 incarnation record (hash)  4 index (zset: path, by name)
--       5 expiry (zset: path, by the time at which a lease may be over)
-- ARGV  1 path  2 candidate  3 token  4 term ms  5 elected at  6 retention ms  7 longest restart guard ms ('' turns
--       it off)  8 grant id  9 vote lifetime ms  10 not after: the server's ms
--       and unless it is the usual campaign, over the candidate's own lease, without value and request id:
--       11 value  12 request id ('' for none)  13 '1' if a lease with the request id is to be found
--       14 replaces: 'vacant', 'own', 'leader', 'anyone', 'any leader' or 'nobody'  15 leader that hands over
--       16 its token (0: not given)
--       last 'asking' on a server that imports the slot
-- Result 'granted' token, 'held' and the lease, 'mismatch', 'vacant', 'stale' high-water mark, 'unmarked',
--       'unregistered', 'guarded' ms, 'late', or 'used'
--
-- Atomic because no other grant may come between reading lease, high-water mark and record and writing the lease:
-- two candidates would both find the election vacant.
-- Touches lease keys beyond KEYS[1] when it tidies the index, and keys that say which grants were rolled back and
-- which request ids were used; they share the hash tag of KEYS[1].

local record = incarnation(KEYS[3], tonumber(ARGV[7]) or 0)
if ARGV[7] ~= '' then
  if not record then return 'unmarked' end
  -- The waits of other agents before they repair a lease here, and of a server before it grants, must cover this grant.
  if tonumber(ARGV[7]) > record.guard or tonumber(ARGV[9]) > record.vote then return 'unregistered' end
  if record.wait > 0 then return 'guarded\n' .. digits(record.wait) end
elseif record and is_guarded(record) and record.wait > 0 then
  return 'guarded\n' .. digits(record.wait)
end
local now = record and record.now or now_ms()
if now > tonumber(ARGV[10]) then return 'late' end
-- A handover needs a leader, and there is none.
if not lease and (over == 'leader' or over == 'any leader' or over == 'nobody') then return 'vacant' end

local leases = string.sub(KEYS[1], 1, -#ARGV[1] - 1)
local base = string.sub(leases, 1, -7)
-- While the slot moves to another server, keys that are not among KEYS are not available: an error, ignored here.
if redis.pcall('EXISTS', base .. 'rolled-back:' .. ARGV[8] .. ':' .. ARGV[1]) == 1 then return 'late' end

-- The value, unless 'asking' stands in its place.
local value, request_id = ARGV[12] and ARGV[11] or '', ARGV[12] or ''
local term = tonumber(ARGV[4])
if own then term = math.max(term, lease[5]) end
local keep = term + ARGV[6]
local repeated = own and request_id ~= '' and redis.call('HGET', KEYS[1], 'request_id') == request_id
local past = base .. 'past:' .. ARGV[1]
local used = {}
if request_id ~= '' and not repeated then
  local packed = redis.pcall('HGET', past, 'used')
  if type(packed) == 'string' then used = cmsgpack.unpack(packed) end
  for _, one in ipairs(used) do
    if one[1] == request_id then return 'used' end
  end
end

if repeated and ARGV[13] == '1' then
  -- A rollback of a grant that arrived twice restores what the first arrival replaced.
  if redis.call('HGET', KEYS[1], 'attempt') ~= ARGV[8] then
    local below = entries_below(KEYS[1])
    table.insert(below, 1, entry_of(KEYS[1], now + lease[5]))
    redis.call('HSET', KEYS[1], 'attempt', ARGV[8], 'low', '', 'before', pack(below))
  end
  redis.call('PEXPIRE', KEYS[1], term)
  if redis.call('PTTL', KEYS[2]) < keep and redis.call('PEXPIRE', KEYS[2], keep) == 0 then
    redis.call('SET', KEYS[2], lease[2], 'PX', keep)
  end
  return 'granted\n' .. lease[2]
end

local mark = redis.call('GET', KEYS[2])
if mark and tonumber(ARGV[3]) <= tonumber(mark) then return 'stale\n' .. mark end

local below = ''
if lease then
  local entries = entries_below(KEYS[1])
  table.insert(entries, 1, entry_of(KEYS[1], now + lease[5]))
  below = pack(entries)
end
redis.call('HSET', KEYS[1], 'leader', ARGV[2], 'token', ARGV[3], 'value', value,
  'request_id', request_id, 'elected_at', ARGV[5], 'attempt', ARGV[8], 'before', below, 'low', mark or '0')
expire(KEYS[1], term, not lease)
redis.call('SET', KEYS[2], ARGV[3], 'PX', math.max(keep, mark and redis.call('PTTL', KEYS[2]) or 0))
if request_id ~= '' and not repeated then
  -- The ids of the last few requests outlive their leases: a late duplicate of one does nothing.
  table.insert(used, 1, {request_id, ARGV[3]})
  if #used > 8 then used[#used] = nil end
  local noted = redis.pcall('HSET', past, 'used', cmsgpack.pack(used))
  if type(noted) == 'number' then expire(past, keep, true) end
end
-- An index that cannot be written costs listings, not elections.
redis.pcall('ZADD', KEYS[4], 0, ARGV[1])
redis.pcall('ZADD', KEYS[5], now + term, ARGV[1])
announce(over == 'own' and 'campaign' or 'handover', ARGV[3], ARGV[1])

-- Every grant examines a few entries that may be over, more than the one it adds, so that the index stays as large as
-- the number of held elections: tidy.lua.
local index, expiry, most = KEYS[4], KEYS[5], 4
local result = 'granted\n' .. ARGV[3]
