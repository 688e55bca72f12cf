-- Keeps a node's report, and holds at once the bytes of what its worker runs and nobody holds: a record that was lost
-- with Redis, or a worker that comes back late. Nothing can be placed there between the two.
-- KEYS: changes; of the node its hash, `held`, `strange` and `missing`; heard; watch; then, for each other node that its
--   replicas reach, that node's hash and `held`.
-- ARGV: node; engine; gpus as JSON; '1' where its engine spans nodes; number of the report ('': it has none); most ms
--   between two ticks of the watch; ms after which a reservation that reports leave out is told; bytes that our
--   processes may take beside those held; '1' where it says what runs; bytes of the node that stay free; how many
--   GPUs, then
--   for each of them   id, bytes that are ours to hold, total, taken by our processes ('': not known)
--   for each field of what runs   number of its node (0: this one, 1: the first of the others), node, gpu, token, bytes
-- Returns {'old'} (a later one was heard) or {'kept', {tokens that no record knows}, {tokens left out for so long}}.
local CHANGES, NODE, HELD, STRANGE, MISSING = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local FIRST_GPU = 12
local first_run = FIRST_GPU + 4 * ARGV[11]

local before = {}
local stored = redis.call('HGETALL', NODE)
for i = 1, #stored, 2 do
  before[stored[i]] = stored[i + 1]
end
if ARGV[5] ~= '' and tonumber(before.number or '') and tonumber(before.number) > tonumber(ARGV[5]) then
  return {'old'}
end

local time = redis.call('TIME')
local watch = redis.call('HMGET', KEYS[7], 'ticked_at_ms', 'listened_ms')
local heard_at_ms = tonumber(watch[2] or 0)
if watch[1] then
  local since_ms = time[1] * 1000 + math.floor(time[2] / 1000) - watch[1]
  heard_at_ms = heard_at_ms + math.max(0, math.min(since_ms, tonumber(ARGV[6])))
end

-- Of a reservation's field; a calibration's '<hold>/hold' is no token of a replica.
local function parse(field) return string.match(field, '^(.*)|([^|]*)$') end

local changed = {}
local function touch(key, gpu)
  if key == NODE then
    changed[gpu] = true
    return
  end
  redis.call('HINCRBY', CHANGES, string.match(key, '[^:]*$'), 1)
  if redis.call('HEXISTS', key, 'version|' .. gpu) == 1 then
    redis.call('HINCRBY', key, 'version|' .. gpu, 1)
    redis.call('HDEL', key, 'sum|' .. gpu)
  end
end

local listed, runs = {}, {}
for i = first_run, #ARGV, 5 do
  listed[ARGV[i + 2] .. '|' .. ARGV[i + 3]] = true
  runs[ARGV[i + 3]] = true
end

-- What was strange and no longer runs holds nothing.
if ARGV[9] == '1' then
  local strange = redis.call('HGETALL', STRANGE)
  for i = 1, #strange, 2 do
    if not listed[strange[i]] then
      local prefix = string.sub(NODE, 1, #NODE - #ARGV[1]) .. strange[i + 1]
      redis.call('HDEL', prefix .. ':held', strange[i])
      redis.call('HDEL', STRANGE, strange[i])
      touch(prefix, (parse(strange[i])))
    end
  end
end

local sums = {}
local held = redis.call('HGETALL', HELD)
for i = 1, #held, 2 do
  local gpu = parse(held[i])
  sums[gpu] = (sums[gpu] or 0) + held[i + 1]
end

-- Never more than there is: where others were promised what it takes, it is told to stop before they start.
local room = {}
for i = FIRST_GPU, first_run - 1, 4 do
  room[ARGV[i]] = tonumber(ARGV[i + 2]) - (sums[ARGV[i]] or 0)
end
for i = first_run, #ARGV, 5 do
  local gpu, field, bytes = ARGV[i + 2], ARGV[i + 2] .. '|' .. ARGV[i + 3], tonumber(ARGV[i + 4])
  local node, held_there = NODE, HELD
  if ARGV[i] ~= '0' then
    node, held_there = KEYS[6 + 2 * ARGV[i]], KEYS[7 + 2 * ARGV[i]]
  end
  if redis.call('HEXISTS', held_there, field) == 0 then
    if node == NODE then
      bytes = math.max(0, math.min(bytes, room[gpu] or bytes))
      room[gpu] = (room[gpu] or 0) - bytes
      sums[gpu] = (sums[gpu] or 0) + bytes
    end
    redis.call('HSET', STRANGE, field, ARGV[i + 1])
    if bytes > 0 then
      redis.call('HSET', held_there, field, string.format('%.0f', bytes))
      touch(node, gpu)
    end
  end
end

local kept = {'engine', ARGV[2], 'gpus', ARGV[3], 'spans_nodes', ARGV[4], 'number', ARGV[5],
  'headroom', ARGV[10], 'heard_at_ms', string.format('%.0f', heard_at_ms)}
for i = FIRST_GPU, first_run - 1, 4 do
  local gpu, limit, own = ARGV[i], tonumber(ARGV[i + 1]), tonumber(ARGV[i + 3])
  local drifted = own and own - (sums[gpu] or 0) or 0
  if drifted > tonumber(ARGV[8]) then
    limit = limit - drifted
  end
  limit = string.format('%.0f', limit)
  local version = before['version|' .. gpu]
  if not version then  -- later than any before Redis was emptied
    version = time[1] .. string.format('%06d', time[2])
  elseif changed[gpu] or before['limit|' .. gpu] ~= limit then
    version = string.format('%.0f', version + 1)
  end
  before['limit|' .. gpu] = nil
  kept[#kept + 1], kept[#kept + 2] = 'limit|' .. gpu, limit
  kept[#kept + 1], kept[#kept + 2] = 'version|' .. gpu, version
  kept[#kept + 1], kept[#kept + 2] = 'sum|' .. gpu, string.format('%.0f', sums[gpu] or 0)
end
for field, _ in pairs(before) do
  local gone = string.match(field, '^limit|(.*)$')
  if gone then
    redis.call('HDEL', NODE, field, 'sum|' .. gone)
    redis.call('HINCRBY', NODE, 'version|' .. gone, 1)
  end
end
redis.call('HSET', NODE, unpack(kept))
if redis.call('HINCRBY', CHANGES, ARGV[1], 1) < 1e12 then  -- later than any before Redis was emptied
  redis.call('HSET', CHANGES, ARGV[1], time[1] .. string.format('%06d', time[2]))
end
redis.call('ZADD', KEYS[6], heard_at_ms, ARGV[1])

local left_out, absent = {}, {}
if ARGV[9] == '1' then
  for i = 1, #held, 2 do
    local _, token = parse(held[i])
    if not runs[token] and not string.find(token, '/', 1, true) then
      absent[token] = true
    end
  end
  local since = redis.call('HGETALL', MISSING)
  for i = 1, #since, 2 do
    if not absent[since[i]] then
      redis.call('HDEL', MISSING, since[i])
    elseif heard_at_ms - since[i + 1] < tonumber(ARGV[7]) then
      absent[since[i]] = nil
    else
      left_out[#left_out + 1] = since[i]
    end
  end
  for token, _ in pairs(absent) do
    redis.call('HSET', MISSING, token, string.format('%.0f', heard_at_ms))
  end
end

local strange_tokens, told = {}, {}
for _, field in ipairs(redis.call('HKEYS', STRANGE)) do
  local _, token = parse(field)
  if not told[token] then
    told[token] = true
    strange_tokens[#strange_tokens + 1] = token
  end
end
return {'kept', strange_tokens, left_out}
