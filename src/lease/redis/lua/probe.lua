-- Tells what the server says of itself, and has it begin to abstain from grants when it has restarted.
--
-- KEYS  1 marker
-- ARGV  1 guard ms ('' turns it off)
-- Result {ms that the server abstains, or '' when there is no marker; run; maxmemory-policy; longest guard
--         of any agent in ms}
--
-- Atomic because the marker must not change between the look and what is written.

local wait, longest = '', 0
if ARGV[1] ~= '' then
  local left = guard_ms(KEYS[1], ARGV[1])
  if left then
    longest = tonumber(redis.call('HGET', KEYS[1], 'guard') or 0)
    if longest < tonumber(ARGV[1]) then
      longest = tonumber(ARGV[1])
      redis.call('HSET', KEYS[1], 'guard', ARGV[1])
    end
    wait = string.format('%.0f', left)
  end
end
local policy = string.match(redis.call('INFO', 'memory'), 'maxmemory_policy:([^\r\n]*)') or ''
return {wait, run(), policy, string.format('%.0f', longest)}
