-- Settles a part of one account's batch: raises what was used, and gives back what was reserved. (storage/giving_back.lua
-- goes in front.) Idempotent and free of order: totals only rise, and a reservation can be given back once.
--
-- KEYS: 1 reserved hash, 2 reservations zset, 3 reservation amounts hash, then used hashes
-- ARGV: 1 msgpack: for each used hash [field, total as text, ...]; 2 msgpack: [reservation id, tokens that were used or
--       -1, ...]. Packed, because a client takes longer over ten thousand arguments than over all the rest of a batch.
-- Returns how many reservations it gave back.

for number, totals in ipairs(cmsgpack.unpack(ARGV[1])) do
  local key, fields, changed = KEYS[number + 3], {}, {}
  for index = 1, #totals, 2 do fields[#fields + 1] = totals[index] end
  local found = redis.call('HMGET', key, unpack(fields))
  for index, field in ipairs(fields) do
    local total = totals[2 * index]
    -- One that is not there is not needed, or will be read from the ledger, which has it by now: see settlement.py.
    if found[index] and tonumber(found[index]) < tonumber(total) then
      changed[#changed + 1], changed[#changed + 2] = field, total
    end
  end
  if #changed > 0 then redis.call('HSET', key, unpack(changed)) end
end

local settled = 0
local reservations = cmsgpack.unpack(ARGV[2])
for index = 1, #reservations, 2 do settled = settled + give_back(reservations[index], reservations[index + 1]) end
return settled
