// What screen readers are told, and the keys of the page.
//
// The transcript is not a live region: reading every change aloud makes an answer impossible to follow.

import { byId, composing, el, fill, openDialog } from "./dom.js";
import { sourceOf } from "./state.js";

const EVERY = 7000;

/** Adds announce and shortcut to the app. */
export function setupAccessibility(app) {
  const polite = byId("status");
  const urgent = byId("alert");
  const dialog = byId("shortcuts-dialog");
  const shortcuts = [];

  app.announce = (text, { assertive = false } = {}) => {
    const region = assertive ? urgent : polite;
    region.textContent = "";
    // The same text twice is not a change; an empty moment in between is.
    setTimeout(() => { region.textContent = text; }, 50);
  };

  /** Add a key: "ctrl+shift+o" (ctrl is also ⌘), or one character, which does not work in text fields. */
  app.shortcut = (keys, label, run) => shortcuts.push({ keys, label, run, parts: keys.split("+") });

  function matches(event, parts) {
    const wanted = new Set(parts.slice(0, -1));
    const ctrl = event.ctrlKey || event.metaKey;
    if (ctrl !== wanted.has("ctrl") || event.altKey) return false;
    const key = parts.at(-1);
    if (key.length === 1 && !ctrl) return event.key === key; // "?" is typed with shift somewhere
    return event.shiftKey === wanted.has("shift") && event.key.toLowerCase() === key;
  }

  document.addEventListener("keydown", (event) => {
    // A dialog has keys of its own: Esc closes it, and nothing behind it.
    if (composing(event) || event.defaultPrevented || document.querySelector("dialog:modal")) return;
    const typing = event.target.closest?.("input, textarea, select, [contenteditable]");
    for (const { parts, run } of shortcuts) {
      if (!matches(event, parts)) continue;
      if (parts.length === 1 && parts[0].length === 1 && typing) continue;
      if (run(event) !== false) event.preventDefault();
      return;
    }
  });

  function showShortcuts() {
    const rows = shortcuts.filter(({ label }) => label).map(({ keys, label }) =>
      el("div", { class: "shortcut" }, el("dt", {}, ...keyCaps(app, keys)), el("dd", { text: app.t(label) })));
    fill(byId("shortcuts-list"), ...rows);
    openDialog(dialog);
  }

  app.shortcut("?", "key.shortcuts", showShortcuts);
  announceTurns(app);
}

function keyCaps(app, keys) {
  return keys.split("+").map((key) => el("kbd", { text: app.has(`keycap.${key}`) ? app.t(`keycap.${key}`) : key.toUpperCase() }));
}

/** Says that an answer is being written, now and then, and what it is once it is there. */
function announceTurns(app) {
  let timer = 0;
  let phase = "";

  function say() {
    const message = app.state.runningMessage();
    if (!message) return;
    const waiting = message.parts.find((part) => part.kind === "tool" && part.state === "waiting");
    const running = message.parts.find((part) => part.kind === "tool" && part.state === "running");
    if (waiting) app.announce(app.t("a11y.waiting", { tool: waiting.tool }));
    else if (running) app.announce(app.t("a11y.tool", { tool: running.tool }));
    else app.announce(app.t(`progress.${message.progress?.phase ?? "generate"}`));
  }

  app.on("turn", ({ running, message }) => {
    clearInterval(timer);
    if (running) {
      phase = message?.id ?? "";
      timer = setInterval(say, EVERY);
      say();
      return;
    }
    if (!message || phase !== message.id) return;
    phase = "";
    const text = sourceOf(message).replace(/[*#|\x60]+/g, "").trim(); // marks of Markdown that would be spelled out
    const status = app.t(`status.${message.status}`);
    app.announce(text && message.status === "completed" ? app.t("a11y.answer", { text }) : status,
      { assertive: message.status === "error" });
  });
}
