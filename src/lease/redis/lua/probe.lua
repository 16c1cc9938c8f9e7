-- Tells how long the server abstains from grants, and has it begin to when it has restarted.
--
-- KEYS  1 marker
-- ARGV  1 guard ms
-- Result ms, or nil when there is no marker
--
-- A script because the run id must be compared on the server that holds the marker.

return guard_ms(KEYS[1], ARGV[1])
