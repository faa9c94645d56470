-- One check: does every rule that concerns this request have room for it? All or nothing. (storage/giving_back.lua goes
-- in front.)
--
-- KEYS: 1 reserved hash, 2 reservations zset (id -> unix ms by which the request must have ended), 3 reservation amounts
--       hash, then the used and the rate hashes that the plan names by number
-- ARGV: 1 the plan (authz/limits/plans.py), msgpack: {rates, reserved, used, rules, price}
--           rates     {KEYS number, 1 if it counts tokens or 0 if requests, ...}
--           reserved  {field, its unit: 0 tokens, 1 money, 2 requests at once, ...}
--           used      {{KEYS number, seconds to live or 0, field, ...}, ...}
--           rules     {kind, number in rates or reserved, number in used or 0, amount, 1 if in shadow or 0, ...}
--                     kind: 0 requests/minute, 1 tokens/minute, 2 token budget, 3 money budget, 4 requests at once
--           price     {of an input token, of an output token, of a request} in millionths of a millionth
--       2 since when Valkey holds what it holds, as the caller knows it       3 '1': the caller made sure of that
--       4 reservation id ('': reserve nothing)    5 ms the request may take   6 ms after that until it is given up
--       7 input tokens    8 output tokens of one choice (0: it generates nothing)    9 choices
--      10 used totals from the ledger, msgpack in the order of `used`, -1 where none is given; '' unless answering LOAD
-- Returns {'OK', output tokens granted to one choice, number of the rule that leaves it the least (0: none),
--          unix ms, {remaining of each rule}, {ms until its window is empty, or -1, of each rule},
--          {number of a rule in shadow that would have refused, ms until the request would have passed or -1, ...}}
--      or {'NO', {remaining}, {ms}, {number of a refusing rule, ms until the request may pass or -1: the budget is
--          spent, ...}}
--      or {'LOAD', number in used, ...}: these are not here; read them now and call again
--      or {'FRESH'}: the account is not known to this Valkey

local WINDOW = 61 -- buckets of one second; 60 s whole plus the one that has begun, so never over in any 60 s
local PURGE = 32
local END_WAIT = 1000 -- ms: a request that runs may end at any moment, and leave its place or a part of a budget

local plan = cmsgpack.unpack(ARGV[1])
local rates, reserved, useds, rules, price = plan[1], plan[2], plan[3], plan[4], plan[5]
local id, input, output, choices = ARGV[4], tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
local time = redis.call('TIME')
local second = tonumber(time[1])
local now = second * 1000 + math.floor(tonumber(time[2]) / 1000)

-- First what was promised to requests that never ended: nobody else found them.
for _, late in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now - tonumber(ARGV[6]), 'LIMIT', 0, PURGE)) do
  give_back(late, -1)
end

local fields = {'since'}
for index = 1, #reserved, 2 do fields[#fields + 1] = reserved[index] end
local held = redis.call('HMGET', KEYS[1], unpack(fields))
if held[1] ~= ARGV[2] then
  if ARGV[3] ~= '1' then return {'FRESH'} end
  redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])
  redis.call('HSET', KEYS[1], 'since', ARGV[2])
  for index = 2, #fields do held[index] = '0' end
end

-- What the ledger has. A field is marked (-1) before it is read there: see billing/reservations/settlement.py.
local used, missing = {}, {'LOAD'}
local loaded = ARGV[10] ~= '' and cmsgpack.unpack(ARGV[10]) or {}
for _, group in ipairs(useds) do
  local key = KEYS[group[1]]
  local found = redis.call('HMGET', key, unpack(group, 3))
  for index = 1, #found do
    local number = #used + 1
    local value, total = tonumber(found[index] or nil), loaded[number] or -1
    if value and total > value then
      redis.call('HSET', key, group[index + 2], total)
      value = total
    end
    if not value then
      redis.call('HSET', key, group[index + 2], -1)
      if group[2] > 0 then redis.call('EXPIRE', key, group[2]) end
    end
    if not value or value < 0 then missing[#missing + 1] = number end
    used[number] = value or -1
  end
end
if #missing > 1 then return missing end

-- Windows: field 'n' is the sum, right for the second 'at'; 'last' is the newest bucket's second; numbers are buckets.
local windows = {}
for index = 1, #rates, 2 do
  local key = KEYS[rates[index]]
  local state = redis.call('HMGET', key, 'n', 'at', 'last', second)
  local total, newest = tonumber(state[1] or '0'), tonumber(state[3] or '0')
  local moved = state[2] ~= time[1]
  if total > 0 and moved then
    local all = redis.call('HGETALL', key)
    total, newest = 0, 0
    for place = 1, #all, 2 do
      local bucket = tonumber(all[place])
      if bucket then
        local count = tonumber(all[place + 1])
        if bucket <= second - WINDOW or count <= 0 then
          redis.call('HDEL', key, all[place])
        else
          total = total + count
          if bucket > newest then newest = bucket end
        end
      end
    end
    redis.call('HSET', key, 'n', total, 'at', second, 'last', newest)
    redis.call('EXPIRE', key, WINDOW + 1)
    moved = false
  end
  if total <= 0 then total, newest = 0, 0 end
  windows[#windows + 1] =
    {key = key, total = total, newest = newest, bucket = tonumber(state[4] or '0'), moved = moved}
end

-- When the newest bucket leaves the window, in ms from now: everything is free again then.
local function empty_in(newest)
  return math.max(1, (newest + WINDOW) * 1000 - now)
end

-- When so much of what is counted has left the window, in ms from now.
local function leaving_in(window, count)
  if window.total < count then return WINDOW * 1000 end
  local all = redis.call('HGETALL', window.key)
  local buckets = {}
  for index = 1, #all, 2 do
    local bucket = tonumber(all[index])
    if bucket then buckets[#buckets + 1] = {bucket, tonumber(all[index + 1])} end
  end
  table.sort(buckets, function(one, other) return one[1] < other[1] end)
  for _, bucket in ipairs(buckets) do
    count = count - bucket[2]
    if count <= 0 then return math.max(1, (bucket[1] + WINDOW) * 1000 - now) end
  end
  return WINDOW * 1000
end

local least = output > 0 and choices or 0 -- output tokens without which there is no answer
local granted, room, tightest = output, nil, 0
local remaining, resets, refused, shadows = {}, {}, {}, {}
for index = 1, #rules, 5 do
  local kind, counter, amount, number = rules[index], rules[index + 1], rules[index + 3], #remaining + 1
  local left, fits, most, reset, wait = 0, true, nil, -1, -1
  if kind <= 1 then
    local window = windows[counter]
    left = amount - window.total
    reset = window.newest > 0 and empty_in(window.newest) or 0
    if kind == 0 then
      fits = left >= 1
      if not fits then wait = amount < 1 and WINDOW * 1000 or leaving_in(window, 1 - left) end
    else
      fits = left >= input + least
      most = math.floor((left - input) / choices)
      if not fits then wait = leaving_in(window, input + least - left) end
    end
  elseif kind == 4 then
    left = amount - tonumber(held[counter + 1] or '0')
    fits = left >= 1
    if not fits then wait = END_WAIT end
  else
    local running = tonumber(held[counter + 1] or '0')
    left = amount - used[rules[index + 2]] - running
    local short -- by how much, in tokens or in the price's unit; not above 0: it fits
    if kind == 2 then
      short = input + least - left
      most = math.floor((left - input) / choices)
    else
      local units = left * 1e6 - input * price[1] - price[3]
      short, running = least * price[2] - units, running * 1e6
      if price[2] > 0 then most = math.floor(units / (price[2] * choices)) end
    end
    fits = short <= 0
    if not fits and short <= running then wait = END_WAIT end
  end
  remaining[number], resets[number] = math.max(0, left), reset
  if not fits then
    if rules[index + 4] == 1 then
      shadows[#shadows + 1], shadows[#shadows + 2] = number, wait
    else
      refused[#refused + 1], refused[#refused + 2] = number, wait
    end
  elseif most and output > 0 and rules[index + 4] == 0 and (not room or most < room) then
    room, tightest = most, number
    granted = math.min(output, room)
  end
end
if #refused > 0 then return {'NO', remaining, resets, refused} end

-- Everything passes: write it down.
local tokens = input + granted * choices
local cost = math.ceil((input * price[1] + granted * choices * price[2] + price[3]) / 1e6)
local units = {tokens, cost, 1}
local counted = {}
for index = 1, #rates, 2 do
  local window, count = windows[(index + 1) / 2], 1
  if rates[index + 1] == 1 then
    count = tokens
    counted[#counted + 1] = window.key
  end
  redis.call(
    'HSET', window.key, second, window.bucket + count, 'n', window.total + count, 'at', second, 'last', second
  )
  if window.moved then redis.call('EXPIRE', window.key, WINDOW + 1) end
end
if id ~= '' then
  local amounts, values = {}, {}
  for index = 1, #reserved, 2 do
    local amount = units[reserved[index + 1] + 1]
    amounts[index], amounts[index + 1] = reserved[index], amount
    values[index] = reserved[index]
    values[index + 1] = tonumber(held[(index + 3) / 2] or '0') + amount
  end
  if #values > 0 then redis.call('HSET', KEYS[1], unpack(values)) end
  redis.call('ZADD', KEYS[2], now + tonumber(ARGV[5]), id)
  redis.call('HSET', KEYS[3], id, cmsgpack.pack({second, tokens, amounts, counted}))
end
for index = 1, #rules, 5 do
  local kind, number = rules[index], (index + 4) / 5
  local taken = (kind == 1 or kind == 2) and tokens or kind == 3 and cost or 1
  remaining[number] = math.max(0, remaining[number] - taken)
  if kind <= 1 then resets[number] = empty_in(second) end
end
return {'OK', granted, tightest, now, remaining, resets, shadows}
