-- Reports the state of a partition, starts the quarantine when the server may have lost memory, and registers how
-- long votes and terms of the agent last.
--
-- KEYS  1 incarnation record
-- ARGV  1 the agent's own restart guard ms ('' turns it off)  2 its vote lifetime ms  3 the longest guard ms that
--       any server has reported to it  4 ms since an agent last registered that  5 and 6 likewise of vote lifetimes
--       7 '1' if the record may be written  8 '1' if the user's permissions are to be tested
-- Result ms of quarantine, or '' when there is no record; incarnation; the server's ms; the longest guard ms that
--       counts, and how long ago an agent registered it; likewise of vote lifetimes; the commands for which the user
--       lacks permission, or ''; the maxmemory-policy; the memory that counts against maxmemory, in bytes; maxmemory
--       in bytes, 0 without a limit
--
-- Atomic because the record must not change between the read and the write.
-- Reads the key in which version 0.1.0 registers; it shares the hash tag of KEYS[1].

-- Tests the commands of the other scripts, in ways that change nothing: a grant that is refused half way would leave a
-- lease that never expires.
local nothing = string.match(KEYS[1], '^[^}]*}:') .. 'nothing'
local lacks = {}
for _, command in ipairs(ARGV[8] == '1' and {
  {'GET', nothing}, {'SET', nothing, '', 'XX'}, {'DEL', nothing}, {'EXISTS', nothing}, {'PTTL', nothing},
  {'PEXPIRE', nothing, 1}, {'HGET', nothing, ''}, {'HDEL', nothing, ''}, {'ZADD', nothing, 'XX', 0, ''},
  {'ZREM', nothing, ''}, {'ZRANGEBYLEX', nothing, '-', '+'}, {'ZRANGEBYSCORE', nothing, 0, 0},
} or {}) do
  local reply = redis.pcall(unpack(command))
  local why = type(reply) == 'table' and reply.err or ''
  -- The texts of versions from 6.2 to 7. Other errors are not about permissions: the slot moves, the disk is full.
  if string.find(why, 'NOPERM') or string.find(why, 'ACL failure') or string.find(why, 'user executing the script') then
    lacks[#lacks + 1] = command[1]
  end
end
lacks = table.concat(lacks, ' ')
local memory = redis.call('INFO', 'memory')
local function of_memory(field)
  return string.match(memory, '\n' .. field .. ':([^\r\n]*)')
end
local policy = of_memory('maxmemory_policy') or ''
-- Buffers for replicas and the log do not count.
local used = (of_memory('used_memory') or 0) - (of_memory('mem_not_counted_for_evict') or 0)
local now = now_ms()
-- Agents of version 0.1.0 register their restart guard with their list of nodes. What newer ones write there for them
-- has `told_at`: it contains nothing that the record does not.
local legacy = redis.pcall('HMGET', string.match(KEYS[1], '^[^}]*}:') .. 'agents', 'guard', 'guard_at', 'told_at')
local legacy_guard, legacy_at = 0, now
if legacy[1] and legacy[2] and legacy[2] ~= legacy[3] then
  legacy_guard, legacy_at = tonumber(legacy[1]), math.min(tonumber(legacy[2]), now)
end
local function report(wait, run, guard, guard_at, vote, vote_at)
  return table.concat({wait, run, digits(now), digits(guard), digits(math.max(now - guard_at, 0)), digits(vote),
    digits(math.max(now - vote_at, 0)), lacks, policy, digits(used), of_memory('maxmemory') or '0'}, '\n')
end

if ARGV[7] ~= '1' then
  local known = redis.call('HMGET', KEYS[1], 'run', 'guard', 'guard_at', 'vote', 'vote_at')
  local guard, guard_at = tonumber(known[2] or 0), tonumber(known[3] or now)
  if legacy_guard > guard then guard, guard_at = legacy_guard, legacy_at end
  return report(known[1] and '0' or '', run(), guard, guard_at, tonumber(known[4] or 0), tonumber(known[5] or now))
end

-- A server whose memory is full still extends and reads.
go_on_when_full(KEYS[1])
local record = incarnation(KEYS[1], math.max(tonumber(ARGV[1]) or 0, tonumber(ARGV[3]), legacy_guard))
if not record then return report('', run(), legacy_guard, legacy_at, 0, now) end
-- The longest bound counts: it lengthens this incarnation's wait, if it has one. The record forgets a bound when no
-- agent has registered it for so long that everything granted under it is over.
local function register(name, own, other, age)
  local bound, at = record[name], math.min(record[name .. '_at'], now)
  if now - at > math.max(bound, REMEMBER) then bound = 0 end
  if own >= bound then bound, at = own, now end
  if other > bound then bound, at = other, now - age end
  if bound ~= record[name] or at ~= record[name .. '_at'] then
    record[name], record[name .. '_at'] = bound, at
    redis.call('HSET', KEYS[1], name, digits(bound), name .. '_at', digits(at))
  end
end
register('guard', tonumber(ARGV[1]) or 0, tonumber(ARGV[3]), tonumber(ARGV[4]))
if legacy_guard > 0 then register('guard', 0, legacy_guard, now - legacy_at) end
register('vote', tonumber(ARGV[2]), tonumber(ARGV[5]), tonumber(ARGV[6]))
if record.since > 0 and record.since + record.guard > record.ready_at then
  record.ready_at = record.since + record.guard
  write_incarnation(KEYS[1], record)
end
local wait = math.max(record.ready_at - now, 0)
-- An agent without a guard waits where others have one.
if ARGV[1] == '' and not is_guarded(record) then wait = 0 end
return report(digits(wait), record.run, record.guard, record.guard_at, record.vote, record.vote_at)
