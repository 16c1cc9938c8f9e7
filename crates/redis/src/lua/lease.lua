-- Shared by the scripts that report a lease; prepended to the script's text when the agent is built.
--
-- A script replies with one string, one field a line: one string costs the agent a fraction of what a list of fields
-- does. No name has line breaks, and the value, which may have some, comes last.

-- The lease as {leader, token, value, elected_at, remaining ms}, or nil; lines() makes it a reply's lines:
-- token, elected_at, remaining ms, leader, value.
local function read_lease(key)
  local held = redis.call('HMGET', key, 'leader', 'token', 'value', 'elected_at')
  if not held[1] then return nil end
  held[5] = redis.call('PTTL', key)
  return held
end

local function lines(lease)
  return table.concat({lease[2], lease[4], lease[5], lease[1], lease[3]}, '\n')
end
