// Runs of `glm4 finetune`: state and progress, loss, speed and learning rate over the steps, answers of evaluations.
// It asks the server again every few seconds while a run is looked at and not over.

import { setupApi } from "../api.js";
import { byId, el, fill } from "../dom.js";
import { setupLanguage } from "../i18n.js";
import { linePlot } from "../plots.js";

const EVERY = 3000; // milliseconds
const OVER = ["done", "failed"];

const app = { session: null, emit() {}, on() {}, notice() {}, reached() {}, unauthorized() {} };
const view = { run: "", runs: [], plots: [], timer: 0, drawn: "" };

function addressed() {
  return decodeURIComponent(location.hash.slice(1));
}

async function refresh() {
  clearTimeout(view.timer);
  let over = false;
  try {
    const { runs } = await app.api.get("ui/training/runs");
    listRuns(runs);
    view.run = runs.some((run) => run.name === addressed()) ? addressed() : (runs[0]?.name ?? "");
    byId("run").value = view.run;
    if (view.run) {
      const run = await app.api.get(`ui/training/runs/${encodeURIComponent(view.run)}`);
      show(run);
      over = OVER.includes(run.state);
    }
    say(runs.length ? "" : app.t("training.none"));
  } catch (error) {
    say(error.status === 401 ? app.t("training.login") : app.errorText(error));
  }
  if (!document.hidden) view.timer = setTimeout(refresh, over ? 10 * EVERY : EVERY);
}

function say(text) {
  const failed = byId("failed");
  if (failed.textContent !== text) failed.textContent = text;
}

function listRuns(runs) {
  const state = JSON.stringify(runs.map((run) => run.name));
  if (state === view.drawn) return; // a list that is open must not be closed
  view.drawn = state;
  view.runs = runs;
  fill(byId("run"), runs.map((run) => el("option", { value: run.name, text: run.name })));
}

function show(run) {
  document.title = `${run.name} · glm4`;
  drawAbout(run);
  for (const [names, plot] of view.plots) plot.update(run.lines[names].steps, [run.lines[names].values]);
  drawSamples(run.samples);
}

function drawAbout(run) {
  const { loss, eval_loss: validation, tokens_per_second: speed } = run.lines;
  const share = run.total_steps ? Math.min(1, (run.step ?? 0) / run.total_steps) : 0;
  const progress = el("progress", { max: "1", value: String(share), "aria-label": app.t("training.progress") });
  const precise = (value) => app.number(value, { maximumFractionDigits: 4 });
  const last = (line, format) => (line.values.length ? format(line.values.at(-1)) : "–");
  const facts = [
    ["step", run.total_steps ? app.t("training.of", { step: run.step ?? 0, total: run.total_steps }) : "–"],
    ["epoch", run.epoch === null ? "–" : app.number(run.epoch, { maximumFractionDigits: 2 })],
    ["loss", last(loss, precise)],
    ["validation", last(validation, precise)],
    ["speed", last(speed, (value) => app.number(Math.round(value)))],
    ["model", run.model ?? "–"],
    ["method", run.method ?? "–"],
    ["updated", run.updated ? app.date(run.updated, { dateStyle: "short", timeStyle: "medium" }) : "–"],
  ];
  const state = ["starting", "running", "done", "failed", "stopped"].includes(run.state) ? run.state : "unknown";
  fill(byId("about"),
    el("p", { class: "run-state", role: "status", data: { state } }, app.t(`training.state_${state}`)),
    run.error && el("p", { class: "error", text: run.error }), progress,
    el("dl", { class: "facts" }, facts.map(([name, value]) =>
      el("div", {}, el("dt", {}, app.t(`training.${name}`)), el("dd", { text: String(value) })))));
}

function drawSamples(samples) {
  const box = byId("samples");
  const state = JSON.stringify(samples) + app.lang;
  if (box.state === state) return; // a reader may have marked some of it
  box.state = state;
  fill(box, samples.length && el("h2", {}, app.t("training.samples")), samples.map((sample) => el("article", {},
    el("h3", {}, app.t("training.at_step", { step: sample.step ?? 0 })),
    el("dl", {}, ["prompt", "answer", "reference"].flatMap((name) => [
      el("dt", {}, app.t(`training.${name}`)), el("dd", { text: sample[name] }),
    ])))));
}

function buildPlots() {
  const precise = (value) => app.number(value, { maximumSignificantDigits: 4 });
  const whole = (value) => app.number(value, { maximumFractionDigits: 0 });
  const small = (value) => (value ? app.number(value, { notation: "scientific", maximumFractionDigits: 2 }) : "0");
  const lines = { loss: precise, eval_loss: precise, tokens_per_second: whole, learning_rate: small };
  const x = { name: app.t("training.step"), format: whole };
  view.plots = Object.entries(lines).map(([name, format]) => {
    const title = app.t(`training.plot_${name}`);
    return [name, linePlot(app, { title, x, series: [{ name: title, format }] })];
  });
  fill(byId("plots"), view.plots.map(([, plot]) => plot.element));
}

async function start() {
  setupApi(app);
  await setupLanguage(app);
  buildPlots();
  byId("run").onchange = (event) => {
    location.hash = encodeURIComponent(event.target.value);
  };
  window.addEventListener("hashchange", refresh);
  document.addEventListener("visibilitychange", () => !document.hidden && refresh());
  await refresh();
}

start();
