// The list of conversations, the last used first; "Show more" lengthens it.
import { $, attempt, say, tell } from "./page.js";
import * as api from "./api.js";
import * as talk from "./talk.js";

const PAGE = 50;
const MAX_PAGE = 200; // of the service

let wanted = PAGE;
let shown = [];
let latest = 0;
let drawn = "";

export async function refresh() {
  const mine = ++latest;
  const found = new Map(); // by id: a conversation that moves up between two requests is on both pages
  let more = true;
  for (let offset = 0; more && offset < wanted; ) {
    const page = await api.get(`conversations?limit=${Math.min(MAX_PAGE, wanted - offset)}&offset=${offset}`);
    for (const one of page.data) found.set(one.id, one);
    offset += page.data.length;
    more = page.has_more;
  }
  if (mine !== latest) return; // a later call has newer results
  shown = [...found.values()];
  $("more").hidden = !more;
  render();
}

export function clear() {
  latest += 1;
  wanted = PAGE;
  shown = [];
  $("more").hidden = true;
  render();
}

export function showMore() {
  wanted += PAGE;
  return refresh();
}

export function render() {
  const looks = JSON.stringify([say("rename"), ...shown.map(({ id, title }) => [id, title, talk.isOn(id)])]);
  if (looks === drawn) return; // unchanged: redrawing would lose focus and clicks
  drawn = looks;
  $("list").replaceChildren(...shown.map(item));
}

function item(found) {
  const made = document.createElement("li");
  if (talk.isOn(found.id)) made.setAttribute("aria-current", "true");
  made.append(
    button("open plain", found.title || "…", found.title, () => talk.open(found.id)),
    button("act plain", "✎", `${say("rename")}: ${found.title}`, () => rename(found)),
    button("act plain", "✕", `${say("remove")}: ${found.title}`, () => remove(found)),
  );
  return made;
}

function button(className, text, label, act) {
  const made = document.createElement("button");
  made.type = "button";
  made.className = className;
  made.textContent = text;
  made.setAttribute("aria-label", label);
  made.title = label;
  made.addEventListener("click", () => {
    tell($("alert"));
    attempt(act);
  });
  return made;
}

async function rename(found) {
  const title = prompt(say("askTitle"), found.title);
  if (!title?.trim()) return;
  await api.patch(`conversations/${encodeURIComponent(found.id)}`, { title });
  await refresh();
}

async function remove(found) {
  if (!confirm(say("askRemove"))) return;
  if (talk.isOn(found.id)) talk.begin(); // leave it, also while an answer is running
  try {
    await api.remove(`conversations/${encodeURIComponent(found.id)}`);
  } finally {
    await refresh();
  }
}
