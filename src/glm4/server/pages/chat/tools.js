// Cards of tool calls, and files in messages.

import { el } from "./dom.js";

/** The card of a tool's part. */
export function toolCard(app, part) {
  const card = el("details", { class: "tool-card" });
  updateToolCard(app, card, part);
  return card;
}

/** Bring a card up to date with its part. */
export function updateToolCard(app, card, part) {
  card.dataset.state = part.state;
  card.replaceChildren(el("summary", { text: `${part.tool} · ${part.state}` }), el("pre", { text: part.arguments }),
    ...(part.output ?? []).map((output) => el("pre", { text: output.text })));
}

/** A file that a user sent or a tool made: {file, name, media_type, bytes, width?, height?, alt?}. */
export function fileCard(app, file) {
  return el("a", { class: "file-card", href: `v1/agent/files/${file.file}`, download: file.name, text: file.name });
}
