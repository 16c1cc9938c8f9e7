-- Rolls back an unacknowledged grant.
--
-- KEYS  1 lease  2 high-water mark  3 index  4 expiry
-- ARGV  1 path  2 grant id  3 token  4 ms for which the grant may still arrive  5 request id ('' for none)
-- Result nothing
--
-- Atomic because only what this very grant wrote may change: a repeated request or an extension may have come in
-- between, and then the lease is acknowledged.
-- Touches the keys that say which grants were rolled back and which request ids were used; they share the hash
-- tag of KEYS[1].

go_on_when_full(KEYS[1])
local base = string.sub(KEYS[1], 1, -#ARGV[1] - 7)
-- A copy of the grant that arrives later is refused by its grant id.
redis.pcall('SET', base .. 'rolled-back:' .. ARGV[2] .. ':' .. ARGV[1], '', 'PX', ARGV[4])

if not redis.call('HGET', KEYS[1], 'attempt') then return '' end
local now = now_ms()
local entries = entries_below(KEYS[1])
table.insert(entries, 1, entry_of(KEYS[1], now + redis.call('PTTL', KEYS[1])))
-- The high-water mark returns with the grant that raised it, and so does the mark that the rollback of a later grant
-- would restore. Where a later grant has renewed this grant's lease, the mark returns with the later grant.
local mark, kept, later, undone = redis.call('GET', KEYS[2]), {}, nil, false
local renewed = {}
for _, entry in ipairs(entries) do
  if entry[7] ~= ARGV[2] then
    kept[#kept + 1] = entry
    if entry[7] ~= '' and entry[8] ~= '' then later = entry end
    if entry[7] ~= '' and entry[8] == '' then renewed[entry[2]] = entry end
  else
    undone = true
    if entry[8] ~= '' and renewed[entry[2]] then
      renewed[entry[2]][8] = entry[8]
    elseif entry[8] ~= '' and later and later[8] == entry[2] then
      later[8] = entry[8]
    elseif entry[8] ~= '' and mark == entry[2] then
      mark = entry[8]
      if mark == '0' then redis.call('DEL', KEYS[2]) else redis.call('SET', KEYS[2], mark, 'KEEPTTL') end
    end
  end
end
if not undone then return '' end

if ARGV[5] ~= '' then
  -- The request was not granted: it may be repeated.
  local past = base .. 'past:' .. ARGV[1]
  local packed = redis.pcall('HGET', past, 'used')
  local used, others = type(packed) == 'string' and cmsgpack.unpack(packed) or {}, {}
  for _, one in ipairs(used) do
    if one[1] ~= ARGV[5] or one[2] ~= ARGV[3] then others[#others + 1] = one end
  end
  if #others < #used then redis.call('HSET', past, 'used', cmsgpack.pack(others)) end
end

if not write_entries(KEYS[1], kept, now) then
  redis.pcall('ZREM', KEYS[3], ARGV[1])
  redis.pcall('ZREM', KEYS[4], ARGV[1])
end
announce('rollback', ARGV[3], ARGV[1])
return ''
