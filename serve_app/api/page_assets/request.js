// Builds requests to the service from the settings of the page, and equivalent curl commands.

export const MAX_TAGS = 200;
const MAX_QUERY = 4000; // longer lists of labels are sent in a form, because proxies limit the length of a URL

/** Return the parameters of `POST /v1/tag` as pairs. */
export function parametersOf(settings, threshold) {
  const pairs = [["confidence_threshold", String(threshold)], ["max_tags", String(MAX_TAGS)]];
  if (settings.labels.length) pairs.push(["labels", settings.labels.join(",")]);
  else if (settings.vocabulary) pairs.push(["vocabulary", settings.vocabulary]);
  if (settings.score) pairs.push(["score", settings.score]);
  if (settings.quality !== "standard") pairs.push(["quality", settings.quality]);
  return pairs;
}

/** Return the path and options for `fetch`. The request has no threshold, because the page applies it. */
export function tagRequest(settings, file) {
  const pairs = parametersOf(settings, 0);
  const query = queryOf(pairs);
  if (query.length <= MAX_QUERY) {
    return { path: `v1/tag?${query}`, options: { method: "POST", body: file, headers: { "Content-Type": "application/octet-stream" } } };
  }
  const body = new FormData();
  body.append("image", file, file.name);
  for (const [name, value] of pairs) body.append(name, value);
  return { path: "v1/tag", options: { method: "POST", body } };
}

/** Return a command for a POSIX shell that returns the tags that the page shows for a file. */
export function curlCommand(settings, threshold, fileName, withKey) {
  const url = new URL("v1/tag", document.baseURI).href;
  const pairs = parametersOf(settings, threshold);
  const query = queryOf(pairs);
  const key = withKey ? ['-H "Authorization: Bearer $SIGLIP_API_KEY"'] : [];
  if (query.length <= MAX_QUERY) {
    return ["curl", ...key, `--data-binary ${quoted(`@${fileName}`)}`, quoted(`${url}?${query}`)].join(" \\\n  ");
  }
  const path = fileName.replace(/["\\]/g, "\\$&");
  const fields = pairs.map(([name, value]) => `--form-string ${quoted(`${name}=${value}`)}`);
  return ["curl", ...key, `-F ${quoted(`image=@"${path}"`)}`, ...fields, quoted(url)].join(" \\\n  ");
}

function queryOf(pairs) {
  return pairs.map(([name, value]) => `${name}=${encodeURIComponent(value).replaceAll("%2C", ",")}`).join("&");
}

function quoted(text) {
  return /^[\w@./:-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}
