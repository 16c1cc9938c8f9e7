-- Lists held elections of a kind from the index, and tidies it.
--
-- KEYS  1 index  2 expiry
-- ARGV  1 least path, as ZRANGEBYLEX wants it  2 greatest path, likewise  3 most leases
--       4 most entries to look at  5 prefix of all lease keys
-- Result {last path looked at or '' at the end, path and lease…}: a list, as there may be a thousand
--
-- Atomic because an entry may be dropped only while its lease is gone.
-- Touches the lease keys of the index's entries; they share the hash tag of KEYS[1].

local most, examine = tonumber(ARGV[3]), tonumber(ARGV[4])
local page, from = {''}, ARGV[1]
while examine > 0 do
  local batch = math.min(most - (#page - 1), examine)
  local paths = redis.call('ZRANGEBYLEX', KEYS[1], from, ARGV[2], 'LIMIT', 0, batch)
  for _, path in ipairs(paths) do
    local lease = read_lease(ARGV[5] .. path)
    if lease then
      page[#page + 1] = path .. '\n' .. lines(lease)
    else
      redis.call('ZREM', KEYS[1], path)
      redis.call('ZREM', KEYS[2], path)
    end
  end
  if #paths < batch then
    page[1] = ''
    return page
  end
  page[1] = paths[#paths]
  from = '(' .. page[1]
  if #page - 1 == most then return page end
  examine = examine - #paths
end
return page
