// The chat page. What comes from the service is only ever set as text, never as markup.
import { TEXTS } from "./texts.js";
import * as api from "./api.js";

const $ = (id) => document.getElementById(id);
const page = { language: navigator.language.startsWith("zh") ? "zh" : "en", conversation: null, running: null };
const say = (key, values = {}) =>
  Object.entries(values).reduce((text, [name, value]) => text.replace(`{${name}}`, value), TEXTS[page.language][key]);

function translate() {
  document.documentElement.lang = page.language === "zh" ? "zh-CN" : "en";
  for (const node of document.querySelectorAll("[data-text]")) node.textContent = say(node.dataset.text);
  for (const node of document.querySelectorAll("[data-label]")) node.setAttribute("aria-label", say(node.dataset.label));
  for (const node of document.querySelectorAll("[data-placeholder]")) node.placeholder = say(node.dataset.placeholder);
  for (const node of document.querySelectorAll("[data-action=language]")) node.textContent = say("other");
  for (const node of document.querySelectorAll("[data-who]")) node.textContent = say(node.dataset.who);
}

function show() {
  $("login").hidden = api.isLoggedIn();
  $("chat").hidden = !api.isLoggedIn();
  (api.isLoggedIn() ? $("input") : $("username")).focus();
}

function leave(message = "") {
  page.running?.abort();
  page.conversation = null;
  $("messages").replaceChildren();
  $("list").replaceChildren();
  $("login-error").textContent = message;
  show();
}

// Runs what the user asked for; says what went wrong, and goes back to the login when the session has ended.
async function attempt(act) {
  try {
    await act();
  } catch (error) {
    if (error.status === 401 || !api.isLoggedIn()) leave(say("again"));
    else $("status").textContent = error instanceof api.Failure ? error.message : say("lost");
  }
}

function addMessage(role, text) {
  const item = document.createElement("li");
  item.className = `message ${role}`;
  const who = document.createElement("div");
  who.className = "who";
  who.dataset.who = role === "user" ? "you" : "assistant";
  who.textContent = say(who.dataset.who);
  const body = document.createElement("div");
  body.className = "text";
  body.textContent = text;
  item.append(who, body);
  $("messages").append(item);
  item.scrollIntoView({ block: "end" });
  return item;
}

function setBusy(controller) {
  page.running = controller;
  $("send").hidden = Boolean(controller);
  $("stop").hidden = !controller;
}

async function ask(query) {
  const controller = new AbortController();
  addMessage("user", query);
  const item = addMessage("assistant", "");
  const text = item.querySelector(".text");
  item.classList.add("busy");
  setBusy(controller);
  $("status").textContent = say("waiting");
  const body = { query };
  if (page.conversation) body.conversation_id = page.conversation;
  try {
    for await (const event of api.stream("chat/stream", body, controller.signal)) receive(event, text);
    await listConversations();
  } catch (error) {
    if (controller.signal.aborted) {
      $("status").textContent = say("stopped");
      attempt(findStopped);
    } else {
      item.classList.add("failed");
      text.append(text.textContent ? " — " : "", error instanceof api.Failure ? error.message : say("lost"));
      $("status").textContent = "";
      if (error.status === 401) leave(say("again"));
    }
  } finally {
    item.classList.remove("busy");
    setBusy(null);
    if (api.isLoggedIn()) $("input").focus();
  }
}

function receive(event, text) {
  if (event.name === "error") throw new api.Failure(0, event.data.error.message);
  if (event.name === "done") {
    page.conversation = event.data.conversation_id;
    $("status").textContent = event.data.finish_reason === "length" ? say("cutOff") : "";
  } else if (event.data) {
    const messages = $("messages");
    const atEnd = messages.scrollHeight - messages.scrollTop - messages.clientHeight < 80;
    text.append(event.data.token);
    $("status").textContent = "";
    if (atEnd) messages.scrollTop = messages.scrollHeight;
  } else {
    const position = /position (\d+)/.exec(event.comment);
    if (position) $("status").textContent = say("queued", { position: position[1] });
  }
}

async function listConversations() {
  const { data } = await api.get("conversations");
  $("list").replaceChildren(...data.map(listItem));
}

// The service keeps what there was of a stopped answer; go on in that conversation.
async function findStopped() {
  await new Promise((resolve) => setTimeout(resolve, 700));
  const { data } = await api.get("conversations?limit=1");
  if (!page.running) page.conversation ??= data[0]?.id ?? null;
  await listConversations();
}

function listItem(found) {
  const item = document.createElement("li");
  if (found.id === page.conversation) item.setAttribute("aria-current", "true");
  item.append(
    button("open plain", found.title || "…", found.title, () => open(found.id)),
    button("act plain", "✎", `${say("rename")}: ${found.title}`, () => rename(found)),
    button("act plain", "✕", `${say("remove")}: ${found.title}`, () => removeOne(found)),
  );
  return item;
}

function button(className, text, label, act) {
  const made = document.createElement("button");
  made.type = "button";
  made.className = className;
  made.textContent = text;
  made.setAttribute("aria-label", label);
  made.addEventListener("click", () => attempt(act));
  return made;
}

async function open(id) {
  page.running?.abort();
  const found = await api.get(`conversations/${encodeURIComponent(id)}`);
  page.conversation = id;
  $("messages").replaceChildren();
  $("status").textContent = "";
  for (const message of found.messages) addMessage(message.role, message.content);
  showSide(false);
  await listConversations();
}

async function rename(found) {
  const title = prompt(say("askTitle"), found.title);
  if (!title) return;
  await api.patch(`conversations/${encodeURIComponent(found.id)}`, { title });
  await listConversations();
}

async function removeOne(found) {
  if (!confirm(say("askRemove"))) return;
  await api.remove(`conversations/${encodeURIComponent(found.id)}`);
  if (found.id === page.conversation) begin();
  await listConversations();
}

function begin() {
  page.running?.abort();
  page.conversation = null;
  $("messages").replaceChildren();
  $("status").textContent = "";
  showSide(false);
  for (const item of $("list").children) item.removeAttribute("aria-current");
  $("input").focus();
}

function showSide(shown) {
  $("side").classList.toggle("shown", shown);
  $("menu").setAttribute("aria-expanded", String(shown));
}

async function enter() {
  show();
  const models = await api.get("v1/models");
  $("model").textContent = models.data.map((model) => model.id).join(", ");
  await listConversations();
}

$("login-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const { username, password } = event.target.elements;
  $("login-error").textContent = "";
  try {
    await api.logIn(username.value, password.value);
  } catch (error) {
    $("login-error").textContent = error instanceof api.Failure ? error.message : say("lost");
    return;
  } finally {
    password.value = "";
  }
  await attempt(enter);
});
$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const query = $("input").value;
  if (page.running || !query.trim()) return;
  $("input").value = "";
  ask(query);
});
$("input").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("ask").requestSubmit();
  }
});
$("stop").addEventListener("click", () => page.running?.abort());
$("new").addEventListener("click", begin);
$("menu").addEventListener("click", () => showSide(!$("side").classList.contains("shown")));
$("log-out").addEventListener("click", async () => { await api.logOut(); leave(); });
for (const node of document.querySelectorAll("[data-action=language]")) {
  node.addEventListener("click", () => { page.language = page.language === "zh" ? "en" : "zh"; translate(); });
}

async function comeBack() {
  history.replaceState(null, "", location.pathname);
  try {
    await api.takeTokens();
  } catch (error) {
    $("login-error").textContent = error instanceof api.Failure ? error.message : say("lost");
    return;
  }
  await attempt(enter);
}

// What is said to who comes back without a login: by a code from the service, never in words from the address.
const TURNED_AWAY = { "#oidc-denied": "ssoDenied", "#oidc-refused": "ssoRefused" };

function turnedAway(key) {
  history.replaceState(null, "", location.pathname);
  $("login-error").textContent = say(key);
}

$("sso").hidden = document.body.dataset.sso !== "yes";
translate();
show();
if (location.hash === "#oidc") comeBack();
else if (Object.hasOwn(TURNED_AWAY, location.hash)) turnedAway(TURNED_AWAY[location.hash]);
