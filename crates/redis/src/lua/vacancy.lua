-- The end of the scripts that found no lease: reports whether the server would know of one.
--
-- Result 'missing' and the high-water mark ('0': none); 'unmarked' without an incarnation record; 'quarantined' while this incarnation may have
-- forgotten a leader that still has time left
--
-- KEYS[1] is the lease's; the keys of record and high-water mark share its hash tag.

local record = redis.pcall('HMGET', string.match(KEYS[1], '^[^}]*}:') .. 'marker', 'run', 'ready_at')
-- While the slot moves to another server, the record may be there.
if record.err then return 'quarantined' end
if not record[1] then return 'unmarked' end
if record[1] ~= run() or tonumber(record[2]) > now_ms() then return 'quarantined' end
local mark = redis.pcall('GET', (string.gsub(KEYS[1], '}:lease:', '}:floor:', 1)))
return 'missing\n' .. (type(mark) == 'string' and mark or '0')
