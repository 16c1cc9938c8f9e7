-- Tells what the server says of itself, and has it begin to abstain from grants when it has restarted.
--
-- KEYS  1 marker  2 servers
-- ARGV  1 guard ms ('' turns it off)  2 the agent's list of servers  3 longest term ms
-- Result {ms that the server abstains, or '' when there is no marker; run id; maxmemory-policy;
--         list of servers that agents use it with}
--
-- Atomic because of two agents with different lists, one must be told the other's. The list is forgotten
-- when no agent has probed for the longest term: what was granted under it is over.

local function info(section, field)
  return string.match(redis.call('INFO', section), field .. ':([^\r\n]*)') or ''
end

local servers = redis.call('GET', KEYS[2])
if not servers or servers == ARGV[2] then
  servers = ARGV[2]
  redis.call('SET', KEYS[2], servers, 'PX', ARGV[3])
end
local wait = ARGV[1] ~= '' and guard_ms(KEYS[1], ARGV[1])
return {
  wait and string.format('%.0f', wait) or '', run_id(), info('memory', 'maxmemory_policy'), servers
}
