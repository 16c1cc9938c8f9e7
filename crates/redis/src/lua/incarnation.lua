-- Shared by the scripts that depend on what the server remembers; prepended to them when the agent is built.

-- How long registered bounds count after their last registration, in ms, unless the bound itself is longer: then that
-- long. An agent probes a partition of a large cluster only now and then.
local REMEMBER = 3600000

-- The server's time in ms.
local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- A number as text without an exponent.
local function digits(number)
  return string.format('%.0f', number)
end

-- Lets the script continue where the server's memory is full: a server refuses a command that may need more only as the
-- first write of a script. For scripts that free memory, or write a bounded amount for existing leases. Changes
-- nothing: no hash has the field.
local function go_on_when_full(hash)
  redis.pcall('HDEL', hash, '')
end

-- Sets the expiry of a key that may be new. A user without permission for this must leave no key that never expires.
local function expire(key, ms, made)
  local reply = redis.pcall('PEXPIRE', key, ms)
  if type(reply) == 'table' and reply.err then
    if made then redis.call('DEL', key) end
    error(reply.err)
  end
end

-- Names this incarnation of the server. The run id changes with every restart, and a replica has its own. The
-- replication id changes with every promotion: so a server that was demoted, took over the memory of a
-- replica that lagged, and was promoted again, is in another incarnation.
local function run()
  return string.match(redis.call('INFO', 'server'), 'run_id:(%x+)') .. ':'
    .. string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)')
end

-- Writes since when the present incarnation remembers, and when it may grant.
local function write_incarnation(key, record)
  redis.call('HSET', key, 'run', record.run, 'of', record.run, 'since', digits(record.since),
    'ready_at', digits(record.ready_at))
end

-- Returns the partition's incarnation record as it must be now, or nil without one. `guard` is the longest restart
-- guard that the caller knows of, in ms.
--
-- A record of another incarnation is rewritten. The present incarnation is in quarantine for the longest guard that the
-- caller or the record knows, however old that is: the age of the server's memory is unknown. A clock that was set back
-- behind the record's beginning makes no wait longer than it was. Version 0.1.0 writes records without `since`; the
-- rest of their wait is capped likewise.
local function incarnation(key, guard)
  local fields = redis.call('HMGET', key, 'run', 'ready_at', 'since', 'of', 'guard', 'guard_at', 'vote', 'vote_at')
  if not fields[2] then return nil end
  local record = {
    now = now_ms(), run = run(), ready_at = tonumber(fields[2]), since = tonumber(fields[3] or 0),
    guard = tonumber(fields[5] or 0), guard_at = tonumber(fields[6] or 0),
    vote = tonumber(fields[7] or 0), vote_at = tonumber(fields[8] or 0),
  }
  local now, longest = record.now, math.max(guard, record.guard)
  if fields[1] ~= record.run then
    record.since, record.ready_at = now, now + longest
    record.guard_at, record.vote_at = now, now
    redis.call('HSET', key, 'guard_at', digits(now), 'vote_at', digits(now))
    write_incarnation(key, record)
  elseif fields[4] ~= record.run then
    record.since = record.ready_at > now and now or 0
    record.ready_at = record.ready_at > now and math.min(record.ready_at, now + longest) or 0
    write_incarnation(key, record)
  elseif record.since > now then
    record.ready_at = now + math.max(record.ready_at - record.since, 0)
    record.since = now
    write_incarnation(key, record)
  end
  record.wait = math.max(record.ready_at - now, 0)
  return record
end

-- Whether an agent that wants a restart guard has used the partition lately.
local function is_guarded(record)
  return record.guard > 0 and record.now - record.guard_at <= math.max(record.guard, REMEMBER)
end
