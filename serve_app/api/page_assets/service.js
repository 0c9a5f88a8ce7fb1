// Calls of this service: its errors, the key it may ask for, patience when it is busy, a few calls at once.

const KEY = "siglip-serve-api-key";
const MAX_ATTEMPTS = 4;
const MAX_WAIT_S = 20;
const MAX_AT_ONCE = 4;

/** What went wrong, in the service's own words; `status` is 0 where there was no answer. */
export class ServiceError extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }

  /** Whether the same request may succeed later. */
  get passing() {
    return this.status === 0 || [401, 403, 408, 429].includes(this.status) || this.status >= 500;
  }
}

export const hasKey = () => Boolean(sessionStorage.getItem(KEY));
export const keepKey = (key) => sessionStorage.setItem(KEY, key);

/** Return the answer's JSON; waits and asks again where the service is busy (429) or starting (503). */
export async function ask(path, options = {}, onWait = () => {}) {
  for (let attempt = 1; ; attempt += 1) {
    const response = await send(path, options);
    if (response.ok) return response.json();
    if (![429, 503].includes(response.status) || attempt === MAX_ATTEMPTS) throw await errorOf(response);
    const seconds = waitOf(response);
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
    throw new ServiceError(0, "no_answer", "The service gave no answer. Is it still running, and can the file still be read?");
  }
}

async function errorOf(response) {
  let said = {};
  try {
    said = (await response.json()).error ?? {};
  } catch {
    // a proxy's page, not the service's own words
  }
  const message = said.message ?? `The service answered with status ${response.status}.`;
  return new ServiceError(response.status, said.code ?? `http_${response.status}`, message);
}

function waitOf(response) {
  const said = response.headers.get("Retry-After") ?? "1";
  const seconds = /^\d+$/.test(said) ? Number(said) : (Date.parse(said) - Date.now()) / 1000;
  return Math.min(MAX_WAIT_S, Math.max(0, Math.ceil(seconds) || 0));
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer);
      reject(new DOMException("No longer wanted.", "AbortError"));
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

/** Run a call when fewer than `MAX_AT_ONCE` run; what is first comes first. */
export async function inTurn(call) {
  if (running >= MAX_AT_ONCE) await new Promise((go) => waiting.push(go));
  else running += 1;
  try {
    return await call();
  } finally {
    const next = waiting.shift(); // a turn that is handed on stays counted
    if (next) next();
    else running -= 1;
  }
}
