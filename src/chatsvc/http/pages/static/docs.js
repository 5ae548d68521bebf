// Renders openapi.json as a readable page; nothing is fetched from anywhere else.
const METHODS = ["get", "post", "put", "patch", "delete"];

function make(tag, text = "", ...children) {
  const node = document.createElement(tag);
  node.textContent = text.replaceAll("`", "");
  node.append(...children);
  return node;
}

function classed(node, name) { node.className = name; return node; }

function schemaBlock(api, schema) {
  const name = schema.$ref?.split("/").pop();
  const shown = name ? api.components.schemas[name] : schema;
  return make("div", "", make("p", name ?? ""), make("pre", JSON.stringify(shown, null, 2)));
}

function operationBlock(api, path, method, operation) {
  const head = make("summary", "", classed(make("span", method.toUpperCase()), "method"), make("code", path),
                    document.createTextNode(` — ${operation.summary}`));
  const inside = classed(make("div"), "inside");
  inside.append(make("p", operation.description ?? ""));
  const body = operation.requestBody?.content?.["application/json"]?.schema;
  if (body) inside.append(make("h3", "Body"), schemaBlock(api, body));
  const table = make("table");
  for (const [status, answer] of Object.entries(operation.responses)) {
    const resolved = answer.$ref ? api.components.responses[answer.$ref.split("/").pop()] : answer;
    table.append(make("tr", "", make("td", status), make("td", resolved.description)));
  }
  inside.append(make("h3", "Answers"), table);
  return make("details", "", head, inside);
}

const api = await (await fetch("openapi.json", { credentials: "omit" })).json();
document.getElementById("about").textContent = api.info.description;
const all = document.getElementById("operations");
for (const tag of api.tags) {
  all.append(make("h2", tag.description));
  for (const [path, item] of Object.entries(api.paths)) {
    for (const method of METHODS) {
      if (item[method]?.tags.includes(tag.name)) all.append(operationBlock(api, path, method, item[method]));
    }
  }
}
all.setAttribute("aria-busy", "false");
