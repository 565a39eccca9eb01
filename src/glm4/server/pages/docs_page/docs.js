// Shows openapi.json as a page. Everything from the document is set as text, never as HTML.

const TEXT = {
  en: {
    intro: "What this server can do, made from its openapi.json. Click an operation to see fields, errors and a command to try.",
    filter: "Filter", schemas: "Schemas", fields: "Fields of the body", field: "field", type: "type",
    parameters: "Parameters", answers: "Answers", example: "Try it", key: "needs an API key", loading: "Loading…",
    failed: "openapi.json could not be read: ", none: "No operation matches.", other: "中文",
  },
  zh: {
    intro: "本服务的接口说明，由 openapi.json 生成。点开一项可以看到字段、错误和可直接运行的命令。",
    filter: "筛选", schemas: "数据结构", fields: "请求体字段", field: "字段", type: "类型",
    parameters: "参数", answers: "响应", example: "试一试", key: "需要 API 密钥", loading: "正在读取……",
    failed: "无法读取 openapi.json：", none: "没有符合的接口。", other: "English",
  },
};

let language = navigator.language.startsWith("zh") ? "zh" : "en";
let documentation = null;

const byId = (id) => document.getElementById(id);
const say = (key) => TEXT[language][key];

function element(tag, options = {}, ...children) {
  const made = document.createElement(tag);
  Object.assign(made, options);
  made.append(...children);
  return made;
}

function link(name) {
  return element("a", { href: `#schema-${name}`, textContent: name });
}

/** A schema in one line: links to components, lists of choices, bounds. */
function describe(schema) {
  if (schema === undefined || schema === true) return ["any"];
  if (schema.$ref) return [link(schema.$ref.split("/").pop())];
  const choices = schema.anyOf || schema.oneOf;
  if (choices) {
    return choices.filter((one) => one.type !== "null")
      .flatMap((one, index) => [...(index ? [" | "] : []), ...describe(one)]);
  }
  if (schema.enum) return [schema.enum.map((value) => JSON.stringify(value)).join(" | ")];
  if ("const" in schema) return [JSON.stringify(schema.const)];
  if (schema.type === "array") return ["[", ...describe(schema.items), "]"];
  const bounds = [["≥", schema.minimum], [">", schema.exclusiveMinimum], ["≤", schema.maximum]]
    .filter(([, bound]) => bound !== undefined).map(([sign, bound]) => ` ${sign} ${bound}`);
  return [schema.type || "any", ...bounds];
}

function fieldTable(schema) {
  const table = element("table", {}, element("tr", {}, element("th", { textContent: say("field") }),
    element("th", { textContent: say("type") })));
  const required = new Set(schema.required || []);
  const names = Object.keys(schema.properties || {});
  names.sort((a, b) => required.has(b) - required.has(a));
  for (const name of names) {
    const property = schema.properties[name];
    const described = (property.anyOf || [property]).map((one) => one.description).filter(Boolean);
    const type = element("td", {}, ...describe(property));
    if (described.length) type.append(` — ${described.join("; ")}`);
    table.append(element("tr", {},
      element("td", {}, element("code", { textContent: name, className: required.has(name) ? "required" : "" })), type));
  }
  return element("div", { className: "scroll" }, table);
}

function command(method, path, operation) {
  const lines = [`curl ${new URL(path.slice(1), new URL(".", location.href))}`];
  const content = operation.requestBody?.content["application/json"];
  if (operation.security.length) lines.push('-H "Authorization: Bearer $GLM4_API_KEY"');
  if (content) {
    lines.push('-H "Content-Type: application/json"');
    lines.push(`-d '${JSON.stringify(content.example).replaceAll("'", "'\\''")}'`);
  }
  if (method !== "get" && method !== "post") lines.push(`-X ${method.toUpperCase()}`);
  return element("pre", { textContent: lines.join(" \\\n  ") });
}

function answers(operation) {
  const table = element("table");
  for (const [status, answer] of Object.entries(operation.responses)) {
    const types = Object.entries(answer.content || {}).flatMap(([kind, { schema }], index) => {
      const shown = schema.properties?.data?.anyOf?.[1].contentSchema || schema;
      return [...(index ? [", "] : []), `${kind}: `, ...describe(shown)];
    });
    table.append(element("tr", {}, element("td", { textContent: status }), element("td", { textContent: answer.description }),
      element("td", {}, ...types)));
  }
  return element("div", { className: "scroll" }, table);
}

function operationBox(method, path, operation) {
  const summary = language === "zh" ? operation["x-summary-zh"] || operation.summary : operation.summary;
  const head = element("summary", {}, element("span", { className: `method ${method}`, textContent: method.toUpperCase() }),
    " ", element("code", { textContent: path }), ` ${summary}`);
  const body = element("div");
  const section = (title, content) => body.append(element("h4", { textContent: title }), content);
  if (operation.security.length) body.append(element("p", { textContent: say("key") }));
  if (operation.parameters) {
    const properties = Object.fromEntries(operation.parameters.map(
      (one) => [one.name, { ...one.schema, description: one.description }]));
    section(say("parameters"), fieldTable({ properties }));
  }
  const content = operation.requestBody?.content["application/json"];
  if (content) section(say("fields"), fieldTable(content.schema));
  section(say("answers"), answers(operation));
  section(say("example"), command(method, path, operation));
  return element("details", { id: operation.operationId }, head, body);
}

function show() {
  document.documentElement.lang = language;
  for (const node of document.querySelectorAll("[data-text]")) node.textContent = say(node.dataset.text);
  byId("intro").textContent = say("intro");
  byId("language").textContent = say("other");
  byId("language").lang = language === "en" ? "zh" : "en";
  if (documentation === null) {
    byId("state").textContent = say("loading");
    return;
  }
  byId("version").textContent = documentation.info.version;
  const wanted = byId("filter").value.trim().toLowerCase();
  const groups = new Map(documentation.tags.map(({ name }) => [name, []]));
  for (const [path, methods] of Object.entries(documentation.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      const searched = `${method} ${path} ${operation.summary} ${operation["x-summary-zh"] || ""}`.toLowerCase();
      if (searched.includes(wanted)) groups.get(operation.tags[0]).push(operationBox(method, path, operation));
    }
  }
  const shown = [...groups].filter(([, boxes]) => boxes.length);
  byId("state").textContent = shown.length ? "" : say("none");
  byId("operations").replaceChildren(
    ...shown.flatMap(([name, boxes]) => [element("h2", { textContent: name }), ...boxes]));
  byId("schemas").replaceChildren(...Object.entries(documentation.components.schemas).map(([name, schema]) =>
    element("details", { id: `schema-${name}` }, element("summary", {}, element("code", { textContent: name })),
      element("div", {}, fieldTable(schema),
        element("pre", { textContent: JSON.stringify(schema, null, 2) })))));
  openTarget();
}

function openTarget() {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target && target.tagName === "DETAILS") {
    target.open = true;
    target.scrollIntoView();
  }
}

byId("filter").addEventListener("input", show);
byId("language").addEventListener("click", () => {
  language = language === "en" ? "zh" : "en";
  show();
});
window.addEventListener("hashchange", openTarget);
show();
try {
  const response = await fetch("openapi.json");
  if (!response.ok) throw new Error(`HTTP ${response.status}`);
  documentation = await response.json();
  show();
} catch (error) {
  byId("state").textContent = say("failed") + error.message;
}
