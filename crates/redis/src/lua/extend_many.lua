-- Renews the leases of several elections of a partition.
--
-- KEYS  for each: lease, high-water mark
-- ARGV  1 retention ms, then for each: leader, token (0: not given), term ms
--       last 'asking' on a server that imports the slot
-- Result a list: for each what extend.lua replies, or '?' when the lease may be on another server or cannot be renewed
--
-- A lease that cannot be renewed, such as a key that is not a hash, must not prevent the renewal of the others.

local asking, replies = ARGV[#ARGV] == 'asking', {}
for n = 1, #KEYS / 2 do
  local key, at = KEYS[2 * n - 1], 3 * n - 1
  local done, reply = pcall(renew, key, KEYS[2 * n], ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[1])
  if not done or (asking and not reply) then
    replies[n] = '?'
  else
    replies[n] = reply or vacancy(key)
  end
end
return replies
