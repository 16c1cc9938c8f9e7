-- Tells how long the server abstains from grants, and has it begin to when it has restarted; and which run
-- of which server it is.
--
-- KEYS  1 marker
-- ARGV  1 guard ms ('' turns it off)
-- Result {ms or '' when there is no marker, run id}
--
-- A script because the run id must be compared on the server that holds the marker.

local wait = ARGV[1] ~= '' and guard_ms(KEYS[1], ARGV[1])
return {wait and string.format('%.0f', wait) or '', run_id()}
