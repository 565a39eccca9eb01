// Elements, and the page's only Trusted Types policy.
//
// What html() is given must come from the server's renderer, which has cleaned it. Nothing else may be shown with it:
// file names, titles, tool output and errors are text.

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
 * Make an element. Properties: `class`, `text`, `data` and `aria` (objects), `on…` (listeners: functions only), all
 * others are attributes; null, undefined and false leave one out, true makes it empty.
 */
export function el(tag, props = {}, ...children) {
  return filled(document.createElement(tag), props, children);
}

/** As `el`, for SVG. */
export function svg(tag, props = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), props, children);
}

function filled(element, props, children) {
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "class") element.setAttribute("class", value);
    else if (name === "text") element.textContent = value;
    else if (name === "data") Object.assign(element.dataset, value);
    else if (name === "aria") for (const [key, one] of Object.entries(value)) element.setAttribute(`aria-${key}`, one);
    else if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** A line drawing from icons.js, hidden from screen readers. */
export function icon(paths) {
  const props = { viewBox: "0 0 24 24", class: "icon", "aria-hidden": "true", focusable: "false" };
  return svg("svg", props, ...paths.split("|").map((d) => svg("path", { d })));
}

/** A button that shows an icon and has a name. */
export function iconButton(paths, label, onclick, props = {}) {
  const { class: more = "", ...others } = props;
  return el("button", { type: "button", class: `icon-button ${more}`, title: label, "aria-label": label, onclick,
    ...others }, icon(paths));
}

/** Replace what an element has. */
export function fill(element, ...children) {
  element.replaceChildren(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Copy text; true if that worked. Over plain http browsers have no clipboard API, only the old command. */
export async function copyText(text) {
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
  let copied = false;
  try {
    copied = document.execCommand("copy");
  } catch {
    copied = false;
  }
  area.remove();
  before?.focus?.({ preventScroll: true });
  return copied;
}

/** Let the browser save text as a file. */
export function saveText(name, text, type = "text/plain") {
  const url = URL.createObjectURL(new Blob([text], { type: `${type};charset=utf-8` }));
  const link = el("a", { href: url, download: name, hidden: true });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** Open a dialog; the focus goes back to where it was when it closes. Esc closes it. */
export function openDialog(dialog) {
  if (dialog.open) return;
  const before = document.activeElement;
  dialog.addEventListener("close", () => before?.isConnected && before.focus({ preventScroll: true }), { once: true });
  dialog.showModal();
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
