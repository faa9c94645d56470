-- Runs first on requests and last on answers. The tables in capitals are written above this line (edge/scripts.py):
-- ERRORS by gRPC code, REFUSALS by what is wrong with a credential, DIALECTS by the first word of a route's name.

-- upl_<env>_<id12>_<secret43><crc6>; authz checks the checksum.
local function is_key(text)
  local env, id, rest = string.match(text, "^upl_(%l+)_(%w+)_(%w+)$")
  return env ~= nil and #env <= 8 and #id == 12 and #rest == 49
end

-- Three base64url parts: a signed token, where an issuer of tokens is configured.
local function is_token(text)
  return TOKENS and #text <= MOST_TOKEN_CHARACTERS and string.match(text, "^[%w_-]+%.[%w_-]+%.[%w_-]+$") ~= nil
end

-- What is wrong with the credential, by the rules of authz/credentials/request_credential.py; nil: it may be one of ours.
local function refusal(headers)
  local found = nil
  for _, name in ipairs(CREDENTIAL_HEADERS) do
    local value = headers:get(name)
    if value ~= nil then
      if name == "authorization" then
        local scheme, shown = string.match(value, "^(%a+) +(.*)$")
        if scheme == nil or string.lower(scheme) ~= SCHEME then return REFUSALS.NOT_BEARER end
        value = string.match(shown, "^.*[^ ]") or ""
      end
      if found ~= nil and found ~= value then return REFUSALS.TWO_KEYS end
      found = value
    end
  end
  if found == nil then return REFUSALS.NO_KEY end
  if not is_key(found) and not is_token(found) then return REFUSALS.NOT_VALID end
  return nil
end

local function too_large(headers)
  local count, size = 0, 0
  for name, value in pairs(headers) do
    count = count + 1
    size = size + #name + #value
  end
  return count > MOST_HEADERS or size > MOST_HEADER_BYTES
end

local function is_grpc(headers)
  local content_type = headers:get("content-type")
  return content_type ~= nil and (content_type == "application/grpc" or string.sub(content_type, 1, 17) == "application/grpc+")
end

local function quote(text)
  local escaped = string.gsub(text, '[%c"\\]', function(char) return string.format("\\u%04x", string.byte(char)) end)
  return '"' .. escaped .. '"'
end

-- A body with its placeholders ("$MESSAGE", "$PARAM", "$REQUEST_ID") filled in.
local function filled(body, values)
  return (string.gsub(body, '"%$([%u_]+)"', function(name)
    if name == "PARAM" and values.PARAM == nil then return "null" end
    return quote(values[name] or "")
  end))
end

-- The dialect of errors on a route that HTTP clients call; nil for the others.
local function dialect_of(route)
  return DIALECTS[string.match(route or "", "^%a+") or ""]
end

-- Where gRPC's own mapping of an HTTP status says too little: UNIMPLEMENTED for an unknown compression, as gRPC itself.
local GRPC_STATUSES = {["405"] = "12", ["415"] = "12", ["431"] = "3"}

-- Envoy's local replies (edge/replies.py) have the body; `allowed` are the methods that a 405 names.
local function refuse(handle, status, allowed)
  local answer = {[":status"] = status}
  if allowed ~= "" then answer["allow"] = allowed end
  if is_grpc(handle:headers()) then answer["grpc-status"] = GRPC_STATUSES[status] end
  handle:respond(answer, "")
end

function envoy_on_request(handle)
  local route = handle:streamInfo():routeName()
  if route == nil or route == "" then
    handle:respond({[":status"] = "404"}, "")
    return
  end
  local headers = handle:headers()
  if string.sub(route, 1, 7) == "refuse/" then
    refuse(handle, string.match(route, "^refuse/(%d+)/?(.*)$"))
    return
  end
  if too_large(headers) then
    refuse(handle, "431", "")
    return
  end
  local dialect = dialect_of(route)
  local request_id = nil
  if dialect ~= nil and dialect ~= "openai" then -- OpenAI's bodies hold no request id
    request_id = headers:get("x-request-id")
    handle:streamInfo():dynamicMetadata():set("uplion.front", "request_id", request_id)
  end
  local refused = refusal(headers)
  if refused == nil then
    if dialect ~= nil and string.sub(route, 1, 5) ~= "admin" then
      -- No public operation has query parameters. The transcoder would bind them to the request's fields, over the path's.
      local path, query = string.match(headers:get(":path"), "^([^?]*)(.?)")
      if query ~= "" then headers:replace(":path", path) end
    end
    return
  end
  if is_grpc(headers) then
    handle:respond({[":status"] = "401", ["grpc-status-details-bin"] = refused.details}, refused.message)
  else
    local body = filled(refused.body[dialect or "openai"], {REQUEST_ID = request_id})
    handle:respond({[":status"] = "401", ["x-should-retry"] = "false"}, body)
  end
end

local function unescape(text)
  return (string.gsub(text, "%%(%x%x)", function(digits) return string.char(tonumber(digits, 16)) end))
end

function envoy_on_response(handle)
  local headers = handle:headers()
  local dialect = dialect_of(handle:streamInfo():routeName())
  if dialect == nil and is_grpc(headers) then
    return -- a native call: its gRPC status is the answer
  end
  local status = headers:get("x-uplion-status")
  local code = headers:get("grpc-status")
  if status ~= nil then status = tonumber(status) end
  if status ~= nil and status >= 200 and status <= 599 then
    headers:replace(":status", tostring(status))
  elseif code ~= nil and code ~= "0" then
    -- The service ended without a body of its own; its status becomes an error object.
    local found = ERRORS[tonumber(code)] or ERRORS[13]
    local message = headers:get("grpc-message")
    if message == nil or message == "" then message = found.message end
    headers:replace(":status", found.status)
    headers:replace("x-should-retry", found.retry)
    headers:replace("content-type", "application/json")
    headers:remove("content-length")
    local known = handle:streamInfo():dynamicMetadata():get("uplion.front")
    local param = headers:get("x-uplion-param")
    local values = {
      MESSAGE = unescape(message), PARAM = param and unescape(param), REQUEST_ID = known and known.request_id,
    }
    handle:body(true):setBytes(filled(found.body[dialect or "openai"], values))
  end
  if headers:get("content-type") == "text/event-stream" then headers:replace("x-accel-buffering", "no") end -- for nginx
  headers:remove("x-uplion-status")
  headers:remove("x-uplion-param")
  headers:remove("grpc-status")
  headers:remove("grpc-message")
  headers:remove("grpc-status-details-bin")
  headers:remove("grpc-encoding")
  headers:remove("grpc-accept-encoding")
  headers:remove("trailer")
end
