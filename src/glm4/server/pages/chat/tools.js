// Cards of tool calls: a line that says what a step does, and folded below it the code, what it said and its pages.
// Files that it made stand under the fold, always in sight; so does the question whether it may run.

import { callKind, callWords, hostOf, pagesOf, pythonCode } from "./call_words.js";
import { el, fill, html, icon, textButton } from "./dom.js";
import { fileList } from "./files.js";

export { fileCard } from "./files.js";

const KIND_ICONS = { python: "code", browser: "globe", files: "document", image: "image", server: "tool", own: "tool" };
const OPEN_STATES = ["writing", "waiting", "running"];
const DECISIONS = ["once", "always", "never"];
const SHOWN_LINES = 14;
const LONG_CHARS = 1500;
const LONG_ABOUT = 300; // may need scrolling, for which the keyboard needs a place

export function toolCard(app, part, ended = false) {
  const summary = el("summary", {});
  const body = el("div", { class: "tool-body" });
  const fold = el("details", { class: "tool-fold" }, summary, body);
  const card = el("section", { class: "tool-card" }, fold, el("div", { class: "tool-approval" }), el("div", { class: "tool-files" }));
  // A fold that the reader has opened or closed stays as it is.
  summary.onclick = () => { card.dataset.chosen = "true"; };
  body.append(el("div", { class: "tool-code" }), el("div", { class: "tool-pages" }), el("div", { class: "tool-output" }));
  updateToolCard(app, card, part, ended);
  return card;
}

/** Bring a card up to date with its part. Text that grows is only appended to. `ended`: nothing of its turn follows. */
export function updateToolCard(app, card, given, ended = false) {
  const part = ended && isUnfinished(given) ? { ...given, state: "unfinished" } : given;
  const before = card.dataset.state;
  card.dataset.state = part.state;
  showSummary(app, card, part);
  showCode(app, card.querySelector(".tool-code"), part);
  showPages(app, card.querySelector(".tool-pages"), part);
  showOutput(app, card.querySelector(".tool-output"), part);
  if (before !== part.state) showApproval(app, card, part);
  showFiles(app, card.querySelector(".tool-files"), part);
  const open = isOpen(part);
  if (card.dataset.open === String(open)) return;
  card.dataset.open = String(open);
  if (!card.dataset.chosen) card.querySelector(".tool-fold").open = open;
}

/** Whether a call was cut off with its turn. The server calls it failed then, without saying why. */
function isUnfinished({ state, seconds, output = [] }) {
  if (OPEN_STATES.includes(state)) return true;
  return state === "error" && seconds === undefined && !output.some(({ channel }) => channel === "error");
}

/** Open while there is something to follow or to decide on, and where it failed. */
function isOpen(part) {
  if (part.state === "waiting" || part.state === "error") return true;
  if (!["writing", "running"].includes(part.state)) return false;
  return callKind(part) === "python" || (callKind(part) !== "browser" && (part.output ?? []).length > 0);
}

function showSummary(app, card, part) {
  const { title, detail } = callWords(app, part);
  const state = part.state === "done" && part.seconds !== undefined
    ? app.duration(Math.max(part.seconds, 0.1)) : app.t(`tools.state.${part.state}`);
  const said = [title, detail, state].join("\n");
  const summary = card.querySelector("summary");
  if (summary.dataset.said === said) return;
  summary.dataset.said = said;
  fill(summary, icon(KIND_ICONS[callKind(part)]), el("span", { class: "tool-title", text: title }),
    el("span", { class: "tool-detail", text: detail }),
    el("span", { class: "tool-state" }, stateIcon(part.state), el("span", { text: state })),
    el("span", { class: "fold-mark" }, icon("down")));
}

function stateIcon(state) {
  const paths = { __proto__: null, done: "check", error: "warning", denied: "close", unfinished: "close", waiting: "help" }[state];
  return paths ? icon(paths) : el("span", { class: "spinner", "aria-hidden": "true" });
}

function showCode(app, root, part) {
  const python = callKind(part) === "python";
  const text = python ? pythonCode(part) : (part.arguments ?? "");
  root.hidden = text.trim() === "" || text.trim() === "{}";
  if (part.code) {
    if (root.shown !== part.code) html(root, part.code);
    root.shown = part.code;
  } else {
    if (!root.firstChild) root.append(el("pre", { class: "code", tabindex: "0" }, el("code", {})));
    const code = root.querySelector("code");
    grow(code, text);
  }
  root.querySelector("pre")?.setAttribute("aria-label", app.t(python ? "tools.code" : "tools.arguments"));
}

/** Make an element's text this one; only what is new is touched if the rest has stayed. */
function grow(element, text) {
  const before = element.textContent;
  if (before === text) return;
  if (before && text.startsWith(before) && element.lastChild?.nodeType === Node.TEXT_NODE) {
    element.lastChild.appendData(text.slice(before.length));
  } else {
    element.textContent = text;
  }
}

function showPages(app, root, part) {
  if (callKind(part) !== "browser" || OPEN_STATES.includes(part.state) || root.firstChild) return;
  const pages = pagesOf(part);
  if (!pages.length) return;
  const items = pages.map(({ title, url, host, text }) => el("li", {},
    url ? externalLink(app, url, title) : el("span", { class: "page-title", text: title }),
    url ? null : el("span", { class: "host", text: host, dir: "ltr" }),
    text ? el("p", { text }) : null));
  root.append(el("ul", { class: "pages", "aria-label": app.t("tools.pages") }, ...items));
}

/** A link to another site: opens beside the page, tells that site nothing, and shows where it leads. */
export function externalLink(app, url, title) {
  const host = hostOf(url);
  if (!host) return el("span", { class: "page-title", text: title || url });
  return el("a", { class: "external", href: url, target: "_blank", rel: "noopener noreferrer nofollow" },
    el("span", { class: "page-title", text: title || host }), el("span", { class: "host", text: host, dir: "ltr" }),
    icon("external"),
    el("span", { class: "visually-hidden", text: app.t("tools.new_tab") }));
}

function showOutput(app, root, part) {
  const browser = callKind(part) === "browser";
  const outputs = (part.output ?? []).filter(({ channel }) => !(browser && channel === "log")); // the summary says it
  root.hidden = outputs.length === 0;
  outputs.forEach((output, index) => {
    const block = root.children[index] ?? root.appendChild(outputBlock(app, part, output));
    const text = block.querySelector("pre");
    const atEnd = text.scrollHeight - text.scrollTop - text.clientHeight < 24;
    grow(text, output.text);
    const long = output.text.length > LONG_CHARS || output.text.split("\n").length > SHOWN_LINES;
    block.classList.toggle("long", long);
    block.querySelector(".show-all").hidden = !long;
    if (part.state === "running" && atEnd) text.scrollTop = text.scrollHeight;
    if (output.truncated && !block.querySelector(".truncated")) {
      block.append(el("p", { class: "truncated", text: app.t("tools.truncated") }));
    }
  });
  while (root.children.length > outputs.length) root.lastElementChild.remove();
}

function outputBlock(app, part, output) {
  const read = output.channel === "output" && ["browser", "files"].includes(callKind(part));
  const label = app.t(`tools.channel.${read ? "read" : output.channel}`);
  const text = el("pre", { tabindex: "0", role: "group", "aria-label": label, dir: "auto" });
  const block = el("div", { class: "output", data: { channel: output.channel } });
  const all = textButton(app.t("tools.show_all"), () => {
    const open = block.classList.toggle("all");
    all.setAttribute("aria-expanded", open);
    all.textContent = app.t(open ? "tools.show_less" : "tools.show_all");
  }, { class: "text-button show-all", hidden: true, "aria-expanded": "false" });
  block.append(el("span", { class: "channel", text: label, "aria-hidden": "true" }), text, all);
  return block;
}

function showFiles(app, root, part) {
  const files = part.files ?? [];
  if (Number(root.dataset.count ?? 0) === files.length) return;
  root.dataset.count = String(files.length);
  fill(root, files.length ? fileList(app, files) : null);
}

function showApproval(app, card, part) {
  const root = card.querySelector(".tool-approval");
  const had = root.contains(document.activeElement);
  if (part.state !== "waiting") {
    fill(root);
    if (had) card.querySelector("summary").focus({ preventScroll: true });
    return;
  }
  const { title } = callWords(app, part);
  const question = app.t("tools.question", { action: title });
  const about = callKind(part) === "python" ? "" : (part.about ?? ""); // code stands above, in color
  const buttons = DECISIONS.map((decision) => textButton(app.t(`tools.allow_${decision}`), () => decide(app, root, part.call, decision),
    { class: decision === "once" ? "primary" : "" }));
  const group = el("div", { class: "approval", role: "group", tabindex: "-1", "aria-label": question },
    el("p", { class: "approval-question", text: question }),
    about ? el("p", { class: "approval-about", tabindex: about.length > LONG_ABOUT ? "0" : null, text: about }) : null,
    el("div", { class: "approval-buttons" }, ...buttons));
  fill(root, group);
  app.announce(`${question} ${about}`, { assertive: true });
  // To the group, not to a button, so that a key that was meant for something else allows nothing.
  if (isIdle(document.activeElement)) requestAnimationFrame(() => group.focus({ preventScroll: true }));
}

/** Whether nobody minds losing the focus: it is nowhere, or in a text box with no text. */
function isIdle(element) {
  return element === null || element === document.body || (element.id === "composer-text" && !element.value);
}

async function decide(app, root, call, decision) {
  const buttons = root.querySelectorAll("button");
  const disable = (value) => buttons.forEach((button) => button.setAttribute("aria-disabled", value));
  if (buttons[0]?.getAttribute("aria-disabled") === "true") return;
  disable(true);
  if (!(await app.decide(call, decision))) disable(false);
}
