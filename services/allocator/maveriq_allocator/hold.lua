-- Holds bytes of one GPU for a calibration, or keeps those that it holds already.
-- KEYS: holds, their ends, the node's hash, the node's `held` hash.
-- ARGV: hold, field of `held`, gpu, bytes, keep in ms, its place as JSON.
-- Returns {'held', place} ({'kept', place} where it was held before) or {'taken'} (its bytes are no longer free).
local time = redis.call('TIME')
local ends_ms = time[1] * 1000 + math.floor(time[2] / 1000) + tonumber(ARGV[5])

local place = redis.call('HGET', KEYS[1], ARGV[1])
if place then
  redis.call('ZADD', KEYS[2], ends_ms, ARGV[1])
  return {'kept', place}
end

local limit = redis.call('HGET', KEYS[3], 'limit|' .. ARGV[3])
local free = limit and tonumber(limit)
local held = redis.call('HGETALL', KEYS[4])
for i = 1, #held, 2 do
  if free and string.match(held[i], '^(.*)|') == ARGV[3] then
    free = free - tonumber(held[i + 1])
  end
end
if not free or free < tonumber(ARGV[4]) then
  return {'taken'}
end

redis.call('HSET', KEYS[4], ARGV[2], ARGV[4])
redis.call('HINCRBY', KEYS[3], 'version|' .. ARGV[3], 1)
redis.call('HDEL', KEYS[3], 'sum|' .. ARGV[3])
redis.call('HSET', KEYS[1], ARGV[1], ARGV[6])
redis.call('ZADD', KEYS[2], ends_ms, ARGV[1])
return {'held', ARGV[6]}
