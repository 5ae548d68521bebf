// Shows openapi.json as a page; nothing is fetched from anywhere else, and whatever is shown is only ever set as text.
import { $, changeLanguage, say, tell, translate } from "./page.js";

const METHODS = ["get", "post", "put", "patch", "delete"];
const ORIGIN = new URL(".", location).href.replace(/\/$/, "");

function make(tag, ...children) {
  const node = document.createElement(tag);
  node.append(...children);
  return node;
}

function classed(name, node) {
  node.className = name;
  return node;
}

function labelled(tag, key) {
  const node = make(tag);
  tell(node, () => say(key));
  return node;
}

const nameOf = (reference) => reference.split("/").pop();
const plain = (text) => text.replaceAll("`", "");
const block = (text) => make("pre", text);
const json = (value) => block(JSON.stringify(value, null, 2));

function table(keys, rows) {
  const head = make("tr", ...keys.map((key) => (key ? labelled("th", key) : make("th"))));
  return make("table", head, ...rows.map((cells) => make("tr", ...cells.map((cell) => make("td", ...cell)))));
}

const joined = (parts, between) => parts.flatMap((part, index) => (index ? [between, ...part] : part));

function range(schema, least, most) {
  if (schema[most] === undefined) return schema[least] ? `, ≥ ${schema[least]}` : "";
  return schema[least] === undefined ? `, ≤ ${schema[most]}` : `, ${schema[least]} … ${schema[most]}`;
}

// The type of a schema and its bounds, with links to the objects it refers to.
function kind(schema) {
  if (schema.$ref) {
    const link = make("a", nameOf(schema.$ref));
    link.href = `#${link.textContent}`;
    return [link];
  }
  const choices = schema.anyOf ?? (schema.properties ? undefined : schema.oneOf);
  if (choices) return joined(choices.map(kind), " | ");
  if (schema.enum ?? "const" in schema) return [(schema.enum ?? [schema.const]).map((one) => JSON.stringify(one)).join(" | ")];
  if (schema.type === "array") return ["[", ...kind(schema.items ?? {}), "]", range(schema, "minItems", "maxItems")];
  if (typeof schema.additionalProperties === "object") return ["{…: ", ...kind(schema.additionalProperties), "}"];
  const above = schema.exclusiveMinimum === undefined ? "" : `, > ${schema.exclusiveMinimum}`;
  return [schema.format ?? schema.type ?? "any", above, range(schema, "minLength", "maxLength"), range(schema, "minimum", "maximum")];
}

function described(schema) {
  return plain(schema.description ?? schema.anyOf?.find((one) => one.description)?.description ?? "");
}

const mark = (isRequired) => (isRequired ? [labelled("span", "required")] : []);

function fields(schema) {
  const required = schema.required ?? [];
  const rows = Object.entries(schema.properties ?? {}).map(([name, part]) => [
    [make("code", name)], kind(part), mark(required.includes(name)), [described(part)],
  ]);
  return table(["field", "type", "", ""], rows);
}

// A content of a request or an answer: the fields of its object, and an example.
function contentBlocks(api, mediaType, { schema, example }) {
  const name = schema.$ref && nameOf(schema.$ref);
  const isJson = mediaType === "application/json";
  const blocks = [make("p", make("code", mediaType), " ", ...kind(schema))];
  if (name && isJson) blocks.push(fields(api.components.schemas[name]));
  if (example !== undefined) blocks.push(labelled("h5", "example"), isJson ? json(example) : block(example));
  return blocks;
}

function parametersBlock(parameters) {
  const rows = parameters.map((one) => [
    [make("code", one.name)], [one.in], kind(one.schema), mark(one.required), [plain(one.description ?? "")],
    one.example === undefined ? [] : [make("code", one.example)],
  ]);
  return table(["parameter", "in", "type", "", "", "example"], rows);
}

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

function curl(path, method, operation) {
  const given = (operation.parameters ?? []).filter((one) => one.example !== undefined);
  const query = given.filter((one) => one.in === "query").map((one) => `${one.name}=${encodeURIComponent(one.example)}`).join("&");
  const full = given.filter((one) => one.in === "path").reduce((text, one) => text.replace(`{${one.name}}`, one.example), path);
  const lines = [`curl -X ${method.toUpperCase()} ${quoted(`${ORIGIN}${full}${query && "?"}${query}`)}`];
  if (operation.security.length) lines.push('-H "Authorization: Bearer $TOKEN"');
  const body = operation.requestBody?.content["application/json"];
  if (body) lines.push("-H 'Content-Type: application/json'", `-d ${quoted(JSON.stringify(body.example))}`);
  return lines.join(" \\\n  ");
}

function answersBlocks(api, responses) {
  const own = Object.entries(responses).filter(([, answer]) => !answer.$ref);
  const errors = Object.entries(responses).filter(([, answer]) => answer.$ref);
  const blocks = own.flatMap(([status, answer]) => [
    make("h4", `${status} ${plain(answer.description)}`),
    ...Object.entries(answer.content ?? {}).flatMap(([mediaType, content]) => contentBlocks(api, mediaType, content)),
  ]);
  const rows = errors.map(([status, answer]) => [[status], [plain(api.components.responses[nameOf(answer.$ref)].description)]]);
  return [...blocks, labelled("h4", "errors"), table([], rows)];
}

function operationBlock(api, path, method, operation) {
  const head = make("summary", classed("method", make("span", method.toUpperCase())), make("code", path), ` — ${plain(operation.summary)}`);
  const inside = classed("inside", make("div"));
  inside.append(...operation.description.split("\n\n").map((text) => make("p", plain(text))));
  if (operation.parameters) inside.append(labelled("h3", "parameters"), parametersBlock(operation.parameters));
  const body = operation.requestBody?.content["application/json"];
  if (body) inside.append(labelled("h3", "body"), ...contentBlocks(api, "application/json", body));
  inside.append(labelled("h3", "call"), block(curl(path, method, operation)));
  inside.append(labelled("h3", "answers"), ...answersBlocks(api, operation.responses));
  return make("details", head, inside);
}

function objectBlock(name, schema) {
  const head = make("h3", name);
  head.id = name;
  return classed("object", make("section", head, make("p", plain(schema.description ?? "")), fields(schema)));
}

async function show() {
  const api = await (await fetch("openapi.json", { credentials: "omit" })).json();
  $("about").textContent = api.info.description;
  const all = $("operations");
  for (const tag of api.tags) {
    all.append(make("h2", tag.description));
    for (const [path, item] of Object.entries(api.paths)) {
      for (const method of METHODS) {
        if (item[method]?.tags.includes(tag.name)) all.append(operationBlock(api, path, method, item[method]));
      }
    }
  }
  all.append(labelled("h2", "objects"));
  for (const [name, schema] of Object.entries(api.components.schemas)) all.append(objectBlock(name, schema));
  all.setAttribute("aria-busy", "false");
}

document.querySelector("[data-action=language]").addEventListener("click", changeLanguage);
translate();
show();
