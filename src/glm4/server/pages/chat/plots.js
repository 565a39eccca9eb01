// Lines over time as SVG, made with DOM calls: axes with ticks, a legend, and values that pointer and keys can read.
// The second line is dashed, so that no reading depends on color; a table says the same in words.

import { el, svg } from "./dom.js";

const HEIGHT = 180;
const EDGE = { top: 10, right: 12, bottom: 24, left: 46 };
const TABLE_ROWS = 60;
const SHORT = 600; // seconds; then ticks say them

/**
 * A plot of `series`, [{name, format(value)}], as {element, update(times, values)}: seconds since the epoch (or what `x`,
 * {name, format(value)}, says), and values per line. `top`: value of the upper edge, else the largest; `whole`: whole ticks.
 */
export function linePlot(app, about) {
  const readout = el("p", { class: "plot-readout" });
  const area = el("div", { class: "plot-area", role: "slider", tabindex: "0", "aria-label": about.title });
  const body = el("tbody");
  const heads = [about.x?.name ?? app.t("operator.time"), ...about.series.map((line) => line.name)];
  const table = el("table", {}, el("caption", { class: "visually-hidden" }, about.title),
    el("thead", {}, el("tr", {}, ...heads.map((name) => el("th", { scope: "col" }, name)))), body);
  const details = el("details", { class: "plot-table" }, el("summary", {}, app.t("operator.as_table")),
    el("div", { class: "table", tabindex: "0", role: "region", "aria-label": about.title }, table));
  const element = el("figure", { class: "plot" }, el("figcaption", {}, about.title), legend(about.series), area, readout,
    details);
  const plot = { app, about, area, readout, body, details, times: [], values: [], at: null };
  new ResizeObserver(() => draw(plot)).observe(area);
  details.ontoggle = () => fillTable(plot);
  listen(plot);
  return {
    element,
    update(times, values) {
      const moved = plot.at === null ? null : nearest(times, plot.times[plot.at]);
      Object.assign(plot, { times, values, at: moved });
      draw(plot);
      fillTable(plot);
    },
  };
}

function legend(series) {
  return el("ul", { class: "plot-legend" }, ...series.map((line, index) => {
    const mark = svg("svg", { width: 24, height: 8, "aria-hidden": "true" });
    mark.append(svg("line", { x1: 0, x2: 24, y1: 4, y2: 4, class: `plot-line plot-line-${index + 1}` }));
    return el("li", {}, mark, line.name);
  }));
}

function listen(plot) {
  plot.area.onpointermove = (event) => {
    const box = plot.area.getBoundingClientRect();
    const share = (event.clientX - box.left - EDGE.left) / Math.max(1, box.width - EDGE.left - EDGE.right);
    select(plot, Math.round(share * (plot.times.length - 1)));
  };
  plot.area.onpointerleave = () => {
    if (document.activeElement !== plot.area) select(plot, null);
  };
  plot.area.onfocus = () => select(plot, plot.at ?? plot.times.length - 1);
  plot.area.onblur = () => select(plot, null);
  plot.area.onkeydown = (event) => {
    const last = plot.times.length - 1;
    const at = plot.at ?? last;
    const steps = { ArrowLeft: at - 1, ArrowRight: at + 1, PageUp: at + 10, PageDown: at - 10, Home: 0, End: last };
    if (!(event.key in steps)) return;
    event.preventDefault();
    select(plot, steps[event.key]);
  };
}

function select(plot, at) {
  plot.at = at === null || !plot.times.length ? null : Math.min(plot.times.length - 1, Math.max(0, at));
  showReading(plot);
}

function showReading(plot) {
  const { area, at, times } = plot;
  const reading = at === null ? (times.length ? "" : plot.app.t("operator.no_data")) : readingAt(plot, at);
  plot.readout.textContent = reading;
  area.setAttribute("aria-valuemin", "0");
  area.setAttribute("aria-valuemax", Math.max(0, times.length - 1));
  area.setAttribute("aria-valuenow", at ?? Math.max(0, times.length - 1));
  area.setAttribute("aria-valuetext", reading || (times.length ? readingAt(plot, times.length - 1) : ""));
  const cursor = area.querySelector(".plot-cursor");
  if (!cursor) return;
  cursor.toggleAttribute("hidden", at === null);
  if (at !== null) for (const name of ["x1", "x2"]) cursor.setAttribute(name, plot.x(times[at]));
}

function readingAt(plot, at) {
  const values = plot.about.series.map((line, index) => `${line.name} ${line.format(plot.values[index][at])}`);
  return `${place(plot, plot.times[at], true)} · ${values.join(" · ")}`;
}

function draw(plot) {
  const { area, about, times, values } = plot;
  const width = area.clientWidth;
  if (!width) return; // not shown now
  const ticks = niceTicks(about.top ?? Math.max(0, ...values.flat()), about.whole);
  const top = ticks.at(-1);
  const [first, last] = times.length > 1 ? [times[0], times.at(-1)] : [(times[0] ?? 1) - 1, times[0] ?? 1];
  const x = (plot.x = (time) => EDGE.left + ((time - first) / (last - first)) * (width - EDGE.left - EDGE.right));
  const y = (value) => HEIGHT - EDGE.bottom - (value / top) * (HEIGHT - EDGE.top - EDGE.bottom);
  const picture = svg("svg", { width, height: HEIGHT, "aria-hidden": "true" });
  for (const tick of ticks) {
    picture.append(svg("line", { x1: EDGE.left, x2: width - EDGE.right, y1: y(tick), y2: y(tick), class: "plot-grid" }));
    const label = about.series[0].format(tick);
    picture.append(svg("text", { x: EDGE.left - 6, y: y(tick) + 4, "text-anchor": "end" }, label));
  }
  for (const time of timeTicks(times, Math.max(2, Math.floor(width / 110)))) {
    picture.append(svg("line", { x1: x(time), x2: x(time), y1: y(0), y2: y(0) + 4, class: "plot-grid" }));
    const anchor = x(time) < EDGE.left + 20 ? "start" : x(time) > width - EDGE.right - 20 ? "end" : "middle";
    picture.append(svg("text", { x: x(time), y: HEIGHT - 6, "text-anchor": anchor }, place(plot, time, last - first < SHORT)));
  }
  values.forEach((line, index) => {
    const points = line.map((value, at) => `${x(times[at]).toFixed(1)},${y(Math.min(value, top)).toFixed(1)}`);
    picture.append(svg("polyline", { points: [points[0], ...points].join(" "), class: `plot-line plot-line-${index + 1}` }));
  });
  picture.append(svg("line", { y1: EDGE.top, y2: y(0), class: "plot-cursor", hidden: true }));
  area.replaceChildren(picture);
  showReading(plot);
}

/** 0 and some round numbers, the last of them not below `highest`. */
function niceTicks(highest, whole) {
  const wanted = Math.max((highest || 1) / 4, whole ? 1 : 0);
  const power = 10 ** Math.floor(Math.log10(wanted));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((one) => one >= wanted * 0.999);
  const ticks = [0];
  while (ticks.at(-1) < highest * 0.999 || ticks.length < 2) ticks.push(Number((ticks.length * step).toPrecision(6)));
  return ticks;
}

function timeTicks(times, most) {
  if (times.length < 2) return times;
  const count = Math.min(most, times.length);
  return Array.from({ length: count }, (_, index) => times[Math.round((index * (times.length - 1)) / (count - 1))]);
}

function fillTable(plot) {
  if (!plot.details.open) return;
  const from = Math.max(0, plot.times.length - TABLE_ROWS);
  const rows = plot.times.slice(from).map((time, index) => {
    const cells = plot.about.series.map((line, one) => el("td", {}, line.format(plot.values[one][from + index])));
    return el("tr", {}, el("th", { scope: "row" }, place(plot, time, true)), ...cells);
  });
  plot.body.replaceChildren(...rows.reverse());
}

function nearest(times, time) {
  if (!times.length) return null;
  const at = times.findIndex((one) => one >= time);
  return at < 0 ? times.length - 1 : at;
}

function place({ app, about }, value, seconds) {
  if (about.x) return `${about.x.name} ${about.x.format(value)}`;
  return app.date(value, { hour: "2-digit", minute: "2-digit", ...(seconds ? { second: "2-digit" } : {}) });
}
