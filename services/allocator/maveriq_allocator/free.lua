-- Gives back what a calibration holds.
-- KEYS: holds, their ends, the node's hash, the node's `held` hash, changes.
-- ARGV: hold, field of `held`, gpu, '1': only if its time is over.
-- Returns 1 where that freed bytes.
if ARGV[4] == '1' then
  local time = redis.call('TIME')
  local ends_ms = redis.call('ZSCORE', KEYS[2], ARGV[1])
  if ends_ms and tonumber(ends_ms) > time[1] * 1000 + math.floor(time[2] / 1000) then
    return 0
  end
end
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('HDEL', KEYS[1], ARGV[1])
local freed = redis.call('HDEL', KEYS[4], ARGV[2])
if freed == 1 then
  redis.call('HINCRBY', KEYS[5], string.match(KEYS[3], '[^:]*$'), 1)
end
if freed == 1 and redis.call('HEXISTS', KEYS[3], 'version|' .. ARGV[3]) == 1 then
  redis.call('HINCRBY', KEYS[3], 'version|' .. ARGV[3], 1)
  redis.call('HDEL', KEYS[3], 'sum|' .. ARGV[3])
end
return freed
