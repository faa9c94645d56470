-- Settles a part of one account's batch: raises what was used, and gives back what was reserved. Idempotent and free of
-- order: totals only rise, and a reservation can be given back once.
--
-- KEYS: quota hash, reservations zset (id -> expiry), reservation amounts hash (id -> "<tokens>|<key>")
-- ARGV: number of totals n, then n pairs of (key, lifetime tokens; the key '' is the account), then reservation ids
-- Returns how many reservations it gave back.

local function field(name, key)
  if key == '' then return name end
  return name .. ':' .. key
end

local function lower(key, amount)
  local name = field('reserved', key)
  if redis.call('HINCRBY', KEYS[1], name, '-' .. amount) < 0 then redis.call('HSET', KEYS[1], name, 0) end
end

local position = 1
for _ = 1, tonumber(ARGV[1]) do
  local name, total = field('used', ARGV[position + 1]), ARGV[position + 2]
  position = position + 2
  if tonumber(redis.call('HGET', KEYS[1], name) or '-1') < tonumber(total) then
    redis.call('HSET', KEYS[1], name, total)
  end
end

local settled = 0
for index = position + 1, #ARGV do
  local amount = redis.call('HGET', KEYS[3], ARGV[index])
  if amount then
    local tokens, key = string.match(amount, '^(%d+)|(.*)$')
    redis.call('HDEL', KEYS[3], ARGV[index])
    redis.call('ZREM', KEYS[2], ARGV[index])
    lower('', tokens)
    if key ~= '' then lower(key, tokens) end
    settled = settled + 1
  end
end
return settled
