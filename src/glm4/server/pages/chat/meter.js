// Below the composer: the tools that are on, and how much of the model's context the conversation fills.

import { byId, el, fill, setName, textButton } from "./dom.js";
import { toolName } from "./models.js";

const NEARLY_FULL = 0.8;
const FULL = 0.95;

export function setupMeter(app) {
  const tools = textButton("", () => app.openSettings("tools"), { class: "quiet" });
  const bar = el("span");
  const said = el("span");
  const details = el("p", { id: "meter-details", popover: "auto", class: "meter-details" });
  const button = el("button", { type: "button", class: "quiet meter", popovertarget: "meter-details" },
    el("span", { class: "gauge", "aria-hidden": "true" }, bar), said);
  details.addEventListener("toggle", (event) => event.newState === "open" && place(details, button));
  const warning = el("p", { class: "meter-warning", role: "status" });
  const row = el("div", { id: "meter" }, tools, button, details, warning);
  (byId("composer-foot") ?? byId("main")).append(row);
  const meter = { app, tools, bar, said, details, button, warning };
  for (const name of ["conversation", "message", "turn", "settings", "session", "language"]) {
    app.on(name, () => show(meter));
  }
  show(meter);
}

/** What is in the context: prompt and answer of the last round with the model, on the branch that is shown.
 * @returns {{used: number, prompt: number, completion: number, context: number} | null}
 */
function contextUse(app) {
  const answered = app.state.branch().filter((message) => message.role === "assistant" && message.usage?.prompt);
  const message = answered.at(-1);
  if (!message) return null;
  const { usage } = message;
  // Sums over several rounds say nothing about the context, which the last round has seen whole.
  const { prompt, completion } = usage.last ?? usage;
  const model = app.session?.models.find((one) => one.name === app.settings.model);
  const context = model?.context ?? message.context ?? usage.context;
  return context ? { used: prompt + completion, prompt, completion, context } : null;
}

function show({ app, tools, bar, said, details, button, warning }) {
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
  const percent = app.number(share, { style: "percent", maximumFractionDigits: share < 0.1 ? 1 : 0 });
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

/** Above the button, within the window. */
function place(details, button) {
  const box = button.getBoundingClientRect();
  details.style.left = `${Math.max(8, Math.min(box.right, innerWidth - 8) - details.offsetWidth)}px`;
  details.style.top = `${Math.max(8, box.top - details.offsetHeight - 6)}px`;
}

function listed(app, names) {
  return new Intl.ListFormat(app.lang, { style: "narrow", type: "conjunction" }).format(names.map(toolName));
}
