-- Changes one deployment's record and the bytes that it holds, together or not at all.
-- KEYS: the deployment's hash, then for each node touched its hash and its `held` hash.
-- ARGV: a JSON object, the new record, and the plan to keep ('' leaves it as it is). The object:
--   expected   version that the change was made from ('0': there was no record)
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

-- What others hold of a node's GPUs, apart from what this change gives back.
local function held_bytes(node)
  local taken = {}
  local held = redis.call('HGETALL', KEYS[2 * node + 1])
  for i = 1, #held, 2 do
    if not dropped[node .. '|' .. held[i]] then
      local gpu = string.match(held[i], '^(.*)|[^|]*$')
      taken[gpu] = (taken[gpu] or 0) + held[i + 1]
    end
  end
  return taken
end

local taken = {}
for _, hold in ipairs(change.holds) do
  local node, gpu, bytes = hold[1], hold[2], tonumber(hold[4])
  taken[node] = taken[node] or held_bytes(node)
  local sum = (taken[node][gpu] or 0) + bytes
  if sum > tonumber(redis.call('HGET', KEYS[2 * node], 'limit|' .. gpu) or -1) then
    return {'taken', gpu}
  end
  taken[node][gpu] = sum
end

for _, release in ipairs(change.releases) do
  redis.call('HDEL', KEYS[2 * release[1] + 1], release[2])
end
for _, hold in ipairs(change.holds) do
  redis.call('HSET', KEYS[2 * hold[1] + 1], hold[3], hold[4])
end
redis.call('HSET', KEYS[1], 'version', string.format('%d', tonumber(change.expected) + 1), 'record', ARGV[2])
if change.ends then
  redis.call('HDEL', KEYS[1], 'plan')
  redis.call('EXPIRE', KEYS[1], change.forget_s)
elseif ARGV[3] ~= '' then
  redis.call('HSET', KEYS[1], 'plan', ARGV[3])
end
return {'done'}
