-- Shared by the scripts that change who leads; prepended to them when the agent is built.
--
-- Reports to listening agents what has changed, as a reason to read the election: only the time of their next read
-- depends on the message. Called after the last write of a lease, and its failure is ignored: a user without the right
-- to publish must not turn a lease that is written into an error.
--
-- The message is the cause, the token and the path, one a line. The channel shares the hash tag of KEYS[1], so that on
-- a cluster the message stays with the servers of the slot. Before version 7, Redis has no such channels.

local function announce(cause, token, path)
  local channel = string.match(KEYS[1], '^[^}]*}:') .. 'changes'
  local message = cause .. '\n' .. token .. '\n' .. path
  local sent = redis.pcall('SPUBLISH', channel, message)
  if type(sent) == 'table' then redis.pcall('PUBLISH', channel, message) end
end
