-- Refuses a native call whose body is not one whole gRPC message: grpc.aio would end it without an error for the client.

function envoy_on_request(handle)
  local body = handle:body()
  local length = body and body:length() or 0
  if length >= 5 then
    local flag, a, b, c, d = string.byte(body:getBytes(0, 5), 1, 5)
    if flag == 0 and ((a * 256 + b) * 256 + c) * 256 + d == length - 5 then return end
  end
  handle:respond({[":status"] = "400", ["grpc-status"] = "3", ["grpc-status-details-bin"] = REFUSAL.details}, REFUSAL.message)
end
