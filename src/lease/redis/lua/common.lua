-- Shared by the scripts that need them; prepended to the script's text when the agent is built.

-- The server's time in ms. It stands still while a script runs.
local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Identifies this run of the server: it changes with every restart, and a promoted replica has its own.
local function run_id()
  return string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
end

-- How long the server abstains from grants by its marker, in ms, or nil when it has none. A marker of
-- another run means that this one has not begun to wait.
local function guard_ms(marker_key, guard)
  local marker = redis.call('HMGET', marker_key, 'run_id', 'ready_at')
  if not marker[1] then return nil, false end
  if marker[1] ~= run_id() then return tonumber(guard), true end
  return math.max(tonumber(marker[2]) - now_ms(), 0), false
end

-- The lease as {leader, token, value, elected_at, remaining ms}, or nil.
local function read_lease(key)
  local held = redis.call('HMGET', key, 'leader', 'token', 'value', 'elected_at')
  if not held[1] then return nil end
  held[5] = redis.call('PTTL', key)
  return held
end
