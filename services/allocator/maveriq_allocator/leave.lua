-- Takes a deployment out of the line, with its claim, unless its record changed meanwhile.
-- KEYS: the line, the claim, the deployment's hash.  ARGV: deployment, version of its record that does not wait.
if (redis.call('HGET', KEYS[3], 'version') or '0') ~= ARGV[2] then
  return 0
end
if redis.call('HGET', KEYS[2], 'deployment') == ARGV[1] then
  redis.call('DEL', KEYS[2])
end
return redis.call('ZREM', KEYS[1], ARGV[1])
