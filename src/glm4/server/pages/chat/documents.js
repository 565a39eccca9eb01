// The side panel with the text of a document, at the cited page, with the cited place marked.

import { setupCitations } from "./citations.js";
import { el, fill, iconButton } from "./dom.js";
import { downloadLink } from "./files.js";
import { findClaim, findQuotation } from "./find_text.js";

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

  pages.addEventListener("submit", (event) => {
    event.preventDefault();
    go(Number(field.value));
  });
  field.addEventListener("change", () => go(Number(field.value)));
  text.addEventListener("keydown", (event) => {
    if (event.key === "PageDown" && atEnd(text, 1) && at < total) go(at + 1);
    else if (event.key === "PageUp" && atEnd(text, -1) && at > 1) go(at - 1);
    else return;
    event.preventDefault();
  });

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
 * Mark the sentence that supports what the answer says, in the passage that the model was shown; without such a sentence,
 * the passage. A passage elsewhere on the page is left out: it is the page's beginning, or was found for another
 * question. Returns the mark to look at; null if there is nothing to mark.
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
