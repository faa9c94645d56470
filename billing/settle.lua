-- Settles a part of one account's batch: raises what was used, and gives back what was reserved. (common/giving_back.lua
-- goes in front.) Idempotent and free of order: totals only rise, and a reservation can be given back once.
--
-- KEYS: 1 reserved hash, 2 reservations zset, 3 reservation amounts hash, then used hashes
-- ARGV: for each used hash the number of its totals n and n pairs of (field, total); then pairs of (reservation id,
--       tokens that were used, or -1)
-- Returns how many reservations it gave back.

local position = 1
for number = 4, #KEYS do
  local count = tonumber(ARGV[position])
  local fields, changed = {}, {}
  for index = 1, count do fields[index] = ARGV[position + 2 * index - 1] end
  local found = redis.call('HMGET', KEYS[number], unpack(fields))
  for index = 1, count do
    local total = ARGV[position + 2 * index]
    -- One that is not there is not needed, or will be read from the ledger, which has it by now: see settlement.py.
    if found[index] and tonumber(found[index]) < tonumber(total) then
      changed[#changed + 1], changed[#changed + 2] = fields[index], total
    end
  end
  if #changed > 0 then redis.call('HSET', KEYS[number], unpack(changed)) end
  position = position + 1 + 2 * count
end

local settled = 0
for index = position, #ARGV, 2 do settled = settled + give_back(ARGV[index], tonumber(ARGV[index + 1])) end
return settled
