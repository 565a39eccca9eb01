// One message of the transcript. sync() may be called at any time and draws only what differs.

import { dressBlock } from "./artifact.js";
import { sourceList } from "./documents.js";
import { block, composing, copyButton, el, fill, iconButton, textButton } from "./dom.js";
import { hasEnded, sourceOf } from "./state.js";
import { statLine, statusNotes } from "./status.js";
import { fileCard, toolCard, updateToolCard } from "./tools.js";

const LONG = 40; // blocks; from then on the browser skips the layout of those out of sight

export class MessageView {
  constructor(app, message, number) {
    this.app = app;
    this.message = message;
    this.parts = []; // {kind, root, blocks | card}
    this.heading = el("h2", { class: "speaker", dir: "auto" });
    this.body = el("div", { class: "message-body" });
    this.notes = el("div", { class: "message-notes" });
    this.actions = el("div", { class: "message-actions" });
    this.stats = el("span", { class: "message-stats" });
    this.foot = el("footer", { class: "message-foot" }, this.actions, this.stats);
    this.root = el("article", { class: "message", tabindex: "-1" }, this.heading, this.body, this.notes, this.foot);
    this.place(number);
  }

  place(number) {
    this.number = number;
    const { message, app } = this;
    const speaker = message.role === "user" ? app.t("message.you") : message.model || app.t("message.assistant");
    this.heading.textContent = speaker;
    this.root.setAttribute("aria-label", app.t("message.label", { speaker, number }));
    this.root.dataset.role = message.role;
    this.root.dataset.id = message.id;
  }

  sync() {
    const { message, root } = this;
    root.dataset.status = message.status;
    this.syncParts();
    this.syncNotes();
    this.syncFoot();
  }

  syncParts() {
    const { message, body } = this;
    if (this.editor) return;
    const wanted = [...message.parts, ...message.files.filter(() => message.role === "assistant")
      .map((file) => ({ kind: "file", ...file }))];
    for (let number = 0; number < wanted.length; number += 1) {
      if (this.parts[number] && this.parts[number].kind !== wanted[number].kind) this.cut(number);
      if (!this.parts[number]) {
        const made = this.make(wanted[number], number);
        this.parts.push(made);
        body.append(made.root);
      }
      this.syncPart(number, wanted[number]);
    }
    this.cut(wanted.length);
  }

  cut(number) {
    for (const { root } of this.parts.splice(number)) root.remove();
  }

  make(part, number) {
    const { app, message } = this;
    if (part.kind === "tool") return { kind: "tool", root: toolCard(app, part, hasEnded(message)), shown: null };
    if (part.kind === "file") return { kind: "file", root: fileCard(app, part) };
    if (part.kind === "reasoning") {
      const blocks = el("div", { class: "blocks" });
      const summary = el("summary", { class: "reasoning-summary" });
      const root = el("details", { class: "reasoning" }, summary, blocks);
      const made = { kind: "reasoning", root, summary, blocks: new Blocks(app, blocks), number };
      root.open = this.isLast(number) && !hasEnded(message);
      summary.onclick = () => { made.touched = true; };
      return made;
    }
    const root = el("div", { class: "blocks" });
    return { kind: part.kind, root, blocks: new Blocks(app, root) };
  }

  isLast(number) {
    return number === this.message.parts.length - 1;
  }

  syncPart(number, part = this.message.parts[number]) {
    const drawn = this.parts[number];
    if (!drawn || !part) return;
    const final = hasEnded(this.message) || !this.isLast(number) || this.message.role === "user";
    if (drawn.kind === "tool") updateToolCard(this.app, drawn.root, part, hasEnded(this.message));
    else if (drawn.kind === "file") return;
    else if (this.message.role === "user" || !part.blocks) plain(drawn.root, part.text);
    else drawn.blocks.show(part.blocks, final);
    if (drawn.kind === "reasoning") this.syncReasoning(drawn, final);
  }

  syncReasoning(drawn, final) {
    const time = this.message.times.reasoning[drawn.number];
    const { t, duration } = this.app;
    if (!final) fill(drawn.summary, t("reasoning.running"));
    else if (time?.to) fill(drawn.summary, t("reasoning.took", { time: duration((time.to - time.from) / 1000) }));
    else fill(drawn.summary, t("reasoning.done"));
    drawn.root.classList.toggle("running", !final);
    // Folded once it is written, unless the reader has folded or unfolded it.
    if (final && drawn.wasOpen && !drawn.touched) drawn.root.open = false;
    drawn.wasOpen = !final;
  }

  appendCode(number, block, add) {
    const part = this.message.parts[number];
    this.parts[number]?.blocks?.append(block, add, part.blocks[block]);
  }

  syncNotes() {
    fill(this.notes, sourceList(this.app, this.message), statusNotes(this.app, this.message));
  }

  syncStats() {
    const line = statLine(this.app, this.message);
    if (this.stats.textContent !== line) this.stats.textContent = line;
  }

  syncFoot() {
    const { app, message } = this;
    const key = JSON.stringify([message.id, message.local, app.lang, app.state.siblings(message.id)]);
    this.syncStats();
    if (key === this.footKey) return;
    this.footKey = key;
    const focused = this.foot.contains(document.activeElement) ? document.activeElement.dataset.action : null;
    fill(this.actions, ...this.buttons());
    if (focused) this.actions.querySelector(`[data-action="${focused}"]`)?.focus();
  }

  buttons() {
    const { app, message } = this;
    if (message.local) return [];
    const { ids, index } = app.state.siblings(message.id);
    const busy = app.state.runningMessage() !== null;
    const made = [];
    if (ids.length > 1) made.push(this.branches(ids, index));
    made.push(copyButton(app, app.t("message.copy"), () => sourceOf(message), { data: { action: "copy" } }));
    if (message.role === "user") {
      made.push(iconButton("edit", app.t("message.edit"), () => openEditor(this), { disabled: busy,
        data: { action: "edit" } }));
    }
    if (message.role === "assistant") {
      made.push(iconButton("retry", app.t("message.retry"), () => app.retry(message.id), { disabled: busy,
        data: { action: "retry" } }));
    }
    return made;
  }

  branches(ids, index) {
    const { app } = this;
    const step = (by, action) =>
      app.select(app.state.leafBelow(ids[index + by]), { focus: ids[index + by], action });
    return el("span", { class: "branches", role: "group", "aria-label": app.t("message.branches") },
      iconButton("left", app.t("message.previous"), () => step(-1, "previous"), { disabled: index === 0,
        data: { action: "previous" } }),
      el("span", { class: "branch-place", text: app.t("message.branch", { index: index + 1, total: ids.length }) }),
      iconButton("right", app.t("message.next"), () => step(1, "next"), { disabled: index === ids.length - 1,
        data: { action: "next" } }));
  }

  /** Give the keyboard back to a button that was used on another version of this message. */
  focusAction(action) {
    const other = action === "next" ? "previous" : "next";
    const wanted = [action, other].map((name) => this.actions.querySelector(`[data-action="${name}"]:not(:disabled)`));
    (wanted.find(Boolean) ?? this.root).focus({ preventScroll: true });
  }
}

/** A user's words, as they were typed. */
function plain(root, text) {
  if (root.textContent === text && root.classList.contains("plain")) return;
  root.classList.add("plain");
  root.setAttribute("dir", "auto");
  root.textContent = text;
}

/** Edit a question in its place: the new one is a branch beside it. */
function openEditor(view) {
  const { app, message, body, root } = view;
  if (view.editor) return;
  const text = message.parts.find((part) => part.kind === "text")?.text ?? "";
  const files = message.parts.filter((part) => part.kind === "file").map(({ kind, ...file }) => file);
  const area = el("textarea", { class: "editor-text", "aria-label": app.t("edit.label"), dir: "auto" });
  area.value = text;
  const close = () => {
    view.editor.remove();
    view.editor = null;
    body.hidden = false;
    root.classList.remove("editing");
    view.sync();
    root.querySelector('[data-action="edit"]')?.focus();
  };
  const send = () => {
    if (!area.value.trim()) return;
    close();
    app.edit(message.id, { text: area.value, files });
  };
  view.editor = el("div", { class: "editor" }, area,
    el("div", { class: "editor-foot" },
      el("p", { class: "hint", text: app.t("edit.hint") }),
      textButton(app.t("dialog.cancel"), close),
      textButton(app.t("composer.send"), send, { class: "primary" })));
  area.onkeydown = (event) => {
    if (composing(event)) return;
    if (event.key === "Escape") close();
    else if (event.key === "Enter" && !event.shiftKey) send();
    else return;
    event.preventDefault();
    event.stopPropagation();
  };
  body.hidden = true;
  root.classList.add("editing");
  body.after(view.editor);
  area.focus();
  area.setSelectionRange(text.length, text.length);
}

/** Rendered blocks of one part in `root`: each is a `div.block`, replaced by its number only, never the whole. */
class Blocks {
  constructor(app, root) {
    this.app = app;
    this.root = root;
    this.drawn = [];
    this.dressed = 0; // so many from the beginning
  }

  /** Draw what differs from `blocks`; the last one may still change, unless `final`. */
  show(blocks, final) {
    let same = 0;
    while (same < blocks.length && same < this.drawn.length && this.drawn[same] === blocks[same]) same += 1;
    const { root } = this;
    while (root.children.length > same) root.lastElementChild.remove();
    const added = blocks.slice(same).map((safe) => el("div", { class: "block" }, block(safe)));
    root.append(...added);
    this.drawn = blocks.slice();
    this.dressed = Math.min(this.dressed, same);
    this.dress(final ? blocks.length : blocks.length - 1);
    root.classList.toggle("long", blocks.length > LONG);
  }

  /** Append plain text to the code of a block; `now` is the block that results. */
  append(number, add, now) {
    const code = this.root.children[number]?.querySelector("code");
    if (!code || this.drawn[number] === undefined) return;
    if (code.lastChild?.nodeType === Node.TEXT_NODE) code.lastChild.appendData(add);
    else code.append(add);
    this.drawn[number] = now;
  }

  dress(until) {
    for (; this.dressed < until; this.dressed += 1) {
      dressBlock(this.app, this.root.children[this.dressed]);
    }
  }
}
