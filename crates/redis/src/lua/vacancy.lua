-- Shared by the scripts that report that there is no lease.
--
-- Returns 'missing' and the high-water mark ('0': none); 'unmarked' and the mark without an incarnation record;
-- 'quarantined' while this incarnation may have forgotten a leader that still has time left.
--
-- The key is the lease's; the keys of record and high-water mark share its hash tag.

local function vacancy(key)
  local record = redis.pcall('HMGET', string.match(key, '^[^}]*}:') .. 'marker', 'run', 'ready_at')
  -- While the slot moves to another server, the record may be there.
  if record.err then return 'quarantined' end
  local word = 'unmarked'
  if record[1] then
    if record[1] ~= run() or tonumber(record[2]) > now_ms() then return 'quarantined' end
    word = 'missing'
  end
  local mark = redis.pcall('GET', (string.gsub(key, '}:lease:', '}:floor:', 1)))
  return word .. '\n' .. (type(mark) == 'string' and mark or '0')
end
