// The service's interface as the page needs it. Tokens live in this module's memory only: a reload forgets them.
let access = null;
let refresh = null;
let refreshing = null;

export class Failure extends Error {
  constructor(status, message) { super(message); this.status = status; }
}

export const isLoggedIn = () => access !== null;

function keep(tokens) { access = tokens.access_token; refresh = tokens.refresh_token; }
function forget() { access = refresh = null; }

async function failure(answer) {
  const body = await answer.json().catch(() => null);
  return new Failure(answer.status, body?.error?.message ?? `${answer.status}`);
}

async function post(path, bearer, body, signal) {
  return send("POST", path, bearer, body, signal);
}

function send(method, path, bearer, body, signal) {
  const headers = {};
  if (bearer) headers.Authorization = `Bearer ${bearer}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  return fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body), signal,
                       cache: "no-store", credentials: "omit" });
}

export async function logIn(username, password) {
  const answer = await post("login", null, { username, password });
  if (!answer.ok) throw await failure(answer);
  keep(await answer.json());
}

// Back from an OpenID provider: the tokens wait behind a cookie that no script can read, for a minute and once.
export async function takeTokens() {
  const answer = await fetch("oidc/tokens", { method: "POST", cache: "no-store", credentials: "same-origin" });
  if (!answer.ok) throw await failure(answer);
  keep(await answer.json());
}

export async function logOut() {
  const token = access;
  forget();
  if (token) await post("logout", token).catch(() => {});
}

// One refresh for all who wait for it: a refresh token can be spent once.
async function renew() {
  refreshing ??= (async () => {
    const answer = await post("refresh", refresh);
    if (answer.ok) keep(await answer.json()); else forget();
  })().finally(() => { refreshing = null; });
  await refreshing;
}

async function call(method, path, body, signal) {
  let answer = await send(method, path, access, body, signal);
  if (answer.status === 401 && refresh) {
    await renew();
    if (access) answer = await send(method, path, access, body, signal);
  }
  if (!answer.ok) throw await failure(answer);
  return answer;
}

export const get = async (path) => (await call("GET", path)).json();
export const patch = async (path, body) => (await call("PATCH", path, body)).json();
export const remove = (path) => call("DELETE", path);

// Server-sent events: blocks between empty lines. Yields {name, data, comment}.
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
