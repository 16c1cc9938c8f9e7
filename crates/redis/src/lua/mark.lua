-- Writes the incarnation record, unless there is one or this is another incarnation.
--
-- KEYS  1 incarnation record
-- ARGV  1 ms until the server may grant; 0: it is new, and has nothing to forget  2 incarnation
--       3 longest restart guard ms  4 longest vote lifetime ms
-- Result 1 when it was written, else 0
--
-- Atomic because the first agent's wait must count when two agents find no record.

if redis.call('EXISTS', KEYS[1]) == 1 or run() ~= ARGV[2] then return 0 end
local now, wait = now_ms(), tonumber(ARGV[1])
write_incarnation(KEYS[1], {
  run = ARGV[2], since = wait > 0 and now or 0, ready_at = wait > 0 and now + wait or 0,
})
redis.call('HSET', KEYS[1], 'guard', ARGV[3], 'guard_at', digits(now), 'vote', ARGV[4], 'vote_at', digits(now))
return 1
