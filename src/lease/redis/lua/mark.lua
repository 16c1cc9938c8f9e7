-- Writes the marker for this run of the server, unless there is one or this is another run.
--
-- KEYS  1 marker
-- ARGV  1 wait ms until the server may grant  2 run
-- Result 1 when it was written, else 0
--
-- Atomic because of two agents that find no marker, the first one's wait counts.

if redis.call('EXISTS', KEYS[1]) == 1 or run() ~= ARGV[2] then return 0 end
mark(KEYS[1], ARGV[1])
return 1
