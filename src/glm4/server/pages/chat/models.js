// Which model (or adapter of one) answers: the choice in the bar, and what there is to know of a model.

import { byId, el, fill } from "./dom.js";

export function setupModels(app) {
  const select = el("select", { id: "model", onchange: () => app.choose({ model: select.value }) });
  const models = { app, select, said: "", drawn: "" };
  fill(byId("bar-model"), select);
  for (const name of ["session", "settings", "language"]) app.on(name, () => show(models));
  show(models);
}

function show(models) {
  const { app, select } = models;
  const known = app.session?.models ?? [];
  const drawn = JSON.stringify([app.lang, known.map(({ name, state, parent }) => [name, state, parent])]);
  if (drawn !== models.drawn) fill(select, choices(app, known)); // an open list stays as long as nothing is new
  models.drawn = drawn;
  select.value = app.settings.model ?? "";
  select.hidden = !known.length;
  select.setAttribute("aria-label", app.t("settings.model"));
  announce(models, known.find((one) => one.name === app.settings.model));
}

/** The models; one that has adapters is a group with them. */
function choices(app, known) {
  const option = (model) => el("option", { value: model.name, disabled: model.state === "failed" },
    model.state === "ready" ? model.name : `${model.name} (${app.t(`settings.state_${model.state}`)})`);
  return known.filter((model) => !model.parent).map((model) => {
    const adapters = known.filter((one) => one.parent === model.name);
    return adapters.length ? el("optgroup", { label: model.name }, option(model), adapters.map(option)) : option(model);
  });
}

/** "ready", "failed: why", "loading: reading weights 40 %" in the reader's language. */
export function stateText(app, model) {
  if (model.state === "ready") return app.t("settings.state_ready");
  if (model.state === "failed") return app.t("settings.failed", { reason: model.error ?? "" });
  const stage = app.stageText(model);
  const share = typeof model.progress === "number" ? app.number(model.progress, { style: "percent" }) : "";
  return [app.t("settings.state_loading"), stage, share].filter(Boolean).join(" · ");
}

/** Say it when a model has become ready, or not. */
function announce(models, chosen) {
  const { app } = models;
  const before = models.said;
  models.said = chosen ? `${chosen.name} ${chosen.state}` : "";
  if (!chosen || before !== `${chosen.name} loading` || chosen.state === "loading") return;
  app.announce(`${chosen.name}: ${stateText(app, chosen)}`, { assertive: chosen.state === "failed" });
}

/** What there is to know of a model, for the settings. */
export function modelDetails(app, model) {
  if (!model) return el("p", { class: "help" }, app.t("settings.no_model"));
  const facts = [
    stateText(app, model),
    model.context ? app.t("settings.context", { tokens: model.context }) : null,
    model.state === "ready" ? app.t(model.sees ? "settings.sees" : "settings.text_only") : null,
    model.parent ? app.t("settings.adapter_of", { model: model.parent }) : null,
  ];
  return el("p", {}, el("strong", {}, model.name), " · ", facts.filter(Boolean).join(" · "));
}

/** A tool's name for people: a file of functions goes by its name, without its folder. */
export function toolName(name) {
  return name.split("/").at(-1);
}
