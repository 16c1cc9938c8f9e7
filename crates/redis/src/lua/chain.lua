-- Shared by the scripts that change what a rollback restores; prepended to them when the agent is built.
--
-- A lease whose grant is not acknowledged has the field `attempt`, the grant id; `low`, the token high-water mark
-- before that grant ('0': none; '' if the grant found its own lease and raised nothing); and `before`, the replaced
-- entries, the newest first. Each entry has the fields leader, token, value, request id, elected at, the ms at which
-- it expires, grant id, low. An acknowledged entry has no grant id, and is the last.
--
-- All fields are in one list: version 0.1.0 writes one entry without the last two, and where a grant of its own
-- comes first, it restores the entry that it finds at the list's beginning.

-- How many entries a lease keeps. A candidate that campaigns again and again, and never extends, leaves one each time.
-- The oldest one beyond that counts as acknowledged.
local DEEPEST = 8
-- The number of fields of an entry.
local FIELDS = 8

local function entry_of(key, until_ms)
  local entry = redis.call('HMGET', key, 'leader', 'token', 'value', 'request_id', 'elected_at')
  local grant = redis.call('HMGET', key, 'attempt', 'low')
  entry[4] = entry[4] or ''
  entry[6] = digits(until_ms)
  entry[7], entry[8] = grant[1] or '', grant[2] or ''
  return entry
end

-- The entries that the lease replaced.
local function entries_below(key)
  local packed = redis.call('HGET', key, 'before')
  if not packed or packed == '' then return {} end
  local fields, entries = cmsgpack.unpack(packed), {}
  for first = 1, #fields, FIELDS do
    local entry = {unpack(fields, first, first + FIELDS - 1)}
    entry[7], entry[8] = entry[7] or '', entry[8] or ''
    entries[#entries + 1] = entry
  end
  return entries
end

local function pack(entries)
  if #entries == 0 then return '' end
  if #entries > DEEPEST then
    entries[DEEPEST][7], entries[DEEPEST][8] = '', ''
    for n = #entries, DEEPEST + 1, -1 do entries[n] = nil end
  end
  local fields = {}
  for _, entry in ipairs(entries) do
    for n = 1, FIELDS do fields[#fields + 1] = entry[n] end
  end
  return cmsgpack.pack(fields)
end

-- Writes these entries as the lease and what it replaced, without expired ones at the front. Returns false when none is
-- left.
local function write_entries(key, entries, now)
  while entries[1] and entries[1][6] - now <= 0 do table.remove(entries, 1) end
  local lease = table.remove(entries, 1)
  if not lease then
    redis.call('DEL', key)
    return false
  end
  local made = redis.call('EXISTS', key) == 0
  redis.call('HSET', key, 'leader', lease[1], 'token', lease[2], 'value', lease[3],
    'request_id', lease[4], 'elected_at', lease[5])
  if lease[7] == '' then
    redis.call('HDEL', key, 'attempt', 'before', 'low')
  else
    redis.call('HSET', key, 'attempt', lease[7], 'low', lease[8], 'before', pack(entries))
  end
  expire(key, digits(lease[6] - now), made)
  return true
end

-- Notes that leases with smaller tokens are over for good.
local function acknowledge(key, token, keep)
  local known = redis.pcall('HGET', key, 'acknowledged')
  -- While the slot moves to another server, a key that is not among KEYS is not available.
  if type(known) == 'table' then return end
  if not known or tonumber(known) < token then redis.call('HSET', key, 'acknowledged', digits(token)) end
  expire(key, keep, true)
end
