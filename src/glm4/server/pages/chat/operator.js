// The pages of the operator, at #/operator: models and their queues, plots over time, memory, errors. The values are
// those of /metrics; the page asks for them as long as it is looked at.

import { byId, copyButton, el, fill, iconButton, openDialog, setName } from "./dom.js";
import { stateText } from "./models.js";
import { linePlot } from "./plots.js";

const EVERY = 3000; // milliseconds
const ROUTE = "#/operator";

export function setupOperator(app) {
  const dialog = byId("operator-dialog");
  const operator = { app, dialog, timer: 0, parts: null, before: "#/" };
  const button = iconButton("chart", "", () => { location.hash = ROUTE; }, { id: "operator-open" });
  const name = () => setName(button, app.t("operator.title"));
  byId("bar-tools").prepend(button);
  window.addEventListener("hashchange", (event) => route(operator, event.oldURL));
  dialog.addEventListener("close", () => left(operator));
  document.addEventListener("visibilitychange", () => !document.hidden && dialog.open && refresh(operator));
  const update = () => {
    button.hidden = !app.session?.operator;
    route(operator);
  };
  app.on("session", update);
  app.on("language", () => {
    name();
    if (dialog.open) show(operator);
  });
  name();
  update();
}

function route(operator, from) {
  const { app, dialog } = operator;
  const wanted = location.hash === ROUTE;
  if (wanted && !dialog.open && app.session?.operator) {
    operator.before = from ? new URL(from).hash : "";
    show(operator);
    openDialog(dialog);
    refresh(operator); // sizes are known now
  }
  if (!wanted && dialog.open) dialog.close();
}

/** The address says again what is behind the dialog. */
function left(operator) {
  clearTimeout(operator.timer);
  if (location.hash !== ROUTE) return;
  const { id } = operator.app.state;
  history.replaceState(null, "", operator.before || (id ? `#/c/${id}` : "#/"));
}

function show(operator) {
  const { app, dialog } = operator;
  const count = (value) => app.number(value, { maximumFractionDigits: 1 });
  const line = (key, format) => ({ name: app.t(`operator.${key}`), format });
  const plots = [
    [["generation_tps", "prompt_tps"], linePlot(app, { title: app.t("operator.speed"),
      series: [line("generated", count), line("prompt", count)] })],
    [["running", "waiting"], linePlot(app, { title: app.t("operator.requests"),
      series: [line("running", count), line("waiting", count)], whole: true })],
    [["kv"], linePlot(app, { title: app.t("operator.kv_use"), series: [line("kv_pages", app.percent)], top: 1 })],
  ];
  operator.parts = { models: el("div", { class: "table", tabindex: "0", role: "region" }), facts: el("dl", { class: "facts" }),
    plots, errors: errorList(app), failed: el("p", { class: "error", role: "alert" }) };
  const { models, facts, errors, failed } = operator.parts;
  models.setAttribute("aria-label", app.t("operator.models"));
  fill(dialog,
    el("header", { class: "dialog-head" }, el("h2", { id: "operator-title" }, app.t("operator.title")),
      app.session.training && el("a", { href: "training" }, app.t("operator.training")),
      el("a", { href: "metrics", target: "_blank" }, "/metrics"), el("a", { href: "docs", target: "_blank" }, "/docs"),
      iconButton("close", app.t("dialog.close"), () => dialog.close(), { autofocus: true })),
    el("div", { class: "dialog-body" }, failed,
      el("section", {}, el("h3", {}, app.t("operator.models")), models, facts),
      el("section", { class: "plots" }, plots.map(([, plot]) => plot.element)),
      errors.element));
}

async function refresh(operator) {
  clearTimeout(operator.timer);
  const { app, dialog, parts } = operator;
  try {
    const seen = await app.api.get("ui/operator");
    if (!dialog.open || parts !== operator.parts) return;
    parts.failed.textContent = "";
    fill(parts.models, modelTable(app, seen.models));
    fill(parts.facts, facts(app, seen));
    for (const [names, plot] of parts.plots) plot.update(seen.history.seconds, names.map((name) => seen.history[name]));
    parts.errors.update(seen.errors);
  } catch (error) {
    const text = app.errorText(error);
    if (parts.failed.textContent !== text) parts.failed.textContent = text;
  }
  if (dialog.open && !document.hidden) operator.timer = setTimeout(() => refresh(operator), EVERY);
}

const COLUMNS = ["model", "state", "context", "running", "waiting", "kv_pages", "prefix_hits", "adapters"];

function modelTable(app, models) {
  const head = el("tr", {}, COLUMNS.map((name) => el("th", { scope: "col" }, app.t(`operator.${name}`))));
  return el("table", {}, el("thead", {}, head), el("tbody", {}, models.map((model) => modelRow(app, model))));
}

function modelRow(app, model) {
  const known = (value, format = (one) => app.number(one)) => (value === null || value === undefined ? "–" : format(value));
  const state = model.state === "failed" ? app.t("settings.state_failed") : stateText(app, model);
  const cells = [
    [el("span", { class: "state", data: { state: model.state } }, state),
      model.error && el("p", { class: "error" }, model.error)],
    known(model.context),
    known(model.running),
    known(model.waiting),
    known(model.kv_pages_total || null, () => app.t("operator.of", { used: model.kv_pages_used, total: model.kv_pages_total })),
    known(model.prefix_hit_rate, (share) => app.percent(share, 1)),
    (model.adapters ?? []).join(", ") || "–",
  ];
  return el("tr", {}, el("th", { scope: "row" }, model.name), cells.map((cell) => el("td", {}, cell)));
}

function facts(app, seen) {
  const memory = Object.entries(seen.memory ?? {}).filter(([, bytes]) => typeof bytes === "number");
  const rows = [[app.t("operator.uptime"), longTime(app, seen.uptime)],
    ...memory.map(([name, bytes]) => [app.has(`operator.memory_${name}`) ? app.t(`operator.memory_${name}`) : name,
      app.bytes(bytes)])];
  return rows.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)));
}

function longTime(app, seconds) {
  const [unit, length] = seconds < 7200 ? [null] : seconds < 172_800 ? ["hour", 3600] : ["day", 86_400];
  if (!unit) return app.duration(seconds);
  return app.number(seconds / length, { style: "unit", unit, unitDisplay: "long", maximumFractionDigits: 1 });
}

// The errors of the log that the server keeps: filter by level and words, copy

const LEVELS = ["WARNING", "ERROR", "CRITICAL"];
const WHEN = { dateStyle: "short", timeStyle: "medium" };

/** {element, update}; update is given all errors, [{time, level, logger, message}]. */
function errorList(app) {
  const level = el("select", { id: "errors-level" }, el("option", { value: "" }, app.t("errors.all")),
    LEVELS.map((name) => el("option", { value: name }, name)));
  const words = el("input", { type: "search", id: "errors-words", autocomplete: "off", spellcheck: "false" });
  const said = el("p", { class: "help", role: "status" });
  const rows = el("ol", { class: "errors", tabindex: "0", "aria-label": app.t("errors.title") });
  const list = { app, level, words, said, rows, errors: [], drawn: "" };
  const copy = copyButton(app, app.t("errors.copy"), () => chosen(list).map(line).join("\n"));
  level.onchange = () => drawErrors(list);
  words.oninput = () => drawErrors(list);
  const element = el("section", {}, el("h3", {}, app.t("errors.title")),
    el("div", { class: "field" }, el("label", { for: "errors-level" }, app.t("errors.level")), level,
      el("label", { for: "errors-words" }, app.t("errors.words")), words, copy), said, rows);
  return {
    element,
    update(errors) {
      list.errors = errors;
      drawErrors(list);
    },
  };
}

function chosen({ level, words, errors }) {
  const wanted = words.value.trim().toLowerCase();
  return errors.filter((one) => (!level.value || one.level === level.value)
    && `${one.logger} ${one.message}`.toLowerCase().includes(wanted)).sort((a, b) => b.time - a.time);
}

function drawErrors(list) {
  const { app, said, rows, errors } = list;
  const shown = chosen(list);
  const state = JSON.stringify(shown) + app.lang;
  if (state === list.drawn) return; // a reader may have marked some of it
  list.drawn = state;
  const text = errors.length ? app.t("errors.count", { count: shown.length, all: errors.length }) : app.t("errors.none");
  if (said.textContent !== text) said.textContent = text;
  rows.hidden = !shown.length;
  fill(rows, shown.map((one) => el("li", { data: { level: one.level } },
    el("span", { class: "error-about" }, `${app.date(one.time, WHEN)} ${one.level} ${one.logger}`),
    el("pre", { text: one.message }))));
}

function line({ time, level, logger, message }) {
  return `${new Date(time * 1000).toISOString()} ${level} ${logger}: ${message}`;
}
