-- Changes one deployment's record and the bytes that it holds, together or not at all.
-- KEYS: the deployment's hash, its tenant's, changes, for each node touched its hash and its `held` hash, and where
--   strange bytes are taken over the `strange` hash of the node that reported them.
-- ARGV: the change, the new record, and the plan to keep ('': as it is). The change is one string, for a client pays for
--   each argument; its parts each end in a unit separator (byte 31):
--   version that it was made from ('0': there was no record); seconds after which to forget the record, which then has
--   ended ('': keep it); the deployment; bytes and GPUs that it then holds; bytes and GPUs that its tenant may hold
--   ('': any number); '1': take over what is held already as strange ('': hold anew); then for each node touched
--   how many fields are given back, and how many are held;
--   for each given back     gpu, field of `held`
--   for each to hold        gpu, field, bytes, the GPU's version that the choice was made from ('': whichever)
-- Returns {'done'}, {'stale'} (the record changed meanwhile), {'moved', gpu} (not the version that was chosen from),
--   {'taken', gpu} (its bytes are not free, or no longer strange; '': the node would keep too little) or {'over', what, held by the others, wanted}.
-- Each call of Redis from here costs as much as all else that is done for a GPU, so a node is read and written at once.
local deployment, tenant = KEYS[1], KEYS[2]
local CHANGE = {}
for part in string.gmatch(ARGV[1], '([^\31]*)\31') do
  CHANGE[#CHANGE + 1] = part
end
local expected, forget_s, id, wanted_bytes, wanted_gpus = CHANGE[1], CHANGE[2], CHANGE[3], CHANGE[4], CHANGE[5]
local quota_bytes, quota_gpus, adopts = tonumber(CHANGE[6]), tonumber(CHANGE[7]), CHANGE[8] == '1'
local FIRST = 9

if (redis.call('HGET', deployment, 'version') or '0') ~= expected then
  return {'stale'}
end

-- The sums of what is held on each GPU of a node.
local function derived(held_key)
  local sums = {}
  local held = redis.call('HGETALL', held_key)
  for i = 1, #held, 2 do
    local gpu = string.match(held[i], '^(.*)|')
    sums[gpu] = (sums[gpu] or 0) + held[i + 1]
  end
  return sums
end

-- A node's GPUs that are touched, each with its limit, version and sum, which is derived anew where nobody kept it; and
-- what the node is to keep free.
local function read(node)
  local fields = {'headroom'}
  for i, gpu in ipairs(node.names) do
    fields[3 * i - 1], fields[3 * i], fields[3 * i + 1] = 'limit|' .. gpu, 'version|' .. gpu, 'sum|' .. gpu
  end
  local kept = redis.call('HMGET', node.key, unpack(fields))
  node.headroom = tonumber(kept[1] or 0)
  local sums
  for i, gpu in ipairs(node.names) do
    local limit, version, sum = kept[3 * i - 1], kept[3 * i], kept[3 * i + 1]
    if not sum then
      sums = sums or derived(node.held)
      sum = sums[gpu] or 0
    end
    node.gpus[gpu] = {limit = tonumber(limit or -1), version = version, sum = tonumber(sum)}
  end
end

-- What the change says of the next node, and where it goes on.
local function parse(number, i)
  local node = {key = KEYS[2 * number + 2], held = KEYS[2 * number + 3], names = {}, gpus = {}, back = {}, back_of = {}, taken = {}}
  local num_back, num_taken = tonumber(CHANGE[i]), tonumber(CHANGE[i + 1])
  local function touch(gpu)
    if not node.gpus[gpu] then
      node.gpus[gpu] = true
      node.names[#node.names + 1] = gpu
    end
  end
  i = i + 2
  for _ = 1, num_back do
    touch(CHANGE[i])
    node.back_of[#node.back_of + 1], node.back[#node.back + 1] = CHANGE[i], CHANGE[i + 1]
    i = i + 2
  end
  for _ = 1, num_taken do
    touch(CHANGE[i])
    node.taken[#node.taken + 1] = {gpu = CHANGE[i], field = CHANGE[i + 1], bytes = CHANGE[i + 2], seen = CHANGE[i + 3]}
    i = i + 4
  end
  return node, i
end

local nodes, next_at = {}, FIRST
while next_at <= #CHANGE do
  local node
  node, next_at = parse(#nodes + 1, next_at)
  nodes[#nodes + 1] = node
  read(node)
  if #node.back > 0 then
    for i, bytes in ipairs(redis.call('HMGET', node.held, unpack(node.back))) do
      local gpu = node.gpus[node.back_of[i]]
      gpu.sum = gpu.sum - (bytes or 0)
    end
  end
  for _, hold in ipairs(node.taken) do
    local gpu = node.gpus[hold.gpu]
    if adopts then
      if redis.call('HGET', node.held, hold.field) ~= hold.bytes then
        return {'taken', hold.gpu}
      end
    else
      if hold.seen ~= '' and gpu.version ~= hold.seen then
        return {'moved', hold.gpu}
      end
      gpu.sum = gpu.sum + hold.bytes
      if gpu.sum > gpu.limit then
        return {'taken', hold.gpu}
      end
    end
  end
  if node.headroom > 0 and #node.taken > 0 and not adopts then
    local sums, free = derived(node.held), 0
    local facts = redis.call('HGETALL', node.key)
    for i = 1, #facts, 2 do
      local name = string.match(facts[i], '^limit|(.*)$')
      if name then
        local gpu = node.gpus[name]
        free = free + math.max(0, facts[i + 1] - (gpu and gpu.sum or sums[name] or 0))
      end
    end
    if free < node.headroom then
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

for _, node in ipairs(nodes) do
  if #node.back > 0 then
    redis.call('HDEL', node.held, unpack(node.back))
  end
  local fields = {}
  for _, hold in ipairs(node.taken) do
    fields[#fields + 1] = hold.field
    if not adopts then
      fields[#fields + 1] = hold.bytes
    end
  end
  if adopts and #fields > 0 then
    redis.call('HDEL', KEYS[#KEYS], unpack(fields))
  elseif #fields > 0 then
    redis.call('HSET', node.held, unpack(fields))
  end
  redis.call('HINCRBY', KEYS[3], string.match(node.key, '[^:]*$'), 1)
  local kept = {}
  for name, gpu in pairs(node.gpus) do
    if gpu.version then
      kept[#kept + 1], kept[#kept + 2] = 'version|' .. name, string.format('%.0f', gpu.version + 1)
      kept[#kept + 1], kept[#kept + 2] = 'sum|' .. name, string.format('%.0f', gpu.sum)
    end
  end
  if #kept > 0 then
    redis.call('HSET', node.key, unpack(kept))
  end
end
if wanted_bytes == '0' then
  redis.call('HDEL', tenant, id)
else
  redis.call('HSET', tenant, id, wanted_bytes .. ' ' .. wanted_gpus)
end
local version = string.format('%d', tonumber(expected) + 1)
if forget_s == '' and ARGV[3] ~= '' then
  redis.call('HSET', deployment, 'version', version, 'record', ARGV[2], 'plan', ARGV[3])
else
  redis.call('HSET', deployment, 'version', version, 'record', ARGV[2])
end
if forget_s ~= '' then
  redis.call('HDEL', deployment, 'plan')
  redis.call('EXPIRE', deployment, forget_s)
end
return {'done'}
