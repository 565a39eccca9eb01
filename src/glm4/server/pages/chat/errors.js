// The errors of the log that the server keeps: filter by level and words, copy.

import { copyText, el, fill, iconButton } from "./dom.js";

const LEVELS = ["WARNING", "ERROR", "CRITICAL"];

/** @returns {{element: HTMLElement, update: (errors: {time: number, level: string, logger: string, message: string}[]) => void}} */
export function errorList(app) {
  const level = el("select", { id: "errors-level" }, el("option", { value: "" }, app.t("errors.all")),
    LEVELS.map((name) => el("option", { value: name }, name)));
  const words = el("input", { type: "search", id: "errors-words", autocomplete: "off", spellcheck: "false" });
  const said = el("p", { class: "help", role: "status" });
  const rows = el("ol", { class: "errors", tabindex: "0", "aria-label": app.t("errors.title") });
  const list = { app, level, words, said, rows, errors: [], drawn: "" };
  const copy = iconButton("copy", app.t("errors.copy"), async () => {
    const text = chosen(list).map((one) => line(app, one)).join("\n");
    const kind = (await copyText(text)) ? "ok" : "error";
    app.emit("notice", { text: app.t(kind === "ok" ? "errors.copied" : "errors.not_copied"), kind });
  });
  level.addEventListener("change", () => draw(list));
  words.addEventListener("input", () => draw(list));
  const element = el("section", {}, el("h3", {}, app.t("errors.title")),
    el("div", { class: "field" }, el("label", { for: "errors-level" }, app.t("errors.level")), level,
      el("label", { for: "errors-words" }, app.t("errors.words")), words, copy), said, rows);
  return {
    element,
    update(errors) {
      list.errors = errors;
      draw(list);
    },
  };
}

function chosen({ level, words, errors }) {
  const wanted = words.value.trim().toLowerCase();
  return errors.filter((one) => (!level.value || one.level === level.value)
    && `${one.logger} ${one.message}`.toLowerCase().includes(wanted)).sort((a, b) => b.time - a.time);
}

function draw(list) {
  const { app, said, rows, errors } = list;
  const shown = chosen(list);
  const state = JSON.stringify(shown) + app.lang;
  if (state === list.drawn) return; // a reader may have marked some of it
  list.drawn = state;
  const text = errors.length ? app.t("errors.count", { count: shown.length, all: errors.length }) : app.t("errors.none");
  if (said.textContent !== text) said.textContent = text;
  rows.hidden = !shown.length;
  fill(rows, shown.map((one) => el("li", { data: { level: one.level } },
    el("span", { class: "error-about" }, `${when(app, one)} ${one.level} ${one.logger}`),
    el("pre", { dir: "auto" }, one.message))));
}

function when(app, { time }) {
  return app.date(time, { dateStyle: "short", timeStyle: "medium" });
}

function line(app, one) {
  return `${new Date(one.time * 1000).toISOString()} ${one.level} ${one.logger}: ${one.message}`;
}
