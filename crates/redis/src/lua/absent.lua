-- The end of the scripts that found no lease.

return vacancy(KEYS[1])
