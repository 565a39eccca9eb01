// Elements, drawings, and the page's only Trusted Types policy.
//
// What html() is given must come from the server's renderer, which has cleaned it. Nothing else may be shown with it:
// file names, titles, tool output and errors are text.

// Line drawings of buttons: paths on a 24 × 24 grid, separated by "|".
const ICONS = {
  chart: "M4 20V4|M4 20h16|M8 16l4-5 3 3 5-7",
  check: "M5 12.5l4.5 4.5L19 7.5",
  close: "M6 6l12 12|M18 6L6 18",
  code: "M8.5 7L4 12l4.5 5|M15.5 7l4.5 5-4.5 5",
  copy: "M9 9h10v11H9z|M15 9V4H5v11h4",
  document: "M6 3h8l4 4v14H6z|M14 3v4h4|M9 12h6|M9 16h6",
  down: "M6 9.5l6 6 6-6",
  download: "M12 4v11|M7.5 10.5L12 15l4.5-4.5|M5 20h14",
  edit: "M4 20l1-4L16 5l3 3L8 19z|M14 7l3 3",
  expand: "M9 4H4v5|M4 4l6 6|M15 20h5v-5|M20 20l-6-6",
  external: "M14 4h6v6|M20 4l-9 9|M18 14v6H4V6h6",
  globe: "M12 3a9 9 0 100 18 9 9 0 000-18z|M3 12h18|M12 3c3 3 3 15 0 18c-3-3-3-15 0-18z",
  help: "M12 3a9 9 0 100 18 9 9 0 000-18z|M9.5 9.5a2.5 2.5 0 114 2c-1 .7-1.5 1.2-1.5 2.2|M12 16.8v.2",
  image: "M4 5h16v14H4z|M4 16l5-5 4 4 3-3 4 4|M15 9v.2",
  left: "M14.5 6l-6 6 6 6",
  menu: "M4 7h16|M4 12h16|M4 17h16",
  more: "M6 12v.2|M12 12v.2|M18 12v.2",
  paperclip: "M19 11l-7.5 7.5a4.5 4.5 0 01-6.4-6.4L13 4.3a3 3 0 014.2 4.2l-7.6 7.6a1.5 1.5 0 01-2.1-2.1l6.5-6.5",
  play: "M8 5l11 7-11 7z",
  plus: "M12 5v14|M5 12h14",
  retry: "M19 12a7 7 0 11-2.2-5.1|M19 4v4h-4",
  right: "M9.5 6l6 6-6 6",
  send: "M12 19V6|M6 11.5L12 5.5l6 6",
  settings: "M4 7h9|M17 7h3|M15 5v4|M4 17h3|M11 17h9|M9 15v4",
  sort: "M8 5v14|M4.5 15.5L8 19l3.5-3.5|M16 19V5|M12.5 8.5L16 5l3.5 3.5",
  stop: "M7 7h10v10H7z",
  tool: "M14.5 6.5a4 4 0 015-1l-3 3 .5 2 2 .5 3-3a4 4 0 01-5.5 5L9 20.5 4.5 16l7.5-7.5a4 4 0 012.5-2z",
  upload: "M12 16V5|M7.5 9.5L12 5l4.5 4.5|M5 20h14",
  warning: "M12 4L2.5 20h19z|M12 10v5|M12 17.5v.2",
  wrap: "M4 6h16|M4 12h13a3 3 0 010 6h-4|M15.5 15.5L13 18l2.5 2.5|M4 18h5",
};

const COPIED_MS = 1500;
const GAP = 6; // pixels between a button and what floats beside it
const EDGE = 8;
const SVG = "http://www.w3.org/2000/svg";

const policy = globalThis.trustedTypes
  ? trustedTypes.createPolicy("glm4", { createHTML: (safe) => safe })
  : { createHTML: (safe) => safe };

/** Show HTML that the server has cleaned. */
export function html(element, safe) {
  element.innerHTML = policy.createHTML(safe);
}

/** The element of one block that the server has rendered. */
export function block(safe) {
  const template = document.createElement("template");
  template.innerHTML = policy.createHTML(safe);
  const { content } = template;
  if (content.childNodes.length === 1 && content.firstElementChild) return content.firstElementChild;
  return el("div", {}, content);
}

/**
 * Make an element. Properties: `text`, `data` (an object), `on…` (listeners: functions only), all others are
 * attributes; null, undefined and false leave one out, true makes it empty.
 */
export function el(tag, props = {}, ...children) {
  return filled(document.createElement(tag), props, children);
}

export function svg(tag, props = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), props, children);
}

function filled(element, props, children) {
  if ("text" in props) element.setAttribute("dir", "auto"); // it may be anybody's words
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "text") element.textContent = value;
    else if (name === "data") Object.assign(element.dataset, value);
    else if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...present(children));
  return element;
}

function present(children) {
  return children.flat().filter((child) => child !== null && child !== undefined && child !== false);
}

/** A line drawing, hidden from screen readers. */
export function icon(name) {
  const props = { viewBox: "0 0 24 24", class: "icon", "aria-hidden": "true", focusable: "false" };
  return svg("svg", props, ...ICONS[name].split("|").map((d) => svg("path", { d })));
}

export function iconButton(drawing, label, onclick, { class: more = "", ...others } = {}) {
  return el("button", { type: "button", class: `icon-button ${more}`, title: label, "aria-label": label, onclick,
    ...others }, icon(drawing));
}

export function textButton(text, onclick, props = {}) {
  return el("button", { type: "button", text, onclick, ...props });
}

export function setName(button, label) {
  button.title = label;
  button.setAttribute("aria-label", label);
}

export function byId(id) {
  return document.getElementById(id);
}

export function fill(element, ...children) {
  element.replaceChildren(...present(children));
  return element;
}

/** Copy text; true if that worked. Over plain http browsers have no clipboard API, only the old command. */
async function copyText(text) {
  try {
    if (navigator.clipboard && globalThis.isSecureContext) {
      await navigator.clipboard.writeText(text);
      return true;
    }
  } catch {
    // not allowed; the old command may be
  }
  const before = document.activeElement;
  const area = el("textarea", { class: "visually-hidden", readonly: true, tabindex: "-1", "aria-hidden": "true" });
  area.value = text;
  // In an open dialog everything outside of it is inert.
  (document.querySelector("dialog:modal") ?? document.body).append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  before?.focus?.({ preventScroll: true });
  return copied;
}

export function copyButton(app, label, text, props = {}) {
  const button = iconButton("copy", label, async () => {
    const copied = await copyText(text());
    app.announce(app.t(copied ? "message.copied" : "message.not_copied"));
    if (!copied) {
      app.notice(app.t("message.not_copied"), "error");
      return;
    }
    fill(button, icon("check"));
    setTimeout(() => fill(button, icon("copy")), COPIED_MS);
  }, props);
  return button;
}

/** Let the browser save what is at an address; without a name, as the server calls it. */
export function download(href, name = true) {
  const link = el("a", { href, download: name, hidden: true });
  document.body.append(link);
  link.click();
  link.remove();
}

export function saveText(name, text, type = "text/plain") {
  const url = URL.createObjectURL(new Blob([text], { type: `${type};charset=utf-8` }));
  download(url, name);
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** Open a dialog; the focus goes back to where it was when it closes. Esc closes it. */
export function openDialog(dialog) {
  if (dialog.open) return;
  const before = document.activeElement;
  dialog.addEventListener("close", () => before?.isConnected && before.focus({ preventScroll: true }), { once: true });
  dialog.showModal();
}

/** Place what floats beside an element, within the window: above it, or below it if there is room. */
export function placeBeside(floating, anchor, { above = false, atEnd = false }) {
  const box = anchor.getBoundingClientRect();
  const { offsetWidth: width, offsetHeight: height } = floating;
  const left = atEnd ? box.right - width : box.left;
  const below = box.bottom + GAP;
  const top = above || below + height > innerHeight ? box.top - GAP - height : below;
  floating.style.left = `${Math.max(EDGE, Math.min(left, innerWidth - EDGE - width))}px`;
  floating.style.top = `${Math.max(EDGE, top)}px`;
}

/** Whether a key event belongs to an input method, which must get it. */
export function composing(event) {
  return event.isComposing || event.keyCode === 229;
}

/** An id that nobody else has; crypto.randomUUID exists only in secure contexts. */
export function newId() {
  if (crypto.randomUUID) return crypto.randomUUID();
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Read and keep a value in the browser, or in its tab alone; without storage (private windows) nothing is kept. */
export function stored(key, value, { tab = false } = {}) {
  try {
    const storage = tab ? sessionStorage : localStorage;
    if (value === undefined) return storage.getItem(key);
    if (value === null) storage.removeItem(key);
    else storage.setItem(key, value);
  } catch {
    // the page works without
  }
  return value ?? null;
}

/** The JSON object that is kept; an empty one if there is none, or something that is not ours. */
export function storedObject(key) {
  try {
    return Object(JSON.parse(stored(key) ?? "{}"));
  } catch {
    return {};
  }
}
