-- Ends a survey of the line where no memory came back since it began.
-- KEYS: the news, the survey.  ARGV: the news that it has seen.
-- Returns the news to survey again for; nothing where it ended.
local news = redis.call('GET', KEYS[1]) or '0'
if news == ARGV[1] then
  redis.call('DEL', KEYS[2])
  return false
end
return news
