-- Registers the list of nodes with which the agent uses the server, and reports the lists of others.
--
-- KEYS  1 lists (packed: list, 'closing:' list and 'closed:' list, and the ms at which an agent last registered it)
--       2 agents (hash of version 0.1.0: nodes, guard ms, guard_at ms; told_at ms, the guard_at of a guard that
--       this script wrote)  3 incarnation record
-- ARGV  1 the agent's list, or 'old > new' while agents move from one to the other  2 longest restart guard ms that
--       the agent knows of  3 '1' if it may be written  4 '1' if a majority of the old list's nodes is closing it
-- Result 'ok', or 'closing' if this server admits no more agents that have only the old list; or 'other' and a list
--       that is incompatible with the agent's
--
-- Atomic because of two agents with different lists, one must receive the other's.
--
-- Majorities of two lists need not intersect, so a list counts until all that was granted under it is over. Agents
-- that need majorities of both lists, the old and the new, are compatible with those that have either. Agents that
-- have only the new list are compatible with them once the old one is closed: a majority of its nodes has seen no
-- agent with only the old list for the longest guard, and admits no more of them.

local now = now_ms()
local record = redis.call('HMGET', KEYS[3], 'guard', 'ready_at', 'run')
local window = math.max(tonumber(ARGV[2]), tonumber(record[1] or 0))
-- A server that has forgotten which agents came cannot report that one did not come. A record of another incarnation
-- does not show yet that the server has forgotten.
local remembers = tonumber(ARGV[2]) == 0
  or (record[2] and tonumber(record[2]) <= now and record[3] == run())
local function parts(list)
  local old, new = string.match(list, '^(.-) > (.*)$')
  return old or list, new
end
local old, new = parts(ARGV[1])

-- An agent also registers where the memory is full, to extend the leases held there.
go_on_when_full(KEYS[2])

-- Packed into one value: on servers that were set up for version 0.1.0, users may have no permission for HGETALL.
local packed = redis.call('GET', KEYS[1])
local entries = packed and cmsgpack.unpack(packed) or {}
local seen, closing, closed, set_back = {}, {}, {}, false
for field, at in pairs(entries) do
  -- A clock that was set back makes no list count for longer.
  if at > now then at, entries[field], set_back = now, now, true end
  local state, list = string.match(field, '^(clos%l+):(.*)$')
  if now - at > window then
    entries[field] = nil
  elseif state == 'closing' then
    closing[list] = true
  elseif state == 'closed' then
    closed[list] = true
  else
    seen[field] = true
  end
end
-- Version 0.1.0 has no other way to report what it uses.
local legacy = redis.call('HMGET', KEYS[2], 'nodes', 'guard', 'guard_at', 'told_at')
if legacy[1] then
  seen[legacy[1]] = true
  local longest = math.max(window, tonumber(legacy[2] or 0), 1000)
  if redis.call('PTTL', KEYS[2]) > longest then redis.call('PEXPIRE', KEYS[2], digits(longest)) end
end
-- Its guard counts until everything granted under it is over: the probe reads it here.
local legacy_guard = 0
if legacy[2] and legacy[3] and legacy[3] ~= legacy[4] and now - legacy[3] <= tonumber(legacy[2]) then
  legacy_guard = tonumber(legacy[2])
end
local function keep()
  redis.call('SET', KEYS[1], cmsgpack.pack(entries), 'PX', digits(math.max(2 * window, 60000)))
end
-- Also for an agent that may not register: it may be the only one that comes.
if set_back then keep() end

for list in pairs(seen) do
  local theirs, their_new = parts(list)
  local goes
  if new then
    -- Two changes at once are incompatible: neither knows the other's majorities. The way back needs the same
    -- majorities.
    goes = list == ARGV[1] or list == old or list == new or theirs == new and their_new == old
  elseif their_new then
    goes = theirs == old or their_new == old and closed[theirs]
  else
    goes = list == old
  end
  if not goes then return 'other\n' .. list end
end
if not new and (closing[old] or closed[old]) then return 'other\nthe one that takes the place of ' .. old end
if ARGV[3] ~= '1' then return 'ok' end

local is_closing = false
entries[ARGV[1]] = now
if new then
  redis.call('DEL', KEYS[2])
  entries['closing:' .. new], entries['closed:' .. new] = nil, nil
  is_closing = remembers and not seen[old]
  if is_closing then entries['closing:' .. old] = now end
  if ARGV[4] == '1' then entries['closed:' .. old] = now end
else
  redis.call('HSET', KEYS[2], 'nodes', old)
  if legacy_guard <= tonumber(ARGV[2]) then
    redis.call('HSET', KEYS[2], 'guard', ARGV[2], 'guard_at', digits(now), 'told_at', digits(now))
  end
  redis.call('PEXPIRE', KEYS[2], digits(math.max(window, legacy_guard, 1000)))
end
keep()
return is_closing and 'closing' or 'ok'
