// Calls to the service. Tokens are in this module's memory only: a reload forgets them. They are also forgotten on a 401
// and at logout; no other error, and no lost network, ends a login.
let login = null; // { access, refresh, renewing }

export class Failure extends Error {
  constructor(status, error, headers) {
    super(error?.message ?? `${status}`);
    this.status = status; // 0 for an error in the middle of a stream
    this.code = error?.code ?? null;
    this.retryAfter = headers?.get("Retry-After") ?? null;
    this.requestId = headers?.get("X-Request-Id") ?? null;
  }
}

export const isLoggedIn = () => login !== null;

function keep(tokens) { login = { access: tokens.access_token, refresh: tokens.refresh_token, renewing: null }; }

async function failure(answer) {
  const body = await answer.json().catch(() => null);
  return new Failure(answer.status, body?.error, answer.headers);
}

function send(method, path, bearer, body, signal) {
  const headers = {};
  if (bearer) headers.Authorization = `Bearer ${bearer}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  return fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body), signal,
                       cache: "no-store", credentials: "omit" });
}

export async function logIn(username, password) {
  const answer = await send("POST", "login", null, { username, password });
  if (!answer.ok) throw await failure(answer);
  keep(await answer.json());
}

// Back from an OpenID provider: a cookie that no script can read is exchanged for the tokens, once and within a minute.
export async function takeTokens() {
  const answer = await fetch("oidc/tokens", { method: "POST", cache: "no-store", credentials: "same-origin" });
  if (!answer.ok) throw await failure(answer);
  keep(await answer.json());
}

export async function logOut() {
  const token = login?.access;
  login = null;
  if (token) await send("POST", "logout", token).catch(() => {});
}

// All waiting calls share one refresh: a refresh token can be used once.
function renew(used) {
  used.renewing ??= (async () => {
    const answer = await send("POST", "refresh", used.refresh);
    if (!answer.ok) throw await failure(answer);
    const tokens = await answer.json();
    used.access = tokens.access_token;
    used.refresh = tokens.refresh_token;
  })().finally(() => { used.renewing = null; });
  return used.renewing;
}

async function sendRenewing(used, method, path, body, signal) {
  const answer = await send(method, path, used.access, body, signal);
  if (answer.status !== 401) return answer;
  await renew(used);
  return send(method, path, used.access, body, signal);
}

// A call belongs to the login it was made with: after another login its result is dropped.
async function call(method, path, body, signal) {
  const used = login;
  if (used === null) throw new Failure(401);
  try {
    const answer = await sendRenewing(used, method, path, body, signal);
    if (!answer.ok) throw await failure(answer);
    if (used !== login) throw new DOMException("the login has ended", "AbortError");
    return answer;
  } catch (error) {
    if (used !== login) throw new DOMException("the login has ended", "AbortError");
    if (error.status === 401) login = null;
    throw error;
  }
}

export const get = async (path, signal) => (await call("GET", path, undefined, signal)).json();
export const patch = async (path, body) => (await call("PATCH", path, body)).json();
export const remove = (path) => call("DELETE", path);

// Server-sent events are blocks between empty lines. Yields {name, data, comment}; an incomplete last block is dropped.
export async function* stream(path, body, signal) {
  const answer = await call("POST", path, body, signal);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const blocks = text.split("\n\n");
    text = blocks.pop();
    for (const block of blocks) yield parse(block);
  }
}

function parse(block) {
  const event = { name: null, data: null, comment: "" };
  for (const line of block.split("\n")) {
    if (line.startsWith(": ")) event.comment += line.slice(2);
    else if (line.startsWith("event: ")) event.name = line.slice(7);
    else if (line.startsWith("data: ")) event.data = JSON.parse(line.slice(6));
  }
  return event;
}
