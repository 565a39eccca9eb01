// Sources that an answer cites: a list below it, and what a number in the text opens.

import { hostOf } from "./call_words.js";
import { el, fill, icon, placeBeside } from "./dom.js";
import { claimBefore } from "./find_text.js";
import { externalLink } from "./tools.js";

export function setupCitations(app) {
  const popover = el("div", { id: "citation", popover: "auto", role: "dialog", "aria-labelledby": "citation-title" });
  document.body.append(popover);

  document.addEventListener("click", (event) => {
    const link = event.target.closest?.("a.cite");
    if (!link) return;
    event.preventDefault(); // the address names a conversation
    const found = find(app, link);
    if (found) openCitation(app, found, (citation) => showPopover(app, popover, link, citation));
  });
  popover.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    event.stopPropagation(); // it would stop the answer
    popover.hidePopover();
  });
  app.on("conversation", ({ switched }) => switched && popover.hidePopover?.());
}

/** The sources of a message's answer, each once, in the order of the text; null if it cites none. */
export function sourceList(app, message) {
  const sources = new Map();
  for (const part of message.parts) {
    for (const citation of part.citations ?? []) if (!sources.has(citation.n)) sources.set(citation.n, { citation, part });
  }
  if (!sources.size) return null;
  const items = [...sources.values()].map(({ citation, part }) => el("li", { value: citation.n },
    el("span", { class: "source-number", text: citation.n }), sourceLink(app, citation, part)));
  return el("section", { class: "sources", "aria-label": app.t("citations.sources") },
    el("h3", { text: app.t("citations.sources") }), el("ol", {}, ...items));
}

function sourceLink(app, citation, part) {
  if (hostOf(citation.url ?? "")) return externalLink(app, citation.url, citation.title);
  const words = [icon("document"), el("span", { text: placeOf(app, citation), dir: "auto" })];
  if (!citation.file) return el("span", {}, ...words);
  return el("button", { type: "button", class: "source-file", onclick: () => openCitation(app, { citation, part }) }, ...words);
}

/** A file and where in it, in words. */
function placeOf(app, { title, page, section }) {
  if (page) return app.t("citations.page", { title, page });
  return section ? app.t("citations.section", { title, section }) : title;
}

/** The citation that a number in the text belongs to, and its part. */
function find(app, link) {
  const n = Number(link.dataset.n ?? link.textContent);
  const id = link.closest("article[data-id]")?.dataset.id;
  const branch = app.state.branch();
  const own = branch.filter((message) => message.id === id);
  for (const message of [...own, ...branch.reverse()]) {
    const nth = own.includes(message) ? occurrence(link, n) : 0;
    const all = message.parts.flatMap((part) => (part.citations ?? []).map((citation) => ({ citation, part })));
    const same = all.filter(({ citation }) => citation.n === n);
    if (same.length) return same[nth] ?? same[0];
  }
  return null;
}

/** How many links of the same number stand before this one in its message. */
function occurrence(link, n) {
  const message = link.closest("article[data-id]");
  return [...message.querySelectorAll("a.cite")].filter((one) => Number(one.dataset.n ?? one.textContent) === n).indexOf(link);
}

function openCitation(app, { citation, part }, otherwise = () => {}) {
  if (!citation.file) {
    otherwise(citation);
    return;
  }
  app.showDocument({ file: citation.file, name: citation.title, page: citation.page ?? null,
    section: citation.section ?? "", quotation: citation.text ?? "", claim: claimBefore(part.text ?? "", citation.start ?? 0) });
}

function showPopover(app, popover, link, citation) {
  fill(popover,
    el("h3", { id: "citation-title", dir: "auto", text: citation.title || hostOf(citation.url ?? "") }),
    citation.text ? el("blockquote", { dir: "auto", text: citation.text }) : null,
    citation.url ? externalLink(app, citation.url, app.t("citations.open")) : null);
  popover.showPopover?.();
  placeBeside(popover, link, {});
  (popover.querySelector("a") ?? popover).focus();
}
