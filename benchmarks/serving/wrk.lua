-- Sends the files named after `--` and the seconds of the warm-up in turn, each a whole request, and prints
-- what came of it since then as one line of JSON. `wrk.py` runs it.

local ffi = require("ffi")
ffi.cdef[[
typedef struct { long seconds, nanoseconds; } moment;
int clock_gettime(int clock, moment *now);
]]
local MONOTONIC = 1

local requests, sent = {}, 0
local moment, from = ffi.new("moment"), 0
answers = {} -- by status; global, since `done` asks each thread for it, as for `warm_up`

local threads = {}

local function now()
   ffi.C.clock_gettime(MONOTONIC, moment)
   return tonumber(moment.seconds) + tonumber(moment.nanoseconds) / 1e9
end

function setup(thread)
   threads[#threads + 1] = thread
end

function init(arguments)
   warm_up = tonumber(table.remove(arguments, 1))
   for i, name in ipairs(arguments) do
      local file = assert(io.open(name, "rb"))
      requests[i] = file:read("*a")
      file:close()
   end
   from = now() + warm_up
end

function request()
   sent = sent + 1
   return requests[(sent - 1) % #requests + 1]
end

function response(status)
   if now() >= from then
      local key = tostring(status)
      answers[key] = (answers[key] or 0) + 1
   end
end

function done(summary)
   local counts, warm_up = {}, 0
   for _, thread in ipairs(threads) do
      warm_up = thread:get("warm_up")
      for status, count in pairs(thread:get("answers")) do
         counts[status] = (counts[status] or 0) + count
      end
   end
   local parts = {}
   for status, count in pairs(counts) do
      parts[#parts + 1] = string.format('"%s": %d', status, count)
   end
   print(string.format(
      '{"microseconds": %d, "connect": %d, "read": %d, "write": %d, "timeout": %d, "answers": {%s}}',
      summary.duration - warm_up * 1e6, summary.errors.connect, summary.errors.read, summary.errors.write,
      summary.errors.timeout, table.concat(parts, ", ")))
end
