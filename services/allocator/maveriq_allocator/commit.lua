-- Changes one deployment's record and the bytes that it holds, together or not at all.
-- KEYS: the deployment's hash, its tenant's, for each node touched its hash and its `held` hash, and where strange
--   bytes are taken over the `strange` hash of the node that reported them.
-- ARGV: the change, the new record, and the plan to keep ('': as it is). The change is one string, for a client pays for
--   each argument; its parts each end in a unit separator (byte 31):
--   version that it was made from ('0': there was no record); seconds after which to forget the record, which then has
--   ended ('': keep it); the deployment; bytes and GPUs that it then holds; bytes and GPUs that its tenant may hold
--   ('': any number); '1': take over what is held already as strange ('': hold anew); how many fields are given back,
--   then for each of them   node (counts from 1), gpu, field of `held`
--   for each to hold        node, gpu, field, bytes, the GPU's version that the choice was made from ('': whichever)
-- Returns {'done'}, {'stale'} (the record changed meanwhile), {'moved', gpu} (not the version that was chosen from),
--   {'taken', gpu} (its bytes are not free, or no longer strange; '': the node would keep too little) or {'over', what, held by the others, wanted}.
local deployment, tenant = KEYS[1], KEYS[2]
local CHANGE = {}
for part in string.gmatch(ARGV[1], '([^\31]*)\31') do
  CHANGE[#CHANGE + 1] = part
end
local expected, forget_s, id, wanted_bytes, wanted_gpus = CHANGE[1], CHANGE[2], CHANGE[3], CHANGE[4], CHANGE[5]
local quota_bytes, quota_gpus, adopts = tonumber(CHANGE[6]), tonumber(CHANGE[7]), CHANGE[8] == '1'
local FIRST = 10
local first_hold = FIRST + 3 * CHANGE[9]

if (redis.call('HGET', deployment, 'version') or '0') ~= expected then
  return {'stale'}
end

local function node_key(number) return KEYS[2 * number + 1] end
local function held_key(number) return KEYS[2 * number + 2] end

-- A GPU as it is, to be changed: its limit, version and the sum of what is held on it, which is derived anew where nobody kept it.
local gpus = {}
local function gpu_of(number, gpu)
  local key = number .. '|' .. gpu
  if not gpus[key] then
    local kept = redis.call('HMGET', node_key(number), 'limit|' .. gpu, 'version|' .. gpu, 'sum|' .. gpu)
    local sum = tonumber(kept[3] or '')
    if not sum then
      sum = 0
      local held = redis.call('HGETALL', held_key(number))
      for i = 1, #held, 2 do
        if string.match(held[i], '^(.*)|') == gpu then
          sum = sum + held[i + 1]
        end
      end
    end
    gpus[key] = {node = node_key(number), gpu = gpu, limit = tonumber(kept[1] or -1), version = kept[2], sum = sum}
  end
  return gpus[key]
end

for i = FIRST, first_hold - 1, 3 do
  local bytes = redis.call('HGET', held_key(CHANGE[i]), CHANGE[i + 2])
  if bytes then
    local at = gpu_of(CHANGE[i], CHANGE[i + 1])
    at.sum = at.sum - bytes
  end
end

for i = first_hold, #CHANGE, 5 do
  local number, gpu, bytes, seen = CHANGE[i], CHANGE[i + 1], CHANGE[i + 3], CHANGE[i + 4]
  if adopts then
    if redis.call('HGET', held_key(number), CHANGE[i + 2]) ~= bytes then
      return {'taken', gpu}
    end
  else
    local at = gpu_of(number, gpu)
    if seen ~= '' and at.version ~= seen then
      return {'moved', gpu}
    end
    at.sum = at.sum + bytes
    if at.sum > at.limit then
      return {'taken', gpu}
    end
  end
end

-- What the nodes that bytes are taken of keep free on all their GPUs together.
local looked_at = {}
for i = first_hold, #CHANGE, 5 do
  local number = CHANGE[i]
  local headroom = tonumber(not adopts and not looked_at[number] and redis.call('HGET', node_key(number), 'headroom') or 0)
  looked_at[number] = true
  if headroom > 0 then
    local sums, free = {}, 0
    local held = redis.call('HGETALL', held_key(number))
    for j = 1, #held, 2 do
      local gpu = string.match(held[j], '^(.*)|')
      sums[gpu] = (sums[gpu] or 0) + held[j + 1]
    end
    local facts = redis.call('HGETALL', node_key(number))
    for j = 1, #facts, 2 do
      local gpu = string.match(facts[j], '^limit|(.*)$')
      if gpu then
        local at = gpus[number .. '|' .. gpu]
        free = free + math.max(0, facts[j + 1] - (at and at.sum or sums[gpu] or 0))
      end
    end
    if free < headroom then
      return {'taken', ''}
    end
  end
end

if (quota_bytes or quota_gpus) and not adopts then
  local bytes, gpus, own_bytes, own_gpus = 0, 0, 0, 0
  local used = redis.call('HGETALL', tenant)
  for i = 1, #used, 2 do
    local b, g = string.match(used[i + 1], '(%d+) (%d+)')
    if used[i] == id then
      own_bytes, own_gpus = tonumber(b), tonumber(g)
    else
      bytes, gpus = bytes + b, gpus + g
    end
  end
  if quota_gpus and tonumber(wanted_gpus) > own_gpus and gpus + wanted_gpus > quota_gpus then
    return {'over', 'gpus', string.format('%.0f', gpus), wanted_gpus}
  end
  if quota_bytes and tonumber(wanted_bytes) > own_bytes and bytes + wanted_bytes > quota_bytes then
    return {'over', 'bytes', string.format('%.0f', bytes), wanted_bytes}
  end
end

for i = FIRST, first_hold - 1, 3 do
  redis.call('HDEL', held_key(CHANGE[i]), CHANGE[i + 2])
end
for i = first_hold, #CHANGE, 5 do
  if adopts then
    redis.call('HDEL', KEYS[#KEYS], CHANGE[i + 2])
  else
    redis.call('HSET', held_key(CHANGE[i]), CHANGE[i + 2], CHANGE[i + 3])
  end
end
for _, at in pairs(gpus) do
  if at.version then
    redis.call('HSET', at.node, 'version|' .. at.gpu, string.format('%.0f', at.version + 1),
      'sum|' .. at.gpu, string.format('%.0f', at.sum))
  end
end
if wanted_bytes == '0' then
  redis.call('HDEL', tenant, id)
else
  redis.call('HSET', tenant, id, wanted_bytes .. ' ' .. wanted_gpus)
end
redis.call('HSET', deployment, 'version', string.format('%d', tonumber(expected) + 1), 'record', ARGV[2])
if forget_s ~= '' then
  redis.call('HDEL', deployment, 'plan')
  redis.call('EXPIRE', deployment, forget_s)
elseif ARGV[3] ~= '' then
  redis.call('HSET', deployment, 'plan', ARGV[3])
end
return {'done'}
