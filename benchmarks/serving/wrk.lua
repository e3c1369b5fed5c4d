-- Sends the files named after `--` in turn, each a whole request, and prints what came of it as one line
-- of JSON. `wrk.py` runs it.

local requests, sent = {}, 0
failed = {} -- answers by status, but for 200; global, since `done` asks each thread for it

local threads = {}

function setup(thread)
   threads[#threads + 1] = thread
end

function init(files)
   for i, name in ipairs(files) do
      local file = assert(io.open(name, "rb"))
      requests[i] = file:read("*a")
      file:close()
   end
end

function request()
   sent = sent + 1
   return requests[(sent - 1) % #requests + 1]
end

function response(status)
   if status ~= 200 then
      local key = tostring(status)
      failed[key] = (failed[key] or 0) + 1
   end
end

function done(summary)
   local counts = {}
   for _, thread in ipairs(threads) do
      for status, count in pairs(thread:get("failed")) do
         counts[status] = (counts[status] or 0) + count
      end
   end
   local parts = {}
   for status, count in pairs(counts) do
      parts[#parts + 1] = string.format('"%s": %d', status, count)
   end
   print(string.format(
      '{"requests": %d, "microseconds": %d, "connect": %d, "read": %d, "write": %d, "timeout": %d, "failed": {%s}}',
      summary.requests, summary.duration, summary.errors.connect, summary.errors.read, summary.errors.write,
      summary.errors.timeout, table.concat(parts, ", ")))
end
