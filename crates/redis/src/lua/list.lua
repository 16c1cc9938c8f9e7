-- Lists held elections of a kind from the index. Writes nothing: it works on a server that takes no writes, too.
--
-- KEYS  1 index
-- ARGV  1 least path, in the form of ZRANGEBYLEX  2 greatest path, likewise  3 most elections
--       4 most entries to examine  5 prefix of all lease keys
--       last 'asking' on a server that imports the slot
-- Result {last path examined or '' at the end, how many entries had no lease, election…}: a list, as there may
--       be a thousand. An election is its path and on the lines below its lease, or '?' when the lease may be
--       on another server of the cluster or cannot be read.
--
-- Atomic because a lease and its remaining time must be of the same instant.
-- Touches the lease keys of the index's entries; they share the hash tag of KEYS[1].

local most, examine, asking = tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[#ARGV] == 'asking'
local page, skipped, from = {'', '0'}, 0, ARGV[1]

-- Returns the lines below the path, or nil when there is no lease.
local function held(key)
  local lease = redis.pcall('HMGET', key, 'leader', 'token', 'value', 'elected_at')
  -- The key has moved to another server of the cluster, or is no hash.
  if lease.err then return '?' end
  if not lease[1] then return asking and '?' or nil end
  if not (lease[2] and lease[3] and lease[4]) then return '?' end
  lease[5] = redis.call('PTTL', key)
  return lines(lease)
end

while examine > 0 do
  local batch = math.min(most - (#page - 2), examine)
  local paths = redis.call('ZRANGEBYLEX', KEYS[1], from, ARGV[2], 'LIMIT', 0, batch)
  for _, path in ipairs(paths) do
    -- No election's name has line breaks.
    local lease = not string.find(path, '\n', 1, true) and held(ARGV[5] .. path)
    if lease then
      page[#page + 1] = path .. '\n' .. lease
    else
      skipped = skipped + 1
    end
  end
  page[1] = #paths < batch and '' or paths[#paths]
  if #paths < batch or #page - 2 == most then break end
  from = '(' .. page[1]
  examine = examine - #paths
end
page[2] = tostring(skipped)
return page
