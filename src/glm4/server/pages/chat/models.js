// Which model (or adapter of one) answers: the choice in the bar, and what there is to know of a model. Below the
// composer: the tools that are on, and how much of the model's context the conversation fills.

import { byId, el, fill, placeBeside, setName, textButton } from "./dom.js";

const NEARLY_FULL = 0.8;
const FULL = 0.95;

export function setupModels(app) {
  const select = el("select", { id: "model", onchange: () => app.choose({ model: select.value }) });
  const models = { app, select, said: "", drawn: "" };
  fill(byId("bar-model"), select);
  app.on("session settings language", () => show(models));
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
  announce(models, app.model());
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
  const share = typeof model.progress === "number" ? app.percent(model.progress) : "";
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

export function setupMeter(app) {
  const tools = textButton("", () => app.openSettings("tools"), { class: "quiet" });
  const bar = el("span");
  const said = el("span");
  const details = el("p", { id: "meter-details", popover: "auto", class: "meter-details" });
  const button = el("button", { type: "button", class: "quiet meter", popovertarget: "meter-details" },
    el("span", { class: "gauge", "aria-hidden": "true" }, bar), said);
  details.addEventListener("toggle", (event) => event.newState === "open" && placeBeside(details, button, { above: true, atEnd: true }));
  const warning = el("p", { class: "meter-warning", role: "status" });
  const row = el("div", { id: "meter" }, tools, button, details, warning);
  (byId("composer-foot") ?? byId("main")).append(row);
  const meter = { app, tools, bar, said, details, button, warning };
  app.on("conversation message turn settings session language", () => showMeter(meter));
  showMeter(meter);
}

/** What fills the context, on the branch that is shown: prompt and answer of the last round with the model. */
function contextUse(app) {
  const answered = app.state.branch().filter((message) => message.role === "assistant" && message.usage?.prompt);
  const message = answered.at(-1);
  if (!message) return null;
  const { usage } = message;
  // Sums over several rounds say nothing about the context, which the last round has seen whole.
  const { prompt, completion } = usage.last ?? usage;
  const context = app.model()?.context ?? message.context ?? usage.context;
  return context ? { used: prompt + completion, prompt, completion, context } : null;
}

function showMeter({ app, tools, bar, said, details, button, warning }) {
  const chosen = app.settings.tools;
  const all = app.session?.tools ?? [];
  tools.hidden = !all.length;
  tools.textContent = chosen.length ? app.t("meter.tools", { names: listed(app, chosen) }) : app.t("meter.no_tools");
  const use = contextUse(app);
  button.hidden = !use;
  if (!use) {
    details.hidden = true;
    warning.textContent = "";
    return;
  }
  details.hidden = false;
  const share = use.used / use.context;
  bar.style.width = `${Math.min(100, share * 100)}%`;
  const percent = app.percent(share, share < 0.1 ? 1 : 0);
  said.textContent = percent;
  button.className = `quiet meter ${share >= FULL ? "full" : share >= NEARLY_FULL ? "nearly-full" : ""}`;
  const short = app.t("meter.label", { used: use.used, context: use.context, percent });
  setName(button, short);
  fill(details, el("strong", {}, short), el("br"),
    app.t("meter.details", { prompt: use.prompt, completion: use.completion }), el("br"),
    app.t("meter.left", { left: Math.max(0, use.context - use.used) }));
  const text = share >= FULL ? app.t("meter.full") : "";
  if (warning.textContent !== text) warning.textContent = text;
}

function listed(app, names) {
  return new Intl.ListFormat(app.lang, { style: "narrow", type: "conjunction" }).format(names.map(toolName));
}
