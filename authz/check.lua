-- One check: may this key of this account make one more request, and is there room for its tokens? All or nothing.
--
-- KEYS: quota hash, reservations zset (id -> expiry, unix ms), reservation amounts hash (id -> "<tokens>|<key>"),
--       rate hash of the account, rate hash of the key
-- ARGV: 1 key id            2 account requests/min   3 key requests/min     (-1: no limit)
--       4 account budget    5 key budget             (tokens, -1: no budget)
--       6 reservation id ('': reserve nothing)       7 reservation's life in ms
--       8 input tokens      9 output tokens of one choice (0: the request generates nothing)    10 choices
--      11 used by account  12 used by key            ('' unless answering LOAD)
-- Returns {'OK', output tokens granted to one choice, output tokens left for one choice (-1: no budget),
--          requests limit, requests remaining, ms until one more (-1: no limit), budget, budget remaining (-1: none)}
--      or {'RATE', limit, ms until the request would pass} or {'QUOTA', budget, remaining}
--      or {'LOAD'}: the used counters are not here; call again with them

local RATE_SECONDS = 61 -- buckets of one second; 60 s whole plus the one that has begun, so never over in any 60 s
local PURGE = 32

local time = redis.call('TIME')
local second = tonumber(time[1])
local now = second * 1000 + math.floor(tonumber(time[2]) / 1000)

-- Requests of the last minute: field 'n' is their sum, 'at' the second it is right for, numbers are buckets.
local function window(key)
  local state = redis.call('HMGET', key, 'n', 'at')
  local total, at = tonumber(state[1] or '0'), tonumber(state[2] or '0')
  if total > 0 and at ~= second then
    local all = redis.call('HGETALL', key)
    total = 0
    for index = 1, #all, 2 do
      local bucket = tonumber(all[index])
      if bucket then
        if bucket <= second - RATE_SECONDS then
          redis.call('HDEL', key, all[index])
        else
          total = total + tonumber(all[index + 1])
        end
      end
    end
    redis.call('HSET', key, 'n', total, 'at', second)
  end
  return total
end

-- When so many of the counted requests have left the window, in ms from now.
local function leaving_in(key, count)
  local all = redis.call('HGETALL', key)
  local buckets = {}
  for index = 1, #all, 2 do
    local bucket = tonumber(all[index])
    if bucket then buckets[#buckets + 1] = {bucket, tonumber(all[index + 1])} end
  end
  table.sort(buckets, function(one, other) return one[1] < other[1] end)
  for _, bucket in ipairs(buckets) do
    count = count - bucket[2]
    if count <= 0 then return math.max(1, (bucket[1] + RATE_SECONDS) * 1000 - now) end
  end
  return RATE_SECONDS * 1000
end

local function count(key)
  redis.call('HINCRBY', key, second, 1)
  redis.call('HINCRBY', key, 'n', 1)
  redis.call('HSET', key, 'at', second)
  redis.call('EXPIRE', key, RATE_SECONDS + 1)
end

local function field(name, key)
  if key == '' then return name end
  return name .. ':' .. key
end

local function lower(key, amount)
  local name = field('reserved', key)
  if redis.call('HINCRBY', KEYS[1], name, '-' .. amount) < 0 then redis.call('HSET', KEYS[1], name, 0) end
end

-- Requests.
local limits = {{KEYS[4], tonumber(ARGV[2])}, {KEYS[5], tonumber(ARGV[3])}}
local limit, remaining, reset, tight = -1, -1, -1, nil
for _, pair in ipairs(limits) do
  if pair[2] >= 0 then
    local total = window(pair[1])
    if total + 1 > pair[2] then
      return {'RATE', pair[2], pair[2] == 0 and RATE_SECONDS * 1000 or leaving_in(pair[1], total + 1 - pair[2])}
    end
    if remaining < 0 or pair[2] - total - 1 < remaining then
      limit, remaining, tight = pair[2], pair[2] - total - 1, pair[1]
    end
  end
end

-- Tokens: first what was promised to requests that never ended.
if redis.call('EXISTS', KEYS[2]) == 1 then
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, PURGE)) do
    local amount = redis.call('HGET', KEYS[3], id)
    if amount then
      local tokens, key = string.match(amount, '^(%d+)|(.*)$')
      redis.call('HDEL', KEYS[3], id)
      lower('', tokens)
      if key ~= '' then lower(key, tokens) end
    end
    redis.call('ZREM', KEYS[2], id)
  end
end

local input, output, choices = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])
local budgets = {{'', tonumber(ARGV[4]), ARGV[11]}, {ARGV[1], tonumber(ARGV[5]), ARGV[12]}}
local budget, left = -1, -1
for _, entry in ipairs(budgets) do
  if entry[2] >= 0 then
    local used = redis.call('HGET', KEYS[1], field('used', entry[1]))
    if not used then
      if entry[3] == '' then return {'LOAD'} end
      redis.call('HSET', KEYS[1], field('used', entry[1]), entry[3])
      used = entry[3]
    end
    local reserved = tonumber(redis.call('HGET', KEYS[1], field('reserved', entry[1])) or '0')
    local rest = math.max(0, entry[2] - tonumber(used) - reserved)
    if left < 0 or rest < left then budget, left = entry[2], rest end
  end
end

local rest = -1
if left >= 0 and ARGV[6] ~= '' then
  rest = math.floor((left - input) / choices)
  if output > 0 then
    if rest < 1 then return {'QUOTA', budget, left} end
    output = math.min(output, rest)
  elseif left < input then
    return {'QUOTA', budget, left}
  end
end

-- Everything passes: write it down.
for _, pair in ipairs(limits) do
  if pair[2] >= 0 then count(pair[1]) end
end
if tight then reset = leaving_in(tight, 1) end
if ARGV[6] ~= '' then
  local tokens = input + output * choices
  redis.call('HINCRBY', KEYS[1], 'reserved', tokens)
  redis.call('HINCRBY', KEYS[1], field('reserved', ARGV[1]), tokens)
  redis.call('ZADD', KEYS[2], now + tonumber(ARGV[7]), ARGV[6])
  redis.call('HSET', KEYS[3], ARGV[6], tokens .. '|' .. ARGV[1])
  if left >= 0 then left = math.max(0, left - tokens) end
end
return {'OK', output, rest, limit, remaining, reset, budget, left}
