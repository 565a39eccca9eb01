// The system prompt, and the library of saved ones.

import { el, fill, textButton } from "./dom.js";

const WAIT = 600; // milliseconds after the last key
const PATH = "v1/agent/prompts";

/** {element, show(text), flush()}; `change(text)` is called a moment after the last key, and by flush(). */
export function systemEditor(app, change) {
  const text = el("textarea", { id: "system-text", rows: "4", dir: "auto", "aria-describedby": "system-help" });
  const saved = el("select", { id: "system-saved" });
  const save = textButton(app.t("prompts.save"), () => saveAs(editor));
  const remove = textButton(app.t("prompts.delete"), () => removePrompt(editor));
  const editor = { app, text, saved, remove, prompts: [], timer: 0, change };
  text.oninput = () => {
    clearTimeout(editor.timer);
    editor.timer = setTimeout(() => flush(editor), WAIT);
    showWhichIsUsed(editor);
  };
  saved.onchange = () => {
    const prompt = editor.prompts.find((one) => one.id === saved.value);
    text.value = prompt?.text ?? "";
    remove.disabled = !prompt;
    change(text.value);
    app.announce(app.t(prompt ? "prompts.loaded" : "prompts.cleared"));
  };
  loadPrompts(editor);
  const element = el("div", { class: "system" },
    el("div", { class: "field" }, el("label", { for: "system-saved" }, app.t("prompts.saved")), saved, save, remove),
    el("label", { for: "system-text", class: "visually-hidden" }, app.t("settings.system")), text,
    el("p", { class: "help", id: "system-help" }, app.t("prompts.help")));
  return {
    element,
    flush: () => flush(editor),
    show(value) {
      if (editor.timer || text === document.activeElement) return; // being typed
      text.value = value;
      showWhichIsUsed(editor);
    },
  };
}

function flush(editor) {
  if (!editor.timer) return;
  clearTimeout(editor.timer);
  editor.timer = 0;
  editor.change(editor.text.value);
}

async function loadPrompts(editor) {
  try {
    editor.prompts = (await editor.app.api.get(PATH)).prompts;
  } catch (error) {
    editor.app.fail(error);
  }
  showWhichIsUsed(editor);
}

/** The saved prompt that has this text; "own words" if none has. */
function showWhichIsUsed({ app, text, saved, remove, prompts }) {
  const used = prompts.find((one) => one.text === text.value);
  const own = text.value && !used ? el("option", { value: "own", disabled: true }, app.t("prompts.own")) : null;
  fill(saved, el("option", { value: "" }, app.t("prompts.none")), own,
    prompts.map((one) => el("option", { value: one.id }, one.name)));
  saved.value = used ? used.id : own ? "own" : "";
  remove.disabled = !used;
}

/** Save the text under a name; the name of another one replaces that. */
async function saveAs(editor) {
  const { app, text } = editor;
  flush(editor);
  if (!text.value.trim()) {
    app.notice(app.t("prompts.empty"));
    return;
  }
  const known = editor.prompts.find((one) => one.id === editor.saved.value);
  const name = (await app.ask({ title: app.t("prompts.name"), confirm: app.t("prompts.save_action"),
    input: known?.name ?? "" }))?.trim();
  if (!name) return;
  const same = editor.prompts.find((one) => one.name === name);
  await change(editor, () => (same ? app.api.put(`${PATH}/${same.id}`, { text: text.value })
    : app.api.post(PATH, { name, text: text.value })), app.t("prompts.saved_as", { name }));
}

async function removePrompt(editor) {
  const { app, saved, prompts } = editor;
  const prompt = prompts.find((one) => one.id === saved.value);
  if (!prompt) return;
  const agreed = await app.ask({ title: app.t("prompts.delete_title"),
    text: app.t("prompts.delete_text", { name: prompt.name }), confirm: app.t("prompts.delete"), danger: true });
  if (agreed) await change(editor, () => app.api.del(`${PATH}/${prompt.id}`), app.t("prompts.deleted", { name: prompt.name }));
}

async function change(editor, act, said) {
  const { app } = editor;
  try {
    await act();
    app.announce(said);
  } catch (error) {
    app.fail(error);
  }
  await loadPrompts(editor);
}
