-- Writes the marker for this run of the server, unless there is one.
--
-- KEYS  1 marker
-- ARGV  1 wait ms until the server may grant
-- Result nothing
--
-- Atomic because of two agents that find no marker, the first one's wait counts.

if redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('HSET', KEYS[1], 'run_id', run_id(), 'ready_at', string.format('%.0f', now_ms() + ARGV[1]))
end
