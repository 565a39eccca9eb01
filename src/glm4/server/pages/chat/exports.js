// Conversations as files, and back. A file of several is a JSON array of them: so are OpenAI's exports, and ours.

import { byId, download, el, fill, openDialog, saveText, textButton } from "./dom.js";
import { openMenu } from "./menu.js";

const FORMATS = ["json", "markdown", "html"];
const PAGE = 100;
const SHOWN = 20; // failures that are listed

export function exportItems(app, conversation) {
  return FORMATS.map((format) => ({
    label: app.t(`export.${format}`),
    act: () => download(`${pathOf(conversation.id)}?format=${format}`),
  }));
}

export function openListMenu(app, button) {
  openMenu(button, app.t("sidebar.list_menu"), [
    { label: app.t("import.open"), act: () => chooseFiles(app) },
    { label: app.t("export.all"), act: () => exportAll(app) },
  ]);
}

function pathOf(id) {
  return `v1/agent/conversations/${encodeURIComponent(id)}/export`;
}

async function exportAll(app) {
  const progress = progressDialog(app, app.t("export.all"));
  const parts = [];
  try {
    const listed = await allConversations(app);
    for (const [index, { id }] of listed.entries()) {
      progress.show(index, listed.length);
      if (progress.ended) return;
      try {
        parts.push(JSON.stringify(await app.api.get(pathOf(id))));
      } catch (error) {
        if (error.status !== 404) throw error; // deleted in the meantime
      }
    }
  } catch (error) {
    app.fail(error);
    return;
  } finally {
    progress.close();
  }
  saveText("conversations.json", `[${parts.join(",\n")}]\n`, "application/json");
}

async function allConversations(app) {
  const found = [];
  for (;;) {
    const after = found.length ? `&after=${found.at(-1).id}` : "";
    const { conversations } = await app.api.get(`v1/agent/conversations?limit=${PAGE}${after}`);
    if (!conversations.length) return found;
    found.push(...conversations);
  }
}

function chooseFiles(app) {
  const input = el("input", { type: "file", accept: ".json,application/json", multiple: true });
  input.onchange = () => importFiles(app, [...input.files]);
  input.click();
}

/** Import exports of ours, or OpenAI's conversations.json, and say what came of it. */
export async function importFiles(app, files) {
  const progress = progressDialog(app, app.t("import.title"));
  const outcome = { imported: [], failed: [] };
  for (const file of files) {
    const documents = await read(app, file, outcome);
    for (const [index, one] of documents.entries()) {
      if (progress.ended) break;
      progress.show(index, documents.length);
      const name = documents.length > 1 ? `${file.name}: ${one?.title || index + 1}` : file.name;
      try {
        outcome.imported.push(await app.api.post("v1/agent/conversations", one));
      } catch (error) {
        outcome.failed.push({ name, reason: app.errorText(error) });
      }
    }
  }
  app.emit("list");
  app.tell({});
  progress.finish(report(app, outcome));
  if (outcome.imported.length === 1 && !outcome.failed.length) app.open(outcome.imported[0].id);
}

/** The conversations of a file: the elements of an array, else one. */
async function read(app, file, { failed }) {
  try {
    const document = JSON.parse(await file.text());
    return Array.isArray(document) ? document : [document];
  } catch {
    failed.push({ name: file.name, reason: app.t("import.not_json") });
    return [];
  }
}

function report(app, { imported, failed }) {
  const said = el("p", { role: "status" }, app.t("import.done", { count: imported.length }));
  if (!failed.length) return [said];
  const rows = failed.slice(0, SHOWN).map(({ name, reason }) =>
    el("li", {}, el("strong", { text: name }), " ", reason));
  const more = failed.length > SHOWN ? el("li", {}, app.t("import.more", { count: failed.length - SHOWN })) : null;
  return [said, el("p", { class: "error" }, app.t("import.failed", { count: failed.length })),
    el("ul", { class: "failures" }, rows, more)];
}

/** A dialog that says how far something is. Closing it ends what runs: `ended`. */
function progressDialog(app, title) {
  const bar = el("progress", { max: "1", "aria-label": title });
  const text = el("p", { role: "status" });
  const body = el("div", {}, bar, text);
  const button = textButton(app.t("dialog.cancel"), () => dialog.close());
  const dialog = byId("progress-dialog");
  fill(dialog, el("h2", { id: "progress-title" }, title), body, el("div", { class: "dialog-foot" }, button));
  const progress = {
    ended: false,
    show(done, total) {
      bar.value = done / total;
      text.textContent = app.t("import.running", { done, total });
    },
    close: () => dialog.close(),
    finish(said) {
      if (progress.ended) return;
      fill(body, said);
      button.textContent = app.t("dialog.close");
      button.focus();
    },
  };
  dialog.onclose = () => { progress.ended = true; };
  openDialog(dialog);
  return progress;
}
