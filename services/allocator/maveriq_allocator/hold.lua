-- Holds bytes of one GPU for a calibration, or keeps those that it holds already.
-- KEYS: holds, their ends, the node's hash, the node's `held` hash, changes.
-- ARGV: hold, field of `held`, gpu, bytes, keep in ms, its place as JSON.
-- Returns {'held', place} ({'kept', place} where it was held before) or {'taken'} (its bytes are no longer free, or the
--   node would keep less free on all its GPUs than it is to).
local time = redis.call('TIME')
local ends_ms = time[1] * 1000 + math.floor(time[2] / 1000) + tonumber(ARGV[5])

local place = redis.call('HGET', KEYS[1], ARGV[1])
if place then
  redis.call('ZADD', KEYS[2], ends_ms, ARGV[1])
  return {'kept', place}
end

local sums, spare = {[ARGV[3]] = tonumber(ARGV[4])}, 0
local held = redis.call('HGETALL', KEYS[4])
for i = 1, #held, 2 do
  local gpu = string.match(held[i], '^(.*)|')
  sums[gpu] = (sums[gpu] or 0) + held[i + 1]
end
local headroom, fits = 0, false
local facts = redis.call('HGETALL', KEYS[3])
for i = 1, #facts, 2 do
  local gpu = string.match(facts[i], '^limit|(.*)$')
  if gpu then
    local free = facts[i + 1] - (sums[gpu] or 0)
    fits = fits or gpu == ARGV[3] and free >= 0
    spare = spare + math.max(0, free)
  elseif facts[i] == 'headroom' then
    headroom = tonumber(facts[i + 1])
  end
end
if not fits or spare < headroom then
  return {'taken'}
end

redis.call('HSET', KEYS[4], ARGV[2], ARGV[4])
redis.call('HINCRBY', KEYS[5], string.match(KEYS[3], '[^:]*$'), 1)
redis.call('HINCRBY', KEYS[3], 'version|' .. ARGV[3], 1)
redis.call('HDEL', KEYS[3], 'sum|' .. ARGV[3])
redis.call('HSET', KEYS[1], ARGV[1], ARGV[6])
redis.call('ZADD', KEYS[2], ends_ms, ARGV[1])
return {'held', ARGV[6]}
