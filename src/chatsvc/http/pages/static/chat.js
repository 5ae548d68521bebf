// The chat page: the login, and what its buttons do.
import { $, attempt, changeLanguage, complain, explain, say, showSide, tell, translate } from "./page.js";
import * as api from "./api.js";
import * as list from "./list.js";
import * as talk from "./talk.js";

// The account, and what is given back to it, and to no other, after its login has expired.
let account = null;
let kept = null; // { account, draft, conversation }

function show() {
  $("login").hidden = api.isLoggedIn();
  $("chat").hidden = !api.isLoggedIn();
  (api.isLoggedIn() ? $("input") : $("username")).focus();
}

function clear() {
  account = null;
  talk.leave();
  list.clear();
  $("input").value = "";
  $("model").textContent = "";
  show();
}

async function enter() {
  show();
  attempt(nameModels);
  await refresh();
}

async function refresh() {
  if (account === null) await identify();
  await list.refresh();
}

async function identify() {
  const me = await api.get("me");
  account = me.account_id;
  const returned = kept?.account === account ? kept : null;
  kept = null;
  if (returned) $("input").value = returned.draft;
  if (returned?.conversation) await talk.open(returned.conversation);
}

async function nameModels() {
  const models = await api.get("v1/models");
  $("model").textContent = models.data.map((model) => model.id).join(", ");
}

document.addEventListener("login-ended", () => {
  if (account !== null) kept = { account, draft: $("input").value, conversation: talk.conversation() };
  clear();
  const hasDraft = Boolean(kept?.draft.trim());
  complain(() => say(hasDraft ? "againKept" : "again"), $("login-error"));
});
document.addEventListener("conversations", () => attempt(refresh));
document.addEventListener("talk", list.render);
document.addEventListener("language", list.render);

async function logIn(act, refused) {
  tell($("login-error"));
  $("log-in").disabled = true;
  try {
    await act();
  } catch (error) {
    complain(() => (error.status === 401 ? say(refused) : explain(error)), $("login-error"));
    return;
  } finally {
    $("log-in").disabled = false;
  }
  await attempt(enter);
}

$("login-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const { username, password } = event.target.elements;
  logIn(() => api.logIn(username.value, password.value).finally(() => { password.value = ""; }), "loginRefused");
});
$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const query = $("input").value;
  if (talk.isBusy() || !query.trim()) return;
  $("input").value = "";
  talk.ask(query);
});
$("input").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("ask").requestSubmit();
  }
});
$("stop").addEventListener("click", talk.stop);
$("new").addEventListener("click", talk.begin);
$("more").addEventListener("click", () => attempt(list.showMore));
$("menu").addEventListener("click", () => showSide(!$("side").classList.contains("shown")));
$("log-out").addEventListener("click", () => {
  kept = null;
  api.logOut();
  clear();
});
for (const node of document.querySelectorAll("[data-action=language]")) node.addEventListener("click", changeLanguage);

// A reload forgets what was typed and not sent: the browser asks first.
addEventListener("beforeunload", (event) => {
  if ($("input").value.trim() || kept?.draft.trim() || talk.isBusy()) event.preventDefault();
});

// Shown after a refused single sign-on: chosen by a code from the service, never text from the address.
const TURNED_AWAY = { "#oidc-denied": "ssoDenied", "#oidc-refused": "ssoRefused" };

function comeBack() {
  const { hash } = location;
  if (hash) history.replaceState(null, "", location.pathname);
  if (hash === "#oidc") logIn(api.takeTokens, "ssoRefused");
  else if (Object.hasOwn(TURNED_AWAY, hash)) tell($("login-error"), () => say(TURNED_AWAY[hash]));
}

$("sso").hidden = document.body.dataset.sso !== "yes";
translate();
show();
comeBack();
