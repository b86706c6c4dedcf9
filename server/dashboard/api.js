// What the page asks of the server: with the key, and again from time to time while somebody looks.
import { useCallback, useEffect, useRef, useState } from "./lib.js";

const KEY = "latentevolve.key";
let refused = () => {};

export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export function setKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

export const hasKey = () => sessionStorage.getItem(KEY) !== null;

/** Call `listener` whenever the server asks for a key, or refuses the one that there is. */
export function onRefused(listener) {
  refused = listener;
}

async function ask(path, { method = "GET", body, signal, accept } = {}) {
  const headers = {};
  const key = sessionStorage.getItem(KEY);
  if (key) headers.authorization = `Bearer ${key}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  if (accept) headers.accept = accept;
  let response;
  try {
    response = await fetch(path, {
      method,
      headers,
      signal,
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The server does not answer.");
  }
  if (response.ok) return response;
  let message = `${response.status} ${response.statusText}`;
  try {
    message = (await response.json()).error.message;
  } catch {
    // not one of ours: the status has to do
  }
  // Not of a key that was given up meanwhile.
  if (response.status === 401 && key === sessionStorage.getItem(KEY)) refused();
  throw new ApiError(response.status, message);
}

export async function api(path, options) {
  return (await ask(path, options)).json();
}

/** Call `take(event, data)` for each server-sent event until the stream or `signal` ends. */
export async function stream(path, take, signal) {
  const response = await ask(path, { signal, accept: "text/event-stream" });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text = (text + value).replaceAll("\r\n", "\n");
    const events = text.split("\n\n");
    text = events.pop();
    for (const event of events) {
      let name = "message";
      const data = [];
      for (const line of event.split("\n")) {
        if (line.startsWith("event:")) name = line.slice(6).trim();
        else if (line.startsWith("data:")) data.push(line.slice(5).trim());
      }
      if (data.length) take(name, JSON.parse(data.join("\n")));
    }
  }
}

/**
 * What a path answers, asked again every `everyMs` while the page is looked at (0: once).
 * Returns { data, error, reload }; without a path nothing is asked. What there was stays until there is more.
 */
export function useData(path, everyMs = 0) {
  const [state, setState] = useState({ path: null, data: null, error: null });
  const latest = useRef(null);
  const load = useCallback(async () => {
    if (!path) return;
    latest.current?.abort();
    const here = (latest.current = new AbortController());
    try {
      const data = await api(path, { signal: here.signal });
      if (!here.signal.aborted) setState({ path, data, error: null });
    } catch (error) {
      if (error.name === "AbortError") return;
      setState((before) => ({ path, data: before.path === path ? before.data : null, error }));
    }
  }, [path]);
  useEffect(() => {
    load();
    let last = Date.now();
    const again = () => {
      if (document.hidden || Date.now() - last < everyMs) return;
      last = Date.now();
      load();
    };
    const timer = everyMs ? setInterval(again, everyMs) : null;
    if (everyMs) document.addEventListener("visibilitychange", again);
    return () => {
      clearInterval(timer);
      document.removeEventListener("visibilitychange", again);
      latest.current?.abort();
    };
  }, [load, everyMs]);
  const mine = state.path === path || state.path === null;
  return { data: mine ? state.data : null, error: mine ? state.error : null, reload: load };
}
