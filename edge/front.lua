-- First to see a request, last to see an answer.

local ERRORS = { --[[ ERRORS ]] }

function envoy_on_request(handle)
  local route = handle:streamInfo():routeName()
  if route == nil or route == "" then
    handle:respond({[":status"] = "404"}, "")
  elseif string.sub(route, 1, 7) == "refuse/" then
    handle:respond({[":status"] = string.sub(route, 8)}, "")
  end
end

local function unescape(text)
  return (string.gsub(text, "%%(%x%x)", function(digits) return string.char(tonumber(digits, 16)) end))
end

local function quote(text)
  local escaped = string.gsub(text, '[%c"\\]', function(char) return string.format("\\u%04x", string.byte(char)) end)
  return '"' .. escaped .. '"'
end

function envoy_on_response(handle)
  local headers = handle:headers()
  local content_type = headers:get("content-type")
  if content_type ~= nil and string.sub(content_type, 1, 16) == "application/grpc" then
    local route = handle:streamInfo():routeName() or ""
    if route ~= "admin" and string.sub(route, 1, 6) ~= "openai" then
      return -- a native call: its gRPC status is the answer
    end
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
    local text = '{"error":{"message":' .. quote(unescape(message)) .. ',"type":"' .. found.type
      .. '","param":null,"code":"' .. found.code .. '"}}'
    handle:body(true):setBytes(text)
  end
  headers:remove("x-uplion-status")
  headers:remove("grpc-status")
  headers:remove("grpc-message")
  headers:remove("grpc-status-details-bin")
  headers:remove("grpc-encoding")
  headers:remove("grpc-accept-encoding")
  headers:remove("trailer")
end
