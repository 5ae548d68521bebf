// Shared by all parts of the page: elements, texts in the chosen language, and errors as sentences. Values are only ever
// set as text, never as markup.
import { TEXTS } from "./texts.js";
import { ERRORS } from "./errors.js";
import { Failure } from "./api.js";

export const $ = (id) => document.getElementById(id);

let language = navigator.language.startsWith("zh") ? "zh" : "en";
const told = new WeakMap(); // node -> function that makes its sentence

export const say = (key, values = {}) => TEXTS[language][key].replace(/\{(\w+)\}/g, (_, name) => values[name]);

// Shows a sentence that is made again when the language changes; without one the node is emptied.
export function tell(node, sentence = () => "") {
  told.set(node, sentence);
  node.dataset.told = "";
  node.textContent = sentence();
}

export function translate() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const node of document.querySelectorAll("[data-text]")) node.textContent = say(node.dataset.text);
  for (const node of document.querySelectorAll("[data-label]")) node.setAttribute("aria-label", say(node.dataset.label));
  for (const node of document.querySelectorAll("[data-placeholder]")) node.placeholder = say(node.dataset.placeholder);
  for (const node of document.querySelectorAll("[data-told]")) node.textContent = told.get(node)();
}

export function changeLanguage() {
  language = language === "zh" ? "en" : "zh";
  translate();
  document.dispatchEvent(new Event("language"));
}

// An error in the reader's language, by its code; the service's own message where the code has no text here.
export function explain(error) {
  if (!(error instanceof Failure)) return say("lost");
  const sentences = [ERRORS[error.code]?.[language] ?? say("unknown", { message: error.message })];
  if (error.retryAfter) sentences.push(say("retryIn", { seconds: error.retryAfter }));
  if (error.status >= 500 && error.requestId) sentences.push(say("request", { id: error.requestId }));
  return sentences.join(language === "zh" ? "" : " ");
}

export function showSide(shown) {
  $("side").classList.toggle("shown", shown);
  $("menu").setAttribute("aria-expanded", String(shown));
}

export function complain(sentence, node = $("alert")) {
  if (node === $("alert")) showSide(false); // on a narrow screen it would cover the sentence
  tell(node, sentence);
  node.scrollIntoView({ block: "nearest" });
}

// Runs what the user asked for and shows what went wrong. The end of a login is handled for the whole page.
export async function attempt(act) {
  try {
    await act();
  } catch (error) {
    if (error.name === "AbortError") return; // the user has moved on
    if (error.status === 401) document.dispatchEvent(new Event("login-ended"));
    else complain(() => explain(error));
  }
}
