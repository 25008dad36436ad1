-- Three requests in turn; each takes another row of the benchmark's route table.
local requests = {}
local turn = 0

init = function()
  local plain = {["Host"] = "shop.local", ["User-Agent"] = "wrk"}
  local canary = {["Host"] = "shop.local", ["User-Agent"] = "wrk", ["x-canary"] = "true"}
  requests[1] = wrk.format("GET", "/checkout/cart?id=1", plain)
  requests[2] = wrk.format("GET", "/catalog/1", canary)
  requests[3] = wrk.format("GET", "/catalog/2", plain)
end

request = function()
  turn = turn % 3 + 1
  return requests[turn]
end
