// Talking to the server. The token comes by the URL's fragment, which browsers send to nobody; it is kept for this tab
// and taken out of the address bar, so that it is in no history and no screenshot.

const KEY = "pycni-token";
const RETRY_MS = 2000;

function storage() {
  try {
    return window.sessionStorage;
  } catch {
    return null; // forbidden by the browser's settings: a reload asks for the URL again
  }
}

let token = new URLSearchParams(location.hash.slice(1)).get("token") || "";
if (token) {
  storage()?.setItem(KEY, token);
  history.replaceState(null, "", location.pathname);
} else {
  token = storage()?.getItem(KEY) || "";
}

export class ApiError extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, {
      ...options,
      cache: "no-store",
      headers: { ...(options.headers || {}), Authorization: `Bearer ${token}` },
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "the server does not answer: pycnictl ui has ended, or cannot be reached");
  }
  if (answer.ok) return answer;
  let reason = `the server answers ${answer.status}`;
  try {
    reason = (await answer.json()).error || reason;
  } catch {
    // no JSON: the status has to do
  }
  throw new ApiError(answer.status, reason);
}

/** GET, as an object. Throws ApiError. */
export async function get(path, query = {}) {
  const words = new URLSearchParams(query).toString();
  return (await ask(words ? `${path}?${words}` : path)).json();
}

/** POST, as an object. Throws ApiError. */
export async function post(path, body) {
  const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  return (await ask(path, options)).json();
}

/** Server-sent events for ever: take(name, value) for each, state("ok" | "wait" | "bad", words) as the connection is. */
export async function follow(path, take, state) {
  for (;;) {
    try {
      const answer = await ask(path);
      state("ok", "live");
      await read(answer.body.getReader(), take);
      state("wait", "connecting");
    } catch (error) {
      state("bad", error.status === 401 ? "no access" : "not connected");
      take("trouble", { error: error.message, status: error.status });
      if (error.status === 401) return;
    }
    await new Promise((done) => setTimeout(done, RETRY_MS));
  }
}

async function read(reader, take) {
  const decoder = new TextDecoder();
  let text = "";
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch {
      return; // broken off: connect again
    }
    if (part.done) return;
    text += decoder.decode(part.value, { stream: true });
    let end;
    while ((end = text.indexOf("\n\n")) >= 0) {
      const fields = {};
      for (const line of text.slice(0, end).split("\n")) {
        const at = line.indexOf(": ");
        if (at > 0) fields[line.slice(0, at)] = line.slice(at + 2);
      }
      text = text.slice(end + 2);
      if (fields.event) take(fields.event, JSON.parse(fields.data || "null"));
    }
  }
}
