// Sources that an answer cites: a list below it, what a number in the text opens, and the side panel with the text of a
// document, at the cited page, with the cited place marked.

import { hostOf } from "./call_words.js";
import { el, fill, icon, iconButton, placeBeside } from "./dom.js";
import { downloadLink } from "./files.js";
import { claimBefore, findClaim, findQuotation } from "./find_text.js";
import { externalLink } from "./tools.js";

export function setupDocuments(app) {
  /** Show a document: {file, name, page?, section?, quotation?, claim?}; what was cited is marked on its page. */
  app.showDocument = (shown) => open(app, shown);
  setupCitations(app);
}

function open(app, { file, name, page = null, section = "", quotation = "", claim = "" }) {
  let at = page;
  let total = 1;
  let request = null;
  const cited = { page, section, quotation, claim };

  const text = el("div", { class: "document-text", tabindex: "0", role: "group", "aria-label": name, dir: "auto" });
  const about = el("p", { class: "document-about", role: "status" });
  const field = el("input", { type: "number", min: "1", value: "1", inputmode: "numeric" });
  const of = el("span", {});
  const before = iconButton("left", app.t("documents.before"), () => go(at - 1));
  const after = iconButton("right", app.t("documents.after"), () => go(at + 1));
  const pages = el("form", { class: "document-pages", hidden: true }, before, field, of, after);

  pages.onsubmit = (event) => {
    event.preventDefault();
    go(Number(field.value));
  };
  field.onchange = () => go(Number(field.value));
  text.onkeydown = (event) => {
    if (event.key === "PageDown" && atEnd(text, 1) && at < total) go(at + 1);
    else if (event.key === "PageUp" && atEnd(text, -1) && at > 1) go(at - 1);
    else return;
    event.preventDefault();
  };

  async function go(wanted) {
    const next = Math.min(Math.max(1, Math.round(wanted) || 1), total);
    if (next === at && text.firstChild) {
      field.value = at;
      return;
    }
    await load(next);
  }

  async function load(next) {
    request?.abort();
    const own = (request = new AbortController());
    text.setAttribute("aria-busy", "true");
    about.textContent = app.t("documents.loading");
    try {
      const query = next === null ? `find=${encodeURIComponent(quotation.replace(/…$/, ""))}` : `page=${next}`;
      const view = await app.api.get(`ui/documents/${encodeURIComponent(file)}?${query}`, { signal: own.signal });
      at = view.page;
      total = view.pages;
      cited.page ??= at; // the piece that was found
      show(view);
    } catch (error) {
      if (error.name === "AbortError") return;
      fill(text);
      about.textContent = app.errorText(error);
    }
    if (own === request) text.removeAttribute("aria-busy");
  }

  function show(view) {
    pages.hidden = total <= 1;
    field.value = at;
    field.max = total;
    field.setAttribute("aria-label", app.t(view.numbered ? "documents.page" : "documents.part"));
    of.textContent = app.t("documents.of", { total });
    before.setAttribute("aria-disabled", at <= 1);
    after.setAttribute("aria-disabled", at >= total);
    fill(text, view.text);
    text.scrollTop = 0;
    const here = cited.page === at;
    const mark = here ? markCited(text, cited) : null;
    const notes = [view.section];
    if (!view.text.trim()) notes.push(app.t("documents.empty"));
    else if (quotation && here && !mark) notes.push(app.t("documents.not_found"));
    if (view.truncated) notes.push(app.t("documents.truncated"));
    about.textContent = notes.filter(Boolean).join(" · ");
    mark?.scrollIntoView({ block: "center" });
  }

  app.panel.open({ title: name, actions: [downloadLink(app, { file, name })], body: [pages, about, text], onClose: () => request?.abort() });
  load(page ?? (quotation ? null : 1));
}

function atEnd(element, direction) {
  return direction < 0 ? element.scrollTop <= 0 : element.scrollTop + element.clientHeight >= element.scrollHeight - 1;
}

/**
 * Mark the sentence that supports what the answer says, in the passage that the model was shown; without one, the passage.
 * A passage elsewhere on the page is its beginning, or was found for another question. Returns the mark to look at.
 */
function markCited(element, { section, quotation, claim }) {
  const text = element.textContent;
  const passage = findQuotation(text, quotation) ?? (section ? findQuotation(text, section) : null);
  const sentence = claim ? findClaim(text, claim) : null;
  const cuts = [];
  if (sentence && passage && overlap(passage, sentence)) {
    if (passage.start < sentence.start) cuts.push([passage.start, sentence.start, "passage"]);
    cuts.push([sentence.start, sentence.end, "sentence"]);
    if (passage.end > sentence.end) cuts.push([sentence.end, passage.end, "passage"]);
  } else if (sentence) {
    cuts.push([sentence.start, sentence.end, "sentence"]);
  } else if (passage) {
    cuts.push([passage.start, passage.end, "passage"]);
  }
  const pieces = [];
  let at = 0;
  for (const [start, end, kind] of cuts) {
    pieces.push(text.slice(at, start), el("mark", { class: kind, text: text.slice(start, end) }));
    at = end;
  }
  fill(element, ...pieces, text.slice(at));
  return element.querySelector("mark.sentence") ?? element.querySelector("mark");
}

function overlap(a, b) {
  return a.start < b.end && b.start < a.end;
}

// Citations

function setupCitations(app) {
  const popover = el("div", { id: "citation", popover: "auto", role: "dialog", "aria-labelledby": "citation-title" });
  document.body.append(popover);

  document.addEventListener("click", (event) => {
    const link = event.target.closest?.("a.cite");
    if (!link) return;
    event.preventDefault(); // the address names a conversation
    const found = find(app, link);
    if (found) openCitation(app, found, (citation) => showPopover(app, popover, link, citation));
  });
  popover.onkeydown = (event) => {
    if (event.key !== "Escape") return;
    event.stopPropagation(); // it would stop the answer
    popover.hidePopover();
  };
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
  const words = [icon("document"), el("span", { text: placeOf(app, citation) })];
  if (!citation.file) return el("span", {}, ...words);
  return el("button", { type: "button", class: "source-file", onclick: () => openCitation(app, { citation, part }) }, ...words);
}

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
    el("h3", { id: "citation-title", text: citation.title || hostOf(citation.url ?? "") }),
    citation.text ? el("blockquote", { text: citation.text }) : null,
    citation.url ? externalLink(app, citation.url, app.t("citations.open")) : null);
  popover.showPopover?.();
  placeBeside(popover, link, {});
  (popover.querySelector("a") ?? popover).focus();
}
