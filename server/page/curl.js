// The command that does in a POSIX shell what the page does.

/** A word that the shell takes as it is, whatever is in it. */
export function quote(text) {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}

/** `source` is the image: {name, type} of a file, or {url, type} of one that has to be fetched. */
export function curlCommand({ url, source, withKey }) {
  const parts = [
    `curl --data-binary ${source.url ? "@-" : quote(`@${path(source.name)}`)}`,
    `-H ${quote(`Content-Type: ${source.type}`)}`,
    ...(withKey ? ['-H "Authorization: Bearer $LCT_API_KEY"'] : []),
    quote(url),
  ];
  const fetching = source.url ? `curl --silent ${quote(source.url)} |\n` : "";
  return fetching + parts.join(" \\\n  ");
}

// To curl, a file called - is its standard input.
function path(name) {
  return name === "-" ? "./-" : name;
}
