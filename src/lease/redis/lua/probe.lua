-- Tells what the server says of itself, and has it begin to abstain from grants when it has restarted.
--
-- KEYS  1 marker
-- ARGV  1 guard ms ('' turns it off)
-- Result ms that the server abstains, or '' when there is no marker; run; maxmemory-policy
--
-- Atomic because the marker must not change between the look and what is written.

local wait = ARGV[1] ~= '' and guard_ms(KEYS[1], ARGV[1])
local policy = string.match(redis.call('INFO', 'memory'), 'maxmemory_policy:([^\r\n]*)') or ''
return table.concat({wait and string.format('%.0f', wait) or '', run(), policy}, '\n')
