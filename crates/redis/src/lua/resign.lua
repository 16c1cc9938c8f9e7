-- Deletes the leader's lease, also where an unacknowledged grant has replaced it.
--
-- KEYS  1 lease  2 index  3 expiry
-- ARGV  1 path  2 leader  3 token (0: not given)  4 retention ms
-- Result 'resigned', 'held' or 'stale'; or the result of vacancy.lua
--
-- Atomic because the lease could pass to another leader between the check and the deletion.
-- Touches the key of what outlives leases (past:); it shares the hash tag of KEYS[1].

local lease = redis.call('HMGET', KEYS[1], 'leader', 'token', 'attempt')
-- Deleting a lease frees more memory than writing the past: key takes.
if lease[1] then go_on_when_full(KEYS[1]) end
-- A repair in flight must not restore the lease.
if ARGV[3] ~= '0' then
  local past = string.sub(KEYS[1], 1, -#ARGV[1] - 7) .. 'past:' .. ARGV[1]
  acknowledge(past, ARGV[3] + 1, ARGV[4])
end
if lease[1] then
  local named = lease[1] == ARGV[2] and (ARGV[3] == '0' or ARGV[3] == lease[2])
  if not named and not lease[3] then return lease[1] ~= ARGV[2] and 'held' or 'stale' end
  -- Below an unacknowledged grant, the lease that a rollback would restore is given up, too.
  local now = now_ms()
  local entries = lease[3] and entries_below(KEYS[1]) or {}
  table.insert(entries, 1, entry_of(KEYS[1], now + redis.call('PTTL', KEYS[1])))
  local kept = {}
  for _, entry in ipairs(entries) do
    if entry[1] ~= ARGV[2] or (ARGV[3] ~= '0' and ARGV[3] ~= entry[2]) then kept[#kept + 1] = entry end
  end
  if #kept < #entries then
    if named then kept = {} end
    if not write_entries(KEYS[1], kept, now) then
      redis.pcall('ZREM', KEYS[2], ARGV[1])
      redis.pcall('ZREM', KEYS[3], ARGV[1])
    end
  end
  if named then
    announce('resign', lease[2], ARGV[1])
    return 'resigned'
  end
  return lease[1] ~= ARGV[2] and 'held' or 'stale'
end
