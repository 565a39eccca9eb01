// Files that are added to a message before it is sent: by dialog, drop or paste. They go up at once, each on its own.

import { el, fill, icon, iconButton, textButton } from "./dom.js";
import { fileAddress, fileKind } from "./files.js";

const MOST_FILES = 64; // the server's limit for a turn
const SNIFFED_BYTES = 4096;
const READABLE = new Set(`pdf docx pptx xlsx xlsb xls ods epub html htm xhtml md markdown csv tsv tab json ipynb txt svg
  log rtf`.split(/\s+/));
const SOUNDS = { __proto__: null, mp3: "audio/mpeg", wav: "audio/wav", ogg: "audio/ogg", oga: "audio/ogg", opus: "audio/ogg",
  flac: "audio/flac", m4a: "audio/mp4", aac: "audio/aac", weba: "audio/webm" };

/**
 * The files of the message that is being written, in the list `tray`. onRefused is told why a file is not among them,
 * onText the text of a pasted one that the user wants in the message instead.
 */
export function attachments(app, tray, { onChange, onRefused, onText }) {
  const taking = new Set(); // files that are being looked at
  let items = [];

  function changed() {
    tray.hidden = items.length === 0;
    onChange();
  }

  function add(files, options) {
    const done = take(files, options).finally(() => {
      taking.delete(done);
      changed();
    });
    taking.add(done);
    return done;
  }

  async function take(files, { pasted = null } = {}) {
    for (const file of files) {
      const refusal = await refusalOf(app, file, items.length);
      if (refusal) {
        onRefused(refusal);
        continue;
      }
      const item = { name: file.name, size: file.size, type: await typeOf(file), file, pasted, progress: 0 };
      if (fileKind(item.type) === "picture") item.url = URL.createObjectURL(file);
      append(item);
      item.done = send(item);
    }
  }

  function append(item) {
    item.element = el("li", { class: "attachment" });
    items.push(item);
    tray.append(item.element);
    draw(item);
    changed();
  }

  async function send(item) {
    item.error = null;
    item.abort = new AbortController();
    draw(item);
    try {
      const stored = await app.api.upload(item.file, (share) => showProgress(item, share), item.abort.signal);
      if (items.some((other) => other !== item && other.stored?.file === stored.file)) {
        onRefused(app.t("composer.twice", { name: item.name }));
        remove(item);
        return;
      }
      Object.assign(item, { stored, type: stored.media_type, file: null });
      app.announce(app.t("composer.uploaded", { name: item.name }));
    } catch (error) {
      if (error.name === "AbortError") return;
      item.error = app.errorText(error);
      app.announce(item.error, { assertive: true });
    }
    draw(item);
    changed();
  }

  function showProgress(item, share) {
    item.progress = share;
    const bar = item.element.querySelector("progress");
    if (bar) bar.value = share;
  }

  function remove(item) {
    item.abort?.abort();
    if (item.url) URL.revokeObjectURL(item.url);
    const at = items.indexOf(item);
    items = items.filter((one) => one !== item);
    const focused = item.element.contains(document.activeElement);
    item.element.remove();
    if (focused) (tray.children[Math.min(at, items.length - 1)]?.querySelector("button:last-child") ?? tray.focusAfter)?.focus();
    changed();
  }

  function draw(item) {
    const focused = document.activeElement?.dataset?.action;
    const kept = focused && item.element.contains(document.activeElement);
    const problem = item.stored ? problemOf(app, item) : null;
    const sending = !item.stored && !item.error;
    item.element.dataset.state = sending ? "sending" : item.error || problem ? "problem" : "ready";
    fill(item.element, preview(item),
      el("span", { class: "attachment-text" },
        el("span", { class: "attachment-name", text: item.name, title: item.name }),
        sending
          ? el("progress", { max: "1", value: item.progress, "aria-label": app.t("composer.uploading", { name: item.name }) })
          : el("span", { class: "attachment-about", text: item.error ?? problem?.short ?? noteOf(app, item) ?? app.bytes(item.size) })),
      item.error && item.file ? action(item, "retry", "retry", "composer.retry", () => { item.done = send(item); }) : null,
      item.pasted !== null ? asText(item) : null,
      action(item, "remove", "close", "composer.remove", () => remove(item)));
    if (kept) item.element.querySelector(`[data-action="${focused}"]`)?.focus();
  }

  function action(item, name, paths, key, run) {
    return iconButton(paths, app.t(key, { name: item.name }), run, { "data-action": name });
  }

  function asText(item) {
    return textButton(app.t("composer.as_text"), () => {
      remove(item);
      onText(item.pasted);
    }, { class: "text-button", data: { action: "text" } });
  }

  function preview(item) {
    const source = item.url ?? (item.stored && fileKind(item.type) === "picture" ? fileAddress(item.stored) : null);
    if (source) return el("img", { class: "attachment-preview", src: source, alt: "" });
    return el("span", { class: "attachment-preview" }, icon(fileKind(item.type) === "audio" ? "play" : "document"));
  }

  return {
    add,
    redraw: () => items.forEach(draw),
    get size() { return items.length; },
    /** What keeps the message from being sent, in words; null if nothing does. */
    problem: () => items.map((item) => item.error ?? (item.stored && problemOf(app, item)?.long)).find(Boolean) ?? null,
    async settled() {
      await Promise.allSettled(taking);
      await Promise.allSettled(items.map((item) => item.done));
    },
    sending: () => taking.size > 0 || items.some((item) => !item.stored && !item.error),
    /** Files that the server has, as it describes them. */
    files: () => items.filter((item) => item.stored).map((item) => item.stored),
    restore(files) {
      for (const item of [...items]) remove(item);
      for (const stored of files) {
        append({ name: stored.name, size: stored.bytes, type: stored.media_type, stored, pasted: null });
      }
    },
  };
}

async function refusalOf(app, file, count) {
  const most = app.session?.max_upload_bytes;
  if (count >= MOST_FILES) return app.t("composer.refused_count", { name: file.name, most: MOST_FILES });
  if (file.size === 0) return app.t("composer.refused_empty", { name: file.name });
  if (most && file.size > most) {
    return app.t("composer.refused_size", { name: file.name, size: app.bytes(file.size), most: app.bytes(most) });
  }
  try {
    await file.slice(0, 1).arrayBuffer();
  } catch { // a folder that was dropped, or a file that is gone
    return app.t("composer.refused_unreadable", { name: file.name });
  }
  return null;
}

/** What keeps the chosen model from using a file, {short, long}; the server would refuse the whole message. */
function problemOf(app, { type, name }) {
  const kind = fileKind(type);
  const model = app.model();
  if (kind === "document" || (kind === "picture" && model?.sees) || app.settings.tools.includes("python")) return null;
  const values = { model: model?.name ?? "", name };
  if (kind === "picture") return { short: app.t("composer.unseen_short"), long: app.t("composer.unseen", values) };
  if (kind === "other") return { short: app.t("composer.unread_short"), long: app.t("composer.unread", values) };
  return { short: app.t("composer.unheard_short"), long: app.t("composer.unheard", values) };
}

/** What becomes of a file that the model itself cannot take. */
function noteOf(app, { type }) {
  const kind = fileKind(type);
  const taken = kind === "document" || (kind === "picture" && app.model()?.sees);
  return taken ? null : app.t("composer.for_python");
}

/** What a file is until the server says: the browser's word, its name's ending, or whether it looks like text. */
async function typeOf(file) {
  const ending = file.name.split(".").pop().toLowerCase();
  if (SOUNDS[ending]) return SOUNDS[ending];
  if (/^(image|audio|video)\//.test(file.type)) return file.type;
  if (READABLE.has(ending)) return file.type || "text/plain";
  const head = new Uint8Array(await file.slice(0, SNIFFED_BYTES).arrayBuffer());
  return head.includes(0) ? "application/octet-stream" : "text/plain";
}
