-- Sends POST requests whose key and run id change from one to the next; the script for every section that wrk drives.
-- Arguments: file with the body, kind (hit, miss, mixed), number of keys, first new key, whether the spec changes too.
local fill, kind, keys, fresh, specs
local count, run = 0, 0

local function read(path)
  local file = assert(io.open(path, "rb"))
  local text = file:read("*a")
  file:close()
  return text
end

function init(args)
  local body = read(args[1]):gsub("%%", "%%%%")
  kind, keys, fresh = args[2], tonumber(args[3]), tonumber(args[4])
  specs = body:find("@spec@", 1, true) ~= nil
  body = body:gsub("@spec@", "%%012d"):gsub("@key@", "%%012d"):gsub("@run@", "%%012d")
  local _, holes = body:gsub("%%012d", "")
  local _, percents = body:gsub("%%%%", "")
  local length = #body + holes * (12 - 5) - percents
  local head = "POST " .. wrk.path .. " HTTP/1.1\r\nHost: " .. wrk.host .. "\r\nContent-Type: application/json\r\nContent-Length: "
  fill = (head .. length):gsub("%%", "%%%%") .. "\r\n\r\n" .. body
end

local function next_key()
  count = count + 1
  if kind == "miss" or (kind == "mixed" and count % 5 >= 3) then
    fresh = fresh + 1
    return fresh
  end
  return count % keys
end

function request()
  run = run + 1
  local key = next_key()
  if specs then
    return fill:format(key, key, run)
  end
  return fill:format(key, run)
end

function done(summary, latency, requests)
  local e = summary.errors
  io.write(("@json {\"requests\": %d, \"seconds\": %.6f, \"errors\": %d, \"p50\": %.3f, \"p95\": %.3f, \"p99\": %.3f}\n"):format(
    summary.requests, summary.duration / 1e6, e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50) / 1e3, latency:percentile(95) / 1e3, latency:percentile(99) / 1e3))
end
