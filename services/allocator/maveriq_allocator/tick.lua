-- Counts the time that allocators listen, which stands still while none does, and says who was silent for long.
-- KEYS: watch, heard.  ARGV: most ms between two ticks: more was an outage; ms of silence.
-- Returns the silent nodes.
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local watch = redis.call('HMGET', KEYS[1], 'ticked_at_ms', 'listened_ms')
local listened_ms = tonumber(watch[2] or 0)
if watch[1] then
  listened_ms = listened_ms + math.max(0, math.min(now_ms - watch[1], tonumber(ARGV[1])))
end
redis.call('HSET', KEYS[1], 'ticked_at_ms', string.format('%.0f', now_ms),
  'listened_ms', string.format('%.0f', listened_ms))
return redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', string.format('%.0f', listened_ms - ARGV[2] - 1))
