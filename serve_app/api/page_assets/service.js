// Calls the service: errors, the API key, retries when it is busy, and a limit on concurrent calls.

const KEY = "siglip-serve-api-key";
const MAX_ATTEMPTS = 4;
const MAX_WAIT_S = 20;
const MAX_CONCURRENT = 4;

/** An error with the service's message; `status` is 0 if there was no response. */
export class ServiceError extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }

  /** Whether the same request may succeed later. */
  get isTemporary() {
    return this.status === 0 || [401, 403, 408, 429].includes(this.status) || this.status >= 500;
  }
}

export const hasKey = () => Boolean(sessionStorage.getItem(KEY));
export const storeKey = (key) => sessionStorage.setItem(KEY, key);

/** Return the JSON of a response. Retry if the service is busy (429) or starting (503). */
export async function callService(path, options = {}, onWait = () => {}) {
  for (let attempt = 1; ; attempt += 1) {
    const response = await send(path, options);
    if (response.ok) return response.json();
    if (![429, 503].includes(response.status) || attempt === MAX_ATTEMPTS) throw await errorOf(response);
    const seconds = retryAfterSeconds(response);
    onWait(seconds);
    await pause(seconds, options.signal);
  }
}

async function send(path, options) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  try {
    return await fetch(new URL(path, document.baseURI), { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServiceError(0, "no_response", "The service did not respond. Check that it is running and that the file still exists.");
  }
}

async function errorOf(response) {
  let error = {};
  try {
    error = (await response.json()).error ?? {};
  } catch {
    // the response comes from a proxy and is not JSON
  }
  const message = error.message ?? `The service responded with status ${response.status}.`;
  return new ServiceError(response.status, error.code ?? `http_${response.status}`, message);
}

function retryAfterSeconds(response) {
  const retryAfter = response.headers.get("Retry-After") ?? "1";
  const seconds = /^\d+$/.test(retryAfter) ? Number(retryAfter) : (Date.parse(retryAfter) - Date.now()) / 1000;
  return Math.min(MAX_WAIT_S, Math.max(0, Math.ceil(seconds) || 0));
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer);
      reject(new DOMException("The request was cancelled.", "AbortError"));
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, seconds * 1000);
    signal?.addEventListener("abort", stop, { once: true });
  });
}

let running = 0;
const waiting = [];

/** Run a call when fewer than `MAX_CONCURRENT` calls run; calls start in the order in which they arrive. */
export async function limitConcurrency(call) {
  if (running >= MAX_CONCURRENT) await new Promise((start) => waiting.push(start));
  else running += 1;
  try {
    return await call();
  } finally {
    const next = waiting.shift(); // the next call takes this slot, so `running` does not change
    if (next) next();
    else running -= 1;
  }
}
