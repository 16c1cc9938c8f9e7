-- The first half of grant.lua, which documents both: refuses a grant where another candidate holds the election. Most
-- campaigns end here, so this half uses nothing of the other.

local over = ARGV[14] or 'own'
local lease = read_lease(KEYS[1])
local own = lease and lease[1] == ARGV[2]
if lease and over ~= 'anyone' and over ~= 'any leader' then
  if over == 'leader' and lease[1] == ARGV[15] then
    if ARGV[16] ~= '0' and ARGV[16] ~= lease[2] then return 'mismatch' end
  elseif over ~= 'own' or not own then
    -- A lease that lasts longer than any agent grants comes from a clock that has been set back since.
    local longest = tonumber(ARGV[7]) or 0
    if longest > 0 and lease[5] > longest then
      longest = math.max(longest, tonumber(redis.call('HGET', KEYS[3], 'guard') or 0))
      -- Version 0.1.0 registers its terms elsewhere, from where the probe copies them.
      local legacy = redis.pcall('HGET', string.match(KEYS[3], '^[^}]*}:') .. 'agents', 'guard')
      longest = math.max(longest, tonumber(legacy) or 0)
      if lease[5] > longest then
        redis.call('PEXPIRE', KEYS[1], longest)
        lease[5] = longest
      end
    end
    return 'held\n' .. lines(lease)
  end
end
