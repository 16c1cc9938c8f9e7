-- Lists the kinds that have held elections from the index, and skips from kind to kind. Writes nothing: it works on a
-- server that takes no writes, too.
--
-- KEYS  1 index
-- ARGV  1 least path, in the form of ZRANGEBYLEX  2 most kinds  3 most entries to examine of a kind
--       4 entries after which no other kind is examined  5 prefix of all lease keys
--       last 'asking' on a server that imports the slot
-- Result {last kind examined or '' at the end, how many entries had no lease, kind…}. A kind is listed if one of the
--       entries examined has a lease, or may have one on another server of the cluster, or if there are more entries.
--
-- Atomic because an entry may be added between the reads of two kinds.
-- Touches the lease keys of the index's entries; they share the hash tag of KEYS[1].

local from, most, each, left = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local asking = ARGV[#ARGV] == 'asking'
local page, skipped = {'', '0'}, 0

while left > 0 and #page - 2 < most do
  local first = redis.call('ZRANGEBYLEX', KEYS[1], from, '+', 'LIMIT', 0, 1)[1]
  if not first then
    page[1] = ''
    break
  end
  local kind = string.match(first, '^([^/\n]+)/')
  if kind then
    local paths = redis.call('ZRANGEBYLEX', KEYS[1], from, '(' .. kind .. '0', 'LIMIT', 0, each)
    local has = #paths == each
    for _, path in ipairs(paths) do
      left = left - 1
      -- An error: the lease has moved to another server of the cluster.
      if asking or redis.pcall('EXISTS', ARGV[5] .. path) ~= 0 then
        has = true
        break
      end
      skipped = skipped + 1
    end
    if has then page[#page + 1] = kind end
    page[1], from = kind, '[' .. kind .. '0'
  else
    -- It names no election.
    left, from = left - 1, '(' .. first
    if left == 0 and page[1] == '' then
      return redis.error_reply('the index has too many entries that name no election: ' .. KEYS[1])
    end
  end
end
page[2] = tostring(skipped)
return page
