-- Changes one deployment's record and the bytes that it holds, together or not at all.
-- KEYS: the deployment's hash, then for each node touched its hash and its `held` hash.
-- ARGV: one JSON object:
--   expected   version that the change was made from ('0': there was no record)
--   record     the new record
--   plan       the plan to keep; '' leaves it as it is
--   ends       true: drop the plan, and forget the record after forget_s
--   releases   [{node, field}]: fields of `held` to drop; node counts from 1
--   holds      [{node, gpu, field, bytes}]: bytes to hold, as strings
-- Returns {'done'}, {'stale'} (the record changed meanwhile) or {'taken', gpu} (its bytes are no longer free).
local change = cjson.decode(ARGV[1])

if (redis.call('HGET', KEYS[1], 'version') or '0') ~= change.expected then
  return {'stale'}
end

local dropped = {}
for _, release in ipairs(change.releases) do
  dropped[release[1] .. '|' .. release[2]] = true
end

local function free_bytes(node)
  local free = {}
  for _, gpu in ipairs(cjson.decode(redis.call('HGET', KEYS[2 * node], 'gpus') or '[]')) do
    free[gpu.id] = gpu.total_bytes - gpu.foreign_bytes
  end
  local held = redis.call('HGETALL', KEYS[2 * node + 1])
  for i = 1, #held, 2 do
    local gpu = string.match(held[i], '^(.*)|[^|]*$')
    if free[gpu] and not dropped[node .. '|' .. held[i]] then
      free[gpu] = free[gpu] - tonumber(held[i + 1])
    end
  end
  return free
end

local free = {}
for _, hold in ipairs(change.holds) do
  local node, gpu, bytes = hold[1], hold[2], tonumber(hold[4])
  free[node] = free[node] or free_bytes(node)
  if not free[node][gpu] or free[node][gpu] < bytes then
    return {'taken', gpu}
  end
  free[node][gpu] = free[node][gpu] - bytes
end

for _, release in ipairs(change.releases) do
  redis.call('HDEL', KEYS[2 * release[1] + 1], release[2])
end
for _, hold in ipairs(change.holds) do
  redis.call('HSET', KEYS[2 * hold[1] + 1], hold[3], hold[4])
end
redis.call('HSET', KEYS[1], 'version', string.format('%d', tonumber(change.expected) + 1), 'record', change.record)
if change.ends then
  redis.call('HDEL', KEYS[1], 'plan')
  redis.call('EXPIRE', KEYS[1], change.forget_s)
elseif change.plan ~= '' then
  redis.call('HSET', KEYS[1], 'plan', change.plan)
end
return {'done'}
