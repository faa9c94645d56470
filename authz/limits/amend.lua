-- What changes an account's counters beside checks and settlements. (storage/giving_back.lua goes in front.) Idempotent,
-- but for windows.
--
-- KEYS: 1 reserved hash, 2 reservations zset, 3 reservation amounts hash
-- ARGV: 1 since when Valkey holds what it holds, as the caller knows it ('': whatever is there)
--       2 msgpack: a list of
--           {'hold', reservation id, unix ms by which its request must have ended, its amounts}
--           {'count', rate hash, unix second, amount}
--           {'give back', reservation id, tokens used or -1}
--           {'free', reservation id}

local WINDOW = 61

if ARGV[1] ~= '' and redis.call('HGET', KEYS[1], 'since') ~= ARGV[1] then
  redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])
  redis.call('HSET', KEYS[1], 'since', ARGV[1])
end

local second = tonumber(redis.call('TIME')[1])
for _, change in ipairs(cmsgpack.unpack(ARGV[2])) do
  local verb, name = change[1], change[2]
  if verb == 'hold' then
    if redis.call('HSETNX', KEYS[3], name, cmsgpack.pack(change[4])) == 1 then
      redis.call('ZADD', KEYS[2], change[3], name)
      local amounts = change[4][3]
      for index = 1, #amounts, 2 do redis.call('HINCRBY', KEYS[1], amounts[index], amounts[index + 1]) end
    end
  elseif verb == 'count' then
    if change[3] > second - WINDOW then
      redis.call('HINCRBY', name, change[3], change[4])
      redis.call('HINCRBY', name, 'n', change[4])
      redis.call('HSET', name, 'at', 0) -- the next check adds the buckets up
      redis.call('EXPIRE', name, WINDOW + 1)
    end
  elseif verb == 'give back' then
    give_back(name, change[3])
  elseif verb == 'free' then
    free_slot(name)
  end
end
return 1
