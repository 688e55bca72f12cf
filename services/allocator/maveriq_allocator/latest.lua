-- Whether a copy of a record goes on: of a deployment's copies the one of the latest round, and of two of one round the
-- one that came first.
-- KEYS: the deployment's hash.  ARGV: round, mark.
local round, mark = string.match(redis.call('HGET', KEYS[1], 'copy') or '', '^(%d+) (.*)$')
if round and (tonumber(round) > tonumber(ARGV[1]) or round == ARGV[1] and mark ~= ARGV[2]) then
  return 0
end
redis.call('HSET', KEYS[1], 'copy', ARGV[1] .. ' ' .. ARGV[2])
return 1
