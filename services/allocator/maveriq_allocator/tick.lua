-- Counts the time that allocators listen, which stands still while none does, and says who was silent for long. A node
-- that was silent for very long, and where nothing is held, is forgotten.
-- KEYS: watch, heard, changes.  ARGV: most ms between two ticks: more was an outage; ms of silence; ms until a node is
--   forgotten; what the keys of nodes begin with.
-- Returns each silent node, and a mark of its silence, which changes with what is held there; not where the node's
--   `told_of` is that mark.
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local watch = redis.call('HMGET', KEYS[1], 'ticked_at_ms', 'listened_ms')
local listened_ms = tonumber(watch[2] or 0)
if watch[1] then
  listened_ms = listened_ms + math.max(0, math.min(now_ms - watch[1], tonumber(ARGV[1])))
end
redis.call('HSET', KEYS[1], 'ticked_at_ms', string.format('%.0f', now_ms),
  'listened_ms', string.format('%.0f', listened_ms))

local silent = {}
local found = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', string.format('%.0f', listened_ms - ARGV[2] - 1), 'WITHSCORES')
for i = 1, #found, 2 do
  local name, since_ms, node = found[i], found[i + 1], ARGV[4] .. found[i]
  local held = redis.call('HKEYS', node .. ':held')
  table.sort(held)
  local mark = since_ms .. '/' .. redis.sha1hex(table.concat(held, '\n'))
  if #held == 0 and listened_ms - since_ms > tonumber(ARGV[3]) then
    redis.call('DEL', node, node .. ':strange', node .. ':missing', node .. ':drifted')
    redis.call('HDEL', KEYS[3], name)
    redis.call('ZREM', KEYS[2], name)
  elseif redis.call('HGET', node, 'told_of') ~= mark then
    silent[#silent + 1], silent[#silent + 2] = name, mark
  end
end
return silent
