-- Shared by the scripts that need them; prepended to the script's text when the agent is built.
--
-- A script answers with one string, its fields on a line each: one string costs the agent a fraction of what a
-- list of them does. No name has line breaks, and what may have some, a value, comes last.

-- The server's time in ms.
local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Names this run of the server. The run id changes with every restart, and a replica has its own. The
-- replication id changes with every promotion: so a server that was demoted, took over the memory of a
-- replica that lagged, and was promoted again, is in another run.
local function run()
  return string.match(redis.call('INFO', 'server'), 'run_id:(%x+)') .. ':'
    .. string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)')
end

-- Writes the marker for this run of the server.
local function mark(marker_key, wait)
  redis.call('HSET', marker_key, 'run', run(), 'ready_at', string.format('%.0f', now_ms() + wait))
end

-- How long the server abstains from grants by its marker, in ms, or nil when it has none. A marker of
-- another run is rewritten: this run begins to wait.
local function guard_ms(marker_key, guard)
  local marker = redis.call('HMGET', marker_key, 'run', 'ready_at')
  if not marker[2] then return nil end
  if marker[1] ~= run() then
    mark(marker_key, guard)
    return tonumber(guard)
  end
  return math.max(tonumber(marker[2]) - now_ms(), 0)
end

-- Raises the floor to the token, and keeps it for at least so many ms.
local function keep_floor(key, token, keep)
  local floor = redis.call('GET', key)
  keep = math.max(tonumber(keep), redis.call('PTTL', key))
  if not floor or tonumber(floor) < tonumber(token) then floor = token end
  redis.call('SET', key, floor, 'PX', keep)
end

-- The lease as {leader, token, value, elected_at, remaining ms}, or nil; lines() makes it an answer's lines:
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
