-- Repairs: writes a lease that a quorum of nodes is known to hold.
--
-- KEYS  1 lease  2 high-water mark  3 index  4 expiry  5 incarnation record
-- ARGV  1 path  2 leader  3 token  4 term ms  5 value  6 elected at  7 retention ms
--       8 incarnation  9 what may be there: 'own' lease; that or 'vacant'; those or an 'unacknowledged' lease
--       10 longest restart guard ms ('' turns it off)  11 longest vote lifetime ms  12 not after: the server's ms
-- Result 1 when it is written, else 0
--
-- Atomic because it must not overwrite a later grant, nor one that this server has forgotten: then the server is in
-- another incarnation.
-- Touches the key of what outlives leases (past:); it shares the hash tag of KEYS[1].

local record = incarnation(KEYS[5], tonumber(ARGV[10]) or 0)
if ARGV[10] ~= '' and not record then return 0 end
if (record and record.run or run()) ~= ARGV[8] then return 0 end
local now = record and record.now or now_ms()
-- The extension that the repair is part of must be in force.
if now > tonumber(ARGV[12]) then return 0 end
-- Votes that this incarnation may have forgotten no longer count.
if record and record.since > 0 and now < record.since + math.max(tonumber(ARGV[11]), record.vote) then return 0 end
local token, term = tonumber(ARGV[3]), tonumber(ARGV[4])
local past = string.sub(KEYS[1], 1, -#ARGV[1] - 7) .. 'past:' .. ARGV[1]
local acknowledged = redis.pcall('HGET', past, 'acknowledged')
-- While the slot moves to another server, the key is not available: the next extension repairs.
if type(acknowledged) == 'table' or acknowledged and token < tonumber(acknowledged) then return 0 end

local head = redis.call('HMGET', KEYS[1], 'leader', 'token', 'attempt')
-- Only where there is a lease: writing a missing one takes memory, as a grant does.
if head[1] then go_on_when_full(KEYS[1]) end
local left = redis.call('PTTL', KEYS[1])
local mine = {ARGV[2], ARGV[3], ARGV[5], '', ARGV[6], digits(now + term), '', ''}
local function raised(entry)
  -- The request that was granted the token keeps its id.
  if entry[2] == ARGV[3] then mine[4] = entry[4] end
  mine[6] = digits(math.max(now + term, tonumber(entry[6])))
end
if not head[1] then
  if ARGV[9] == 'own' then return 0 end
  write_entries(KEYS[1], {mine}, now)
elseif head[1] == ARGV[2] and tonumber(head[2]) <= token then
  raised(entry_of(KEYS[1], now + left))
  write_entries(KEYS[1], {mine}, now)
else
  -- The repaired lease goes below the unacknowledged grants, which replaced it or would have: a rollback restores it.
  if not head[3] or ARGV[9] ~= 'unacknowledged' then return 0 end
  local entries = entries_below(KEYS[1])
  local last = entries[#entries]
  if last and last[7] == '' then
    if last[6] - now > 0 then
      if last[1] ~= ARGV[2] or tonumber(last[2]) > token then return 0 end
      raised(last)
    end
    entries[#entries] = nil
  end
  entries[#entries + 1] = mine
  table.insert(entries, 1, entry_of(KEYS[1], now + left))
  -- The high-water marks that rollbacks of those grants restore must not be below its token.
  for _, entry in ipairs(entries) do
    if entry[8] ~= '' and tonumber(entry[8]) < token then entry[8] = ARGV[3] end
  end
  write_entries(KEYS[1], entries, now)
end
local keep = term + ARGV[7]
acknowledge(past, token, keep)
local mark = redis.call('GET', KEYS[2])
if not mark or tonumber(mark) < token then mark = ARGV[3] end
redis.call('SET', KEYS[2], mark, 'PX', digits(math.max(keep, redis.call('PTTL', KEYS[2]))))
redis.pcall('ZADD', KEYS[3], 0, ARGV[1])
redis.pcall('ZADD', KEYS[4], digits(now + term), ARGV[1])
announce('repair', ARGV[3], ARGV[1])
return 1
