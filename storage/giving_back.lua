-- Giving a reservation back: what authz's and billing's scripts must do alike. Each script that uses it has this text in
-- front, and the account's reserved hash, reservations zset and reservation amounts hash as KEYS[1], KEYS[2], KEYS[3].
--
-- reservation amounts: id -> msgpack of [unix second of the admission, tokens reserved, [field of the reserved hash,
-- amount, ...], [rate hash in which the tokens were counted, ...]]. Every key lies in the account's own hash slot.

local function lower(field, amount)
  if redis.call('HINCRBY', KEYS[1], field, -amount) <= 0 then redis.call('HDEL', KEYS[1], field) end
end

-- Gives back what is held for a request, once. `used` (tokens; -1: not known) corrects the tokens of its minute downward.
local function give_back(id, used)
  local packed = redis.call('HGET', KEYS[3], id)
  redis.call('ZREM', KEYS[2], id)
  if not packed then return 0 end
  redis.call('HDEL', KEYS[3], id)
  local kept = cmsgpack.unpack(packed)
  local second, amounts = kept[1], kept[3]
  for index = 1, #amounts, 2 do lower(amounts[index], amounts[index + 1]) end
  if used >= 0 and used < kept[2] then
    for _, key in ipairs(kept[4]) do
      local bucket = tonumber(redis.call('HGET', key, second) or '0')
      local unused = math.min(bucket, kept[2] - used)
      if unused > 0 then
        redis.call('HINCRBY', key, second, -unused)
        redis.call('HINCRBY', key, 'n', -unused)
      end
    end
  end
  return 1
end

-- Frees a request's place among those that may run at once, once; everything else stays reserved.
local function free_slot(id)
  local packed = redis.call('HGET', KEYS[3], id)
  if not packed then return 0 end
  local kept = cmsgpack.unpack(packed)
  local rest, freed = {}, 0
  for index = 1, #kept[3], 2 do
    local field, amount = kept[3][index], kept[3][index + 1]
    if string.sub(field, 1, 2) == 'n|' then
      lower(field, amount)
      freed = 1
    else
      rest[#rest + 1], rest[#rest + 2] = field, amount
    end
  end
  if freed == 1 then redis.call('HSET', KEYS[3], id, cmsgpack.pack({kept[1], kept[2], rest, kept[4]})) end
  return freed
end
