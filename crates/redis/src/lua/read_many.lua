-- Reads the leases of several elections of a partition.
--
-- KEYS  leases
-- ARGV  last 'asking' on a server that imports the slot
-- Result a list: for each key what read.lua replies, or '?' when the lease may be on another server or cannot be read
--
-- Atomic because each lease and its remaining time must be of the same instant.

local asking, replies = ARGV[#ARGV] == 'asking', {}
for n, key in ipairs(KEYS) do
  local lease = redis.pcall('HMGET', key, 'leader', 'token', 'value', 'elected_at')
  if lease.err or (asking and not lease[1]) then
    replies[n] = '?'
  elseif lease[1] then
    lease[5] = redis.call('PTTL', key)
    replies[n] = 'lease\n' .. lines(lease)
  else
    replies[n] = vacancy(key)
  end
end
return replies
