-- Keeps a node's report, with the time by this server's clock.
-- KEYS: nodes, the node's hash.
-- ARGV: node, engine, gpus as JSON, then for each GPU the field of its limit and the bytes that are ours to hold.
redis.call('SADD', KEYS[1], ARGV[1])
redis.call('DEL', KEYS[2])
redis.call('HSET', KEYS[2], 'engine', ARGV[2], 'gpus', ARGV[3], 'reported_at_s', redis.call('TIME')[1],
  unpack(ARGV, 4))
