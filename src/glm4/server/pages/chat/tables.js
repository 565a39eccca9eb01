// Tables of answers: sorted by a column, copied, saved as CSV.

import { copyButton, el, fill, icon, iconButton, saveText } from "./dom.js";

const ORDERS = { none: "ascending", ascending: "descending", descending: "none" };
const LEAST_ROWS = 2; // fewer need no order

export function dressTable(app, root) {
  const table = root.querySelector("table");
  if (!table || root.parentElement.classList.contains("table-block")) return;
  const body = table.tBodies[0];
  const heads = [...(table.tHead?.rows[0]?.cells ?? [])];
  if (body && body.rows.length >= LEAST_ROWS) dressHeads(app, heads, body);
  const rows = () => [...table.rows].map((row) => [...row.cells].map(cellText));
  const bar = el("div", { class: "table-bar" },
    iconButton("download", app.t("table.csv"), () => saveText("table.csv", `\ufeff${csv(rows())}`, "text/csv")),
    copyButton(app, app.t("table.copy"), () => rows().map((row) => row.map(harmless).join("\t")).join("\n")));
  root.setAttribute("aria-label", app.t("table.label", { columns: heads.map(cellText).filter(Boolean).join(", ") }));
  const block = el("div", { class: "table-block" });
  root.replaceWith(block);
  block.append(root, bar);
}

function dressHeads(app, heads, body) {
  const first = [...body.rows]; // the order of the answer
  heads.forEach((head, column) => {
    const name = cellText(head) || app.t("table.column", { number: column + 1 });
    head.setAttribute("aria-sort", "none");
    const sort = () => {
      const order = ORDERS[head.getAttribute("aria-sort")];
      for (const other of heads) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", order);
      body.append(...(order === "none" ? first : sorted(first, column, order, app.lang)));
      app.announce(app.t(SAID[order], { column: name }));
    };
    const mark = icon("sort");
    if (head.querySelector("a, button") || !cellText(head)) {
      head.append(iconButton("sort", app.t("table.sort", { column: name }), sort, { class: "sort-only" }));
      return;
    }
    const button = el("button", { type: "button", class: "sort", title: app.t("table.sort", { column: name }), onclick: sort });
    button.append(...head.childNodes, mark);
    head.append(button);
  });
}

const SAID = { ascending: "table.ascending", descending: "table.descending", none: "table.unsorted" };

/** Rows in the order of a column: numbers by value if all its cells are numbers, else texts; empty cells come last. */
export function sorted(rows, column, order, language) {
  const texts = new Map(rows.map((row) => [row, row.cells[column] ? cellText(row.cells[column]) : ""]));
  const filled = rows.filter((row) => texts.get(row) !== "");
  const numbers = new Map(filled.map((row) => [row, asNumber(texts.get(row))]));
  const numeric = [...numbers.values()].every((value) => !Number.isNaN(value));
  const collator = new Intl.Collator(language, { numeric: true, sensitivity: "base" });
  const compare = (a, b) => numeric ? numbers.get(a) - numbers.get(b) : collator.compare(texts.get(a), texts.get(b));
  const sign = order === "descending" ? -1 : 1;
  return [...filled.sort((a, b) => sign * compare(a, b)), ...rows.filter((row) => texts.get(row) === "")];
}

/** The number that a text is, with its currency or unit; NaN if it is something else, a date or an address. */
export function asNumber(text) {
  const plain = text.normalize("NFKC").replace(/[\u2212\u2013]/g, "-").replace(/(?<=\d)[\s'_](?=\d{3})/g, "");
  const found = /^[~≈<>]?\s*[$€£¥₹]?\s*([+-]?)\s*[$€£¥₹]?\s*(\d[\d.,]*)(e[+-]?\d+)?\s*[\p{L}%°/²³µ]*$/iu.exec(plain.trim());
  if (!found) return NaN;
  let digits = found[2];
  if (/^\d{1,3}(,\d{3})+(\.\d+)?$/.test(digits)) digits = digits.replaceAll(",", "");
  else if (/^\d{1,3}(\.\d{3}){2,}$/.test(digits)) digits = digits.replaceAll(".", "");
  else if (/^\d+,\d+$/.test(digits)) digits = digits.replace(",", ".");
  return Number(`${found[1]}${digits}${found[3] ?? ""}`);
}

/**
 * RFC 4180: lines end with CR LF, and quotation marks stand around what needs them. A cell that a spreadsheet would
 * run as a formula gets an apostrophe in front: the table may be a stranger's. Numbers such as -5 stay numbers.
 */
export function csv(rows) {
  const quoted = (text) => /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  return rows.map((row) => row.map((cell) => quoted(harmless(cell))).join(",")).join("\r\n") + "\r\n";
}

function harmless(text) {
  return /^[=+\-@\t\r]/.test(text) && Number.isNaN(asNumber(text)) ? `'${text}` : text;
}

/** A cell's text; formulas as TeX. */
function cellText(cell) {
  if (!cell.querySelector("[data-tex]")) return cell.textContent.trim();
  const copy = cell.cloneNode(true);
  for (const formula of copy.querySelectorAll("[data-tex]")) fill(formula, formula.dataset.tex);
  return copy.textContent.trim();
}
