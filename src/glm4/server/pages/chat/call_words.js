// What a tool call does, in words, for the summary line of its card; and what its arguments and its output say.
// Arguments come as the model writes them: JSON that may be cut anywhere, or GLM-4's own forms (code, search("…")).

const KINDS = {
  __proto__: null, // names come from models: "constructor" is not a tool
  python: "python",
  simple_browser: "browser",
  browser_search: "browser",
  browser_click: "browser",
  browser_open: "browser",
  search_files: "files",
  read_file: "files",
  cogview: "image",
  generate_image: "image",
};
const TENSES = { done: "past", error: "past", denied: "ask", unfinished: "ask", waiting: "ask" };
const DETAIL_CHARS = 120;

/** "python", "browser", "files", "image", "server" (an MCP server's function) or "own" (a function of the operator). */
export function callKind(part) {
  return KINDS[part.tool] ?? (part.tool?.includes("__") ? "server" : "own");
}

/**
 * {title, detail}: words in the tense of the call's state ("Running Python", "Ran Python", "run Python" while it has
 * not begun), and what it is about, shortened.
 */
export function callWords(app, part) {
  const tense = TENSES[part.state] ?? "now";
  const { words, values = {}, detail = "" } = READERS[callKind(part)](part);
  return { title: app.t(`call.${words}.${tense}`, values), detail: shortened(detail) };
}

/** The code of a python call, as far as it is written. */
export function pythonCode(part) {
  const text = part.arguments ?? "";
  return /^\s*\{\s*("|$)/.test(text) ? (stringField(text, "code") ?? text) : text;
}

/** The text field of JSON that may end anywhere; null if it has not begun. */
export function stringField(text, name) {
  const found = new RegExp(`"${name}"\\s*:\\s*"((?:[^"\\\\]|\\\\.)*)`, "s").exec(text);
  if (!found) return null;
  for (const written of [found[1], found[1].replace(/\\(?:u[0-9a-fA-F]{0,3})?$/, "")]) {
    try {
      return JSON.parse(`"${written.replace(/[\u0000-\u001f]/g, (c) => JSON.stringify(c).slice(1, -1))}"`);
    } catch {
      // the next form
    }
  }
  return found[1];
}

/** Pages that a browser call's output names: [{n, title, host, url, text}]; empty if it says something else. */
export function pagesOf(part) {
  const text = (part.output ?? []).filter((one) => one.channel === "output").map((one) => one.text).join("");
  const found = [];
  for (const result of text.matchAll(/^ ?# 【(\d+)†([^\n]*)†([^†\n]*)】\n([\s\S]*?)(?=\n ?# 【|\nVisible: |$)/gm)) {
    found.push({ n: Number(result[1]), title: result[2], host: result[3], text: result[4].trim() });
  }
  for (const page of text.matchAll(/^TITLE: ([^\n]*)\nURL: (https?:\/\/\S+)\nCite it as 【(\d+)/gm)) {
    found.push({ n: Number(page[3]), title: page[1], url: page[2], host: hostOf(page[2]) });
  }
  return found;
}

/** The host of an address, as the network knows it (punycode); "" if it is none that may be opened. */
export function hostOf(url) {
  try {
    const read = new URL(url);
    return ["http:", "https:"].includes(read.protocol) ? read.host : "";
  } catch {
    return "";
  }
}

function shortened(text) {
  const line = text.trim().split("\n", 1)[0];
  return line.length > DETAIL_CHARS ? `${line.slice(0, DETAIL_CHARS)}…` : line;
}

function fieldsOf(text) {
  try {
    const read = JSON.parse(text || "{}");
    return typeof read === "object" && read !== null && !Array.isArray(read) ? read : {};
  } catch {
    return {};
  }
}

function listed(fields) {
  return Object.entries(fields)
    .map(([name, value]) => `${name}: ${typeof value === "string" ? value : JSON.stringify(value)}`)
    .join(", ");
}

function browserCall(part) {
  const { tool, arguments: text = "" } = part;
  const raw = tool === "simple_browser";
  const name = raw ? (/(search|mclick|open_url)\s*[(（]/.exec(text)?.[1] ?? "search") : tool;
  const first = /["'“‘「]([^"'”’」]*)/.exec(text)?.[1];
  if (name.endsWith("search")) {
    return { words: "search", detail: (raw ? first : stringField(text, "query")) ?? "" };
  }
  if (name.endsWith("click")) {
    const hosts = new Set(pagesOf(part).map(({ host }) => host));
    if (hosts.size) return { words: "click", detail: [...hosts].join(", ") };
    const numbers = /[[(（]\s*([\d,，、\s]+)/.exec(text.slice(text.indexOf(raw ? "mclick" : "ids")))?.[1];
    return { words: "click", detail: numbers?.match(/\d+/g)?.join(", ") ?? "" };
  }
  const url = (raw ? (first ?? /https?:[^\s"')]+/.exec(text)?.[0]) : stringField(text, "url")) ?? "";
  return { words: "open", detail: hostOf(url) || url };
}

function filesCall({ tool, arguments: text = "" }) {
  if (tool === "search_files") return { words: "find_files", detail: stringField(text, "query") ?? "" };
  const { page } = fieldsOf(text);
  const words = page === undefined ? "read_file" : "read_page";
  return { words, values: { page }, detail: stringField(text, "name") ?? "" };
}

const READERS = {
  python: (part) => ({ words: "python", detail: /^\s*#+\s*([^\n]*)/.exec(pythonCode(part))?.[1] ?? "" }),
  browser: browserCall,
  files: filesCall,
  image: ({ tool, arguments: text = "" }) => {
    return { words: "image", detail: (tool === "cogview" ? text : stringField(text, "prompt")) ?? "" };
  },
  server: ({ tool, arguments: text }) => {
    const [, server, name] = /^(.*?)__(.*)$/s.exec(tool);
    return { words: "server", values: { server, name }, detail: listed(fieldsOf(text)) };
  },
  own: ({ tool, arguments: text }) => ({ words: "own", values: { name: tool ?? "" }, detail: listed(fieldsOf(text)) }),
};
