// The conversation on the screen ("talk"): its messages, and the answer that is being received.
//
// An answer belongs to the talk it was asked in, whatever is on the screen when it ends. A conversation's id comes only from
// the service: from the list, or from the answer's `start` event once the service has stored something under it.
import { $, attempt, complain, explain, say, showSide, tell } from "./page.js";
import * as api from "./api.js";

// Pauses before asking the service whether it has stored the part of a cut answer: 4.6 s in all.
const PAUSES_MS = [200, 400, 800, 1600, 1600];

// numStored: messages stored by the service. unsettled: the id of a conversation whose last answer was cut.
const fresh = (conversation = null) => ({ conversation, numStored: 0, running: null, unsettled: null, settling: null });

let talk = fresh();

export const conversation = () => talk.conversation;
export const isBusy = () => talk.running !== null;
export const isOn = (id) => id === talk.conversation || id === talk.unsettled;
export const stop = () => talk.running?.abort();
const changed = () => document.dispatchEvent(new Event("conversations"));

// Put another talk on the screen; an answer that is still running in the last one is stopped.
function turnTo(next) {
  talk.running?.abort();
  talk = next;
  $("messages").replaceChildren();
  tell($("status"));
  tell($("alert"));
  showBusy();
  showSide(false);
  document.dispatchEvent(new Event("talk"));
}

export function begin() {
  turnTo(fresh());
  $("input").focus();
}

export const leave = () => turnTo(fresh());

export async function open(id) {
  const opened = fresh(id);
  turnTo(opened);
  const signal = setBusy(opened);
  try {
    const found = await api.get(`conversations/${encodeURIComponent(id)}`, signal);
    adopt(opened, found);
  } catch (error) {
    if (opened === talk) turnTo(fresh());
    throw error;
  } finally {
    setIdle(opened);
  }
}

// Show what the service has stored.
function adopt(owner, found) {
  owner.conversation = found.id;
  owner.numStored = found.messages.length;
  owner.unsettled = null;
  if (owner !== talk) return;
  $("messages").replaceChildren();
  for (const message of found.messages) {
    const item = addMessage(message.role, message.content);
    if (!message.complete) note(item, () => say("incomplete"));
  }
  $("messages").scrollTop = $("messages").scrollHeight;
  document.dispatchEvent(new Event("talk"));
}

export function addMessage(role, text) {
  const item = document.createElement("li");
  item.className = `message ${role}`;
  const [who, body, remark] = ["who", "text", "note"].map((name) => {
    const part = document.createElement("div");
    part.className = name;
    return part;
  });
  const speaker = role === "user" ? "you" : "assistant";
  tell(who, () => say(speaker));
  body.textContent = text;
  item.append(who, body, remark);
  $("messages").append(item);
  item.scrollIntoView({ block: "end" });
  return item;
}

const note = (item, sentence) => tell(item.querySelector(".note"), sentence);

function setBusy(owner) {
  owner.running = new AbortController();
  showBusy();
  return owner.running.signal;
}

function setIdle(owner) {
  owner.running = null;
  if (owner !== talk) return;
  showBusy();
  if (api.isLoggedIn()) $("input").focus();
}

function showBusy() {
  $("send").hidden = isBusy();
  $("stop").hidden = !isBusy();
}

export async function ask(query) {
  const asked = talk;
  const signal = setBusy(asked);
  const answer = { conversation: null, done: null, question: null, item: null };
  tell($("alert"));
  tell($("status"), () => say("waiting"));
  try {
    await settled(asked);
    signal.throwIfAborted();
    answer.question = addMessage("user", query);
    answer.item = addMessage("assistant", "");
    answer.item.classList.add("busy");
    const body = asked.conversation ? { query, conversation_id: asked.conversation } : { query };
    for await (const event of api.stream("chat/stream", body, signal)) {
      signal.throwIfAborted();
      receive(event, answer);
      if (answer.done) break;
    }
    if (!answer.done) throw new Error("the stream ended without its last event");
    asked.conversation = answer.done.conversation_id;
    asked.numStored += 2;
    tell($("status"));
    if (answer.done.finish_reason === "length") note(answer.item, () => say("cutOff"));
    changed();
  } catch (error) {
    endEarly(asked, query, answer, error);
  } finally {
    answer.item?.classList.remove("busy");
    setIdle(asked);
  }
}

function receive(event, answer) {
  if (event.name === "start") answer.conversation = event.data.conversation_id;
  else if (event.name === "error") throw new api.Failure(0, event.data.error);
  else if (event.name === "done") answer.done = event.data;
  else if (event.data) {
    append(answer.item.querySelector(".text"), event.data.token);
    tell($("status"));
  } else {
    const position = /position (\d+)/.exec(event.comment)?.[1];
    if (position) tell($("status"), () => say("queued", { position }));
  }
}

function append(text, token) {
  const messages = $("messages");
  const atEnd = messages.scrollHeight - messages.scrollTop - messages.clientHeight < 80;
  text.append(token);
  if (atEnd) messages.scrollTop = messages.scrollHeight;
}

// Stopped by the user, cut off, or refused. The question stays on the screen or goes back into the input field.
function endEarly(asked, query, answer, error) {
  const wasStopped = error.name === "AbortError";
  const hasText = Boolean(answer.item?.querySelector(".text").textContent);
  if (hasText) {
    note(answer.item, () => say("incomplete"));
    asked.unsettled = answer.conversation;
  } else {
    answer.question?.remove();
    answer.item?.remove();
  }
  if (asked !== talk) {
    if (hasText && api.isLoggedIn()) setTimeout(changed, 1500); // by then the service has stored the part of the answer
    return;
  }
  tell($("status"), wasStopped ? () => say(hasText ? "stopped" : "stoppedEarly") : undefined);
  const isGone = error.code === "conversation_deleted" || (error.code === "not_found" && asked.conversation !== null);
  if (isGone) {
    asked.unsettled = null;
    begin();
    changed();
  }
  if (!hasText || isGone) giveBack(query);
  if (error.status === 401) document.dispatchEvent(new Event("login-ended"));
  else if (!wasStopped) complain(() => (isGone ? say("gone") : explain(error)));
  if (asked.unsettled) asked.settling = attempt(() => settle(asked));
}

function giveBack(query) {
  const draft = $("input").value;
  $("input").value = draft.trim() ? `${query}\n${draft}` : query;
}

// Before the next question: find out what the service has stored of the last answer.
async function settled(asked) {
  await asked.settling; // it has shown its own error
  if (asked.unsettled) await settle(asked);
}

async function settle(asked) {
  for (const pause of PAUSES_MS) {
    await new Promise((resolve) => setTimeout(resolve, pause));
    const found = await findStored(asked.unsettled);
    if (found && found.messages.length > asked.numStored) {
      adopt(asked, found);
      changed();
      return;
    }
  }
  asked.unsettled = null;
  if (asked === talk) tell($("status"), () => say("notKept"));
}

async function findStored(id) {
  try {
    return await api.get(`conversations/${encodeURIComponent(id)}`);
  } catch (error) {
    if (error.status === 404) return null;
    throw error;
  }
}
