-- The load of every row, for wrk. What to ask comes as key=value after `--`; the answer of a run is one line of JSON that
-- begins with RESULT. Requests are built as cheaply as can be: the generator shares the machine with what it measures.

local ffi = require("ffi")
ffi.cdef [[
  typedef struct { long seconds; long nanoseconds; } moment;
  int clock_gettime(int clock, moment *now);
]]
local now = ffi.new("moment")
local random, format, date = math.random, string.format, os.date

local threads = 0
function setup(thread)
  threads = threads + 1
  thread:set("thread_number", threads)
end

local asked = {}
local make

-- The client's own clock, in whole seconds and microseconds.
local function clock()
  ffi.C.clock_gettime(0, now)
  return tonumber(now.seconds), math.floor(tonumber(now.nanoseconds) / 1000)
end

-- The last second that was written out: the next request is most often of the same.
local written, text = 0, ""
local function rfc3339(seconds, microseconds)
  if seconds ~= written then
    written, text = seconds, date("!%Y-%m-%dT%H:%M:%S", seconds)
  end
  return format("%s.%06dZ", text, microseconds)
end

local function user()
  if asked.users == 1 then return asked.prefix end
  return asked.prefix .. random(0, asked.users - 1)
end

local function get(path)
  return "GET /" .. path .. " HTTP/1.1\r\nHost: x\r\n\r\n"
end

local function change(timestamp)
  local body = format('{"userId":"%s","context":"benchmark","balanceChange":1,"timestamp":"%s"}', user(), timestamp)
  return "POST /changeBalance HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: "
    .. #body .. "\r\n\r\n" .. body
end

local function read_now() return get(user() .. "/balance") end

local function change_now() return change(rfc3339(clock())) end

local works = {
  read_now = read_now,

  change = change_now,

  -- Moments are written out beforehand, to the second; the microseconds are drawn for each request.
  read_past = function()
    local moment = asked.moments[random(1, #asked.moments)]
    return get(format("%s/balance?timestamp=%s.%06dZ", user(), moment, random(0, 999999)))
  end,

  -- A share of the changes is stamped up to `late` seconds before now.
  backdated = function()
    if random() >= asked.share then return change_now() end
    local seconds = clock()
    return change(format("%s.%06dZ", date("!%Y-%m-%dT%H:%M:%S", seconds - random(1, asked.late)), random(0, 999999)))
  end,

  mixed = function()
    if random() < asked.share then return change_now() end
    return read_now()
  end,
}

function init(arguments)
  for _, argument in ipairs(arguments) do
    local key, value = argument:match("^(%w+)=(.*)$")
    if key then asked[key] = tonumber(value) or value end
  end
  math.randomseed(asked.seed * 1000 + thread_number)
  if asked.from then
    asked.moments = {}
    for i = 1, 16384 do
      asked.moments[i] = date("!%Y-%m-%dT%H:%M:%S", random(asked.from, asked.to))
    end
  end
  make = works[asked.work]
end

function request() return make() end

function done(summary, latency)
  local errors = summary.errors
  io.write(format(
    'RESULT {"microseconds":%d,"requests":%d,"p50":%d,"p90":%d,"p99":%d,"max":%d,'
      .. '"connect":%d,"read":%d,"write":%d,"timeout":%d,"status":%d}\n',
    summary.duration, summary.requests, latency:percentile(50), latency:percentile(90), latency:percentile(99),
    latency.max, errors.connect, errors.read, errors.write, errors.timeout, errors.status))
end
