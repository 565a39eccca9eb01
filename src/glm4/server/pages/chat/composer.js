// The text box: input methods, drafts, attachments, send and stop.

import { composing, el } from "./dom.js";

export function setupComposer(app) {
  const form = document.getElementById("composer");
  const text = el("textarea", { id: "composer-text", rows: "2", "aria-label": app.t("composer.label") });
  const send = el("button", { type: "submit", text: app.t("composer.send") });
  form.append(text, send);

  async function submit() {
    if (!text.value.trim()) return;
    if (await app.send({ text: text.value, files: [] })) text.value = "";
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  text.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || composing(event)) return;
    event.preventDefault();
    submit();
  });
  app.on("draft", (draft) => {
    text.value = draft.text;
    text.focus();
  });
}
