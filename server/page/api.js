// The two calls that the page makes, and every way in which they fail as one kind of error.

/** What went wrong, in a sentence for the reader. `status` is 0 where no answer came. */
export class RequestError extends Error {
  constructor(message, { status = 0, retryAfter = null } = {}) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter; // seconds, or null
  }
}

// Relative to where the page lies, so that it works behind a proxy's path prefix too.
const here = (path) => new URL(path, document.baseURI);

export function classifyUrl({ topK, model }) {
  const url = here("v1/classify");
  url.searchParams.set("top_k", topK);
  if (model) url.searchParams.set("model", model);
  return url;
}

export function sampleUrl(index) {
  return here(`samples/${index}.png`);
}

/** The media type that an image is sent as; the server says whether it takes it. */
export function mediaType(file) {
  return file.type || "application/octet-stream";
}

export async function fetchCards({ key }) {
  return (await send(here("v1/models"), { headers: authorization(key) })).json();
}

export async function fetchSample(index, { signal }) {
  const blob = await (await send(sampleUrl(index), { signal })).blob();
  return new File([blob], `${index}.png`, { type: blob.type });
}

/** The server's document for one image, and how long the answer took from here. */
export async function classify(file, { topK, model, key, signal }) {
  await checkReadable(file);
  const started = performance.now();
  const response = await send(classifyUrl({ topK, model }), {
    method: "POST",
    headers: { "Content-Type": mediaType(file), ...authorization(key) },
    body: file,
    signal,
  });
  const document = await response.json();
  return { document, milliseconds: performance.now() - started };
}

function authorization(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

// A folder is dropped like a file, and a file may be gone: neither can be told before it is read.
async function checkReadable(file) {
  try {
    await file.slice(0, 1).arrayBuffer();
  } catch {
    throw new RequestError(`${file.name} cannot be read: is it a folder, or was it moved?`);
  }
}

async function send(url, options) {
  let response;
  try {
    response = await fetch(url, { ...options, cache: "no-cache" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new RequestError(
      "No answer came: the server may be down, or have closed the connection before it had the whole image.",
    );
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  let detail = `The server answered ${response.status} ${response.statusText}`.trim();
  try {
    const problem = await response.json();
    if (typeof problem.detail === "string" && problem.detail) detail = problem.detail;
  } catch {
    // Not a problem document: a proxy's page, perhaps. The status has to do.
  }
  return new RequestError(detail, {
    status: response.status,
    retryAfter: seconds(response.headers.get("Retry-After")),
  });
}

// Retry-After is a number of seconds or a date.
function seconds(header) {
  if (header === null) return null;
  const wait = /^\d+$/.test(header.trim()) ? Number(header) : (Date.parse(header) - Date.now()) / 1000;
  return Number.isFinite(wait) ? Math.max(0, Math.ceil(wait)) : null;
}
