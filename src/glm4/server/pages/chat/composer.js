// The text box: input methods, drafts, files by dialog, drop and paste, send and stop.

import { attachments } from "./attachments.js";
import { byId, composing, el, fill, icon, iconButton, setName, stored, storedObject } from "./dom.js";

const DRAFTS = "glm4.drafts";
const MOST_DRAFTS = 20;
const MOST_DRAFT_CHARS = 50_000;
const LONG_PASTE_CHARS = 6000;
const SAVE_AFTER = 300;
const NEW = "new"; // the draft of a conversation that does not exist yet

export function setupComposer(app) {
  const form = byId("composer");
  const tray = el("ul", { class: "attachments", hidden: true });
  const text = el("textarea", { id: "composer-text", rows: "1", dir: "auto", enterkeyhint: "send", autocomplete: "off",
    "data-t-placeholder": "composer.placeholder", "data-t-label": "composer.text" });
  const picker = el("input", { type: "file", multiple: true, hidden: true, tabindex: "-1", "data-t-label": "composer.attach" });
  const attach = iconButton("paperclip", "", () => picker.click(), { id: "composer-attach", "data-t-label": "composer.attach" });
  const button = el("button", { type: "submit", id: "composer-send", class: "icon-button" });
  const hint = el("p", { id: "composer-hint", role: "status", hidden: true });
  fill(form, el("div", { class: "composer-box" }, tray, hint,
    el("div", { class: "composer-row" }, attach, picker, text, button)));
  tray.focusAfter = text;
  text.setAttribute("aria-describedby", hint.id);

  const added = attachments(app, tray, { onChange: changed, onRefused: refuse, onText: insert });
  let shown = NEW; // whose draft is in the box
  let running = false;
  let stopping = false;
  let waiting = false; // for uploads, before the message goes
  let refused = ""; // why the files that were added last are not there
  let timer = 0;

  function refuse(words) {
    refused = [refused, words].filter(Boolean).join(" ");
    app.announce(words, { assertive: true });
    changed();
  }

  function changed() {
    if (!CSS.supports("field-sizing", "content")) grow(text);
    if (waiting && added.sending()) showHint(app.t("composer.waiting"), false);
    else showHint([refused, added.problem()].filter(Boolean).join(" "));
    showButton();
    clearTimeout(timer);
    timer = setTimeout(save, SAVE_AFTER);
  }

  function showHint(words, problem = true) {
    hint.hidden = !words;
    hint.classList.toggle("problem", problem);
    if (hint.textContent !== (words ?? "")) hint.textContent = words ?? "";
  }

  function showButton() {
    const label = app.t(stopping ? "status.stopping" : running ? "composer.stop" : "composer.send");
    button.classList.toggle("stop", running);
    setName(button, label);
    button.setAttribute("aria-disabled", stopping || (!running && !text.value.trim() && added.size === 0));
    fill(button, icon(running ? "stop" : "send"));
  }

  function save() {
    clearTimeout(timer);
    writeDraft(shown, { text: text.value, files: added.files() });
  }

  function insert(words) {
    text.focus();
    // The old command is the only one that the browser's own undo knows.
    if (!document.execCommand?.("insertText", false, words)) text.setRangeText(words, text.selectionStart, text.selectionEnd, "end");
    changed();
  }

  async function submit() {
    if (running) {
      app.announce(app.t("composer.busy"));
      return;
    }
    if (waiting || (!text.value.trim() && added.size === 0)) return;
    if (added.sending()) {
      waiting = true;
      changed();
      await added.settled();
      waiting = false;
      changed();
      if (running) return;
    }
    const problem = added.problem();
    if (problem) {
      showHint(problem);
      app.announce(problem, { assertive: true });
      return;
    }
    await send({ text: text.value.trim(), files: added.files() });
  }

  async function send(message) {
    if (!(await app.send(message))) return; // what becomes of it from here on is shown with it
    text.value = "";
    added.restore([]);
    changed();
    save();
  }

  function add(files, options) {
    refused = "";
    text.focus();
    return added.add(files, options);
  }

  function stop() {
    if (stopping) return;
    stopping = true;
    showButton();
    app.stop();
  }

  function show(draft) {
    text.value = draft.text;
    added.restore(draft.files);
    changed();
  }

  /** Another conversation is shown, or the new one has got its id. */
  function follow({ switched }) {
    const next = app.state.id ?? NEW;
    if (next === shown) return;
    save();
    if (!switched) writeDraft(shown, { text: "", files: [] });
    shown = next;
    if (switched) show(storedObject(DRAFTS)[shown] ?? { text: "", files: [] });
    else save();
  }

  form.onsubmit = (event) => {
    event.preventDefault();
    if (running) stop();
    else submit();
  };
  text.oninput = () => {
    refused = "";
    changed();
  };
  text.onkeydown = (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.altKey || composing(event)) return;
    event.preventDefault();
    submit();
  };
  picker.onchange = () => {
    add([...picker.files]);
    picker.value = "";
  };
  text.onpaste = (event) => paste(app, event, add);
  setupDrop(app, add);

  app.on("conversation", follow);
  app.on("turn", (turn) => {
    running = turn.running;
    stopping = false;
    showButton();
  });
  app.on("settings language", () => {
    added.redraw();
    changed();
  });
  app.on("session", () => {
    if (app.session.login && !app.session.user) stored(DRAFTS, null); // for whoever sits here next
  });
  addEventListener("pagehide", save);
  // What floats stays above the box.
  new ResizeObserver(() => document.documentElement.style.setProperty("--composer-height", `${form.offsetHeight}px`)).observe(form);
  app.translate(form);
  /** A message that was not sent comes back: in front of what has been typed since. */
  app.on("draft", (draft) => {
    show({ text: [draft.text, text.value.trim()].filter(Boolean).join("\n\n"), files: [...draft.files, ...added.files()] });
    text.focus();
  });
  show(storedObject(DRAFTS)[shown] ?? { text: "", files: [] });
}

function paste(app, event, add) {
  const data = event.clipboardData;
  const words = data.getData("text/plain");
  const files = [...data.files];
  if (files.length && !words) { // office programs send a picture of the text along with it
    event.preventDefault();
    add(files.map((file) => named(app, file)));
  } else if (words.length > LONG_PASTE_CHARS) {
    event.preventDefault();
    const name = app.t("composer.pasted_name", { number: stamp() });
    add([new File([words], `${name}.txt`, { type: "text/plain" })], { pasted: words });
    app.announce(app.t("composer.pasted"));
  }
}

/** Browsers call every picture from the clipboard "image.png". */
function named(app, file) {
  if (!/^image\.\w+$/.test(file.name)) return file;
  const ending = file.name.split(".").pop();
  return new File([file], `${app.t("composer.picture_name", { number: stamp() })}.${ending}`, { type: file.type });
}

function stamp() {
  return new Date().toTimeString().slice(0, 8).replaceAll(":", "");
}

function setupDrop(app, add) {
  const shade = el("div", { id: "drop-shade", hidden: true }, icon("upload"), el("p", { "data-t": "composer.drop" }));
  document.body.append(shade);
  app.translate(shade);
  let depth = 0;
  const hasFiles = (event) => event.dataTransfer?.types.includes("Files") && !document.querySelector("dialog:modal");
  const on = (type, run) => document.addEventListener(type, (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault(); // or the browser goes to the file
    run(event);
    shade.hidden = depth <= 0;
  });
  on("dragenter", () => { depth += 1; });
  on("dragleave", () => { depth -= 1; });
  on("dragover", (event) => { event.dataTransfer.dropEffect = "copy"; });
  on("drop", (event) => {
    depth = 0;
    add([...event.dataTransfer.files]);
  });
}

function grow(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight}px`;
}

/** Drafts are {conversation: {text, files, at}}; the oldest of many are forgotten. */
function writeDraft(id, { text, files }) {
  const drafts = storedObject(DRAFTS);
  if (!drafts[id] && !text && !files.length) return;
  delete drafts[id];
  if (text || files.length) drafts[id] = { text: text.slice(0, MOST_DRAFT_CHARS), files, at: Date.now() };
  const newest = Object.entries(drafts).sort((a, b) => b[1].at - a[1].at).slice(0, MOST_DRAFTS);
  stored(DRAFTS, newest.length ? JSON.stringify(Object.fromEntries(newest)) : null);
}
