-- Maintains the index of held elections: restores missing entries, and drops those whose leases are gone.
--
-- KEYS  1 index  2 expiry
-- ARGV  1 prefix of all lease keys  2 how many entries that may be over to examine
--       then the paths of elections that were extended lately
--       last 'asking' on a server that imports the slot
-- Result for each path '0' when there is no lease here, '1' when the index has it, '2' when it was restored
--
-- Atomic because an entry may be dropped only while its lease is gone, and is restored only while it is held.
-- Touches the lease keys of the elections; they share the hash tag of KEYS[1].

local index, expiry, leases, most = KEYS[1], KEYS[2], ARGV[1], ARGV[2]
local now, result = now_ms(), ''
-- Lets the script continue where the server's memory is full (go_on_when_full, for a sorted set): what it drops frees
-- more than what it restores.
redis.pcall('ZREM', index, '')
for at = 3, #ARGV - (ARGV[#ARGV] == 'asking' and 1 or 0) do
  local path = ARGV[at]
  -- A lease that has moved to another server of the cluster cannot be looked up: an error.
  local left = redis.pcall('PTTL', leases .. path)
  if type(left) ~= 'number' or left < 0 then
    result = result .. '0'
  else
    local added = redis.call('ZADD', index, 'NX', 0, path) + redis.call('ZADD', expiry, 'NX', now + left, path)
    result = result .. (added > 0 and '2' or '1')
  end
end
