// Editing a question in its place: the new one is a branch beside it.

import { composing, el, textButton } from "./dom.js";

export function openEditor(view) {
  const { app, message, body, root } = view;
  if (view.editor) return;
  const text = message.parts.find((part) => part.kind === "text")?.text ?? "";
  const files = message.parts.filter((part) => part.kind === "file").map(({ kind, ...file }) => file);
  const area = el("textarea", { class: "editor-text", "aria-label": app.t("edit.label"), dir: "auto" });
  area.value = text;
  const close = () => {
    view.editor.remove();
    view.editor = null;
    body.hidden = false;
    root.classList.remove("editing");
    view.sync();
    root.querySelector('[data-action="edit"]')?.focus();
  };
  const send = () => {
    if (!area.value.trim()) return;
    close();
    app.edit(message.id, { text: area.value, files });
  };
  view.editor = el("div", { class: "editor" }, area,
    el("div", { class: "editor-foot" },
      el("p", { class: "hint", text: app.t("edit.hint") }),
      textButton(app.t("dialog.cancel"), close),
      textButton(app.t("edit.send"), send, { class: "primary" })));
  area.addEventListener("keydown", (event) => {
    if (composing(event)) return;
    if (event.key === "Escape") close();
    else if (event.key === "Enter" && !event.shiftKey) send();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  body.hidden = true;
  root.classList.add("editing");
  body.after(view.editor);
  area.focus();
  area.setSelectionRange(text.length, text.length);
}
