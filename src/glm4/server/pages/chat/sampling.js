// Sampling options: one table, from which the form is made. Ranges are the server's; it takes hotter temperatures, too,
// at which no model says anything.

import { el, textButton } from "./dom.js";

/** name → how it is asked for; `list` is one string a line; `unset` is shown where the model has no value of its own. */
const SAMPLING = {
  temperature: { min: 0, max: 2, step: 0.05, unset: "as_model" },
  top_p: { min: 0, max: 1, step: 0.01, unset: "as_model" },
  top_k: { min: -1, step: 1, unset: "no_limit" },
  min_p: { min: 0, max: 1, step: 0.01, unset: "as_model" },
  max_tokens: { min: 1, step: 1, unset: "no_limit" },
  repetition_penalty: { min: 0.01, max: 100, step: 0.01, unset: "as_model" },
  presence_penalty: { min: -2, max: 2, step: 0.1, unset: "as_model" },
  frequency_penalty: { min: -2, max: 2, step: 0.1, unset: "as_model" },
  seed: { step: 1, unset: "random" },
  stop: { list: true, most: 16, unset: "none" },
};

const MOST = Number.MAX_SAFE_INTEGER;
const LEAST = Number.MIN_SAFE_INTEGER;

/** {element, show(params, defaults)}; `change(params)` gets all options whenever one is changed to a valid value. */
export function samplingForm(app, change) {
  const rows = Object.entries(SAMPLING).map(([name, row]) => optionRow(app, name, row));
  const reset = textButton(app.t("settings.reset"), () => {
    shown = {};
    rows.forEach((row) => row.clear());
    change(shown);
    app.announce(app.t("settings.reset_done"));
  });
  const element = el("div", { class: "options" }, ...rows.map((row) => row.element), reset);
  let shown = {};
  for (const row of rows) {
    row.input.onchange = () => {
      const value = row.read();
      if (value === undefined) return; // said beside the field
      const { [row.name]: _, ...others } = shown;
      shown = value === null ? others : { ...others, [row.name]: value };
      change(shown);
    };
  }
  return {
    element,
    show(params, defaults) {
      shown = { ...params }; // with options that the form does not have, as an import may bring
      for (const row of rows) {
        row.show(params[row.name] ?? null);
        row.setDefault(defaults[row.name] ?? null);
      }
    },
  };
}

function optionRow(app, name, row) {
  const id = `option-${name}`;
  let drawn = "null";
  const input = row.list
    ? el("textarea", { id, rows: "2", spellcheck: "false", "aria-describedby": `${id}-help` })
    : el("input", { id, type: "number", inputmode: row.step === 1 ? "numeric" : "decimal", step: row.step,
      min: row.min ?? LEAST, max: row.max ?? MOST, "aria-describedby": `${id}-help`, autocomplete: "off" });
  const help = el("p", { id: `${id}-help`, class: "help" });
  const error = el("p", { id: `${id}-error`, class: "error", role: "alert" });
  const say = (wrong) => {
    error.textContent = wrong;
    input.setAttribute("aria-invalid", Boolean(wrong));
    input.setAttribute("aria-describedby", wrong ? error.id : help.id);
  };
  help.textContent = app.t(`settings.${name}_help`);
  return {
    name,
    input,
    element: el("div", { class: row.list ? "option wide" : "option" },
      el("label", { for: id }, app.t(`settings.${name}`)), input, help, error),
    read() {
      const value = row.list ? readList(input.value) : readNumber(input, row);
      const wrong = value === undefined || (row.list && value && value.length > row.most);
      if (!wrong) drawn = JSON.stringify(value);
      say(wrong ? app.t(`settings.${wrongAs(row)}`, { min: row.min ?? LEAST, max: row.max ?? MOST, most: row.most }) : "");
      return wrong ? undefined : value;
    },
    show(value) {
      const now = JSON.stringify(value);
      if (now === drawn) return; // what is being typed, or was refused, stays
      drawn = now;
      say("");
      input.value = value === null ? "" : row.list ? writeList(value) : String(value);
    },
    clear() {
      drawn = null;
      this.show(null);
    },
    setDefault(value) {
      const empty = value === null || (row.list && !value.length);
      input.placeholder = empty ? app.t(`settings.${row.unset}`) : row.list ? writeList(value) : String(value);
    },
  };
}

/** The number, null for an empty field, undefined for what the server would refuse. */
function readNumber(input, row) {
  const { badInput, rangeUnderflow, rangeOverflow, stepMismatch } = input.validity;
  if (badInput || rangeUnderflow || rangeOverflow || (stepMismatch && row.step === 1)) return undefined;
  return input.value === "" ? null : Number(input.value);
}

function wrongAs(row) {
  if (row.list) return "too_many";
  return row.step === 1 ? "out_of_range_whole" : "out_of_range";
}

/** One string a line; a line break within one is written \n. */
function readList(text) {
  const lines = text.split("\n").filter((line) => line !== "");
  return lines.length ? lines.map((line) => line.replace(/\\(n|\\)/g, (_, one) => (one === "n" ? "\n" : "\\"))) : null;
}

function writeList(value) {
  const lines = Array.isArray(value) ? value : [value];
  return lines.map((line) => line.replace(/\\/g, "\\\\").replace(/\n/g, "\\n")).join("\n");
}
