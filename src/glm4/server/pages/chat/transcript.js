// The messages of the shown branch. Changes are collected, and drawn once per frame.

import { byId, icon } from "./dom.js";
import { MessageView } from "./message.js";

const ONE_TURN = '[data-action="edit"], [data-action="retry"]'; // they start one, and there is one at a time
const AT_ONCE = 12; // messages
const SLICE_MS = 12;
const NEAR_END = 64; // pixels: whoever is nearer follows what is written

/** Adds transcript {changed(changes), toEnd()} to the app. */
export function setupTranscript(app) {
  const root = byId("transcript");
  const scroller = byId("scroller");
  const jump = byId("jump");
  const welcome = byId("welcome");
  const views = new Map(); // message id → its view
  let dirty = new Map(); // message id → {parts: Map(number → {whole, codes}), notes, foot, all}
  let whole = false;
  let frame = 0;
  let following = true;
  let shown; // the state of the conversation
  let waiting = []; // views that are not drawn yet, or not again
  let slice = 0;

  jump.append(icon("down"));

  function changed(changes) {
    for (const change of changes) note(change);
    if (!frame && (whole || dirty.size)) frame = requestAnimationFrame(draw);
  }

  function note({ message, part = null, kind, block, add }) {
    if (kind === "conversation") {
      whole = true;
      return;
    }
    const one = dirty.get(message) ?? { parts: new Map(), notes: false, foot: false, all: false };
    dirty.set(message, one);
    if (kind === "message" || kind === "end" || kind === "part" || kind === "file") one.all = true;
    else if (kind === "progress" || kind === "error") one.notes = true;
    else if (kind === "usage" || kind === "about" || kind === "text") one.foot = true;
    else if (part !== null) {
      const drawn = one.parts.get(part) ?? { whole: false, codes: new Map() };
      one.parts.set(part, drawn);
      if (kind === "code") drawn.codes.set(block, (drawn.codes.get(block) ?? "") + add);
      else drawn.whole = true;
    }
  }

  function draw() {
    frame = 0;
    if (whole) reconcile();
    whole = false;
    for (const [id, one] of dirty) {
      const view = views.get(id);
      if (view) drawMessage(view, one);
    }
    dirty = new Map();
    if (following) toEnd();
    else showJump();
  }

  function drawMessage(view, one) {
    if (one.all) {
      view.sync();
      return;
    }
    for (const [number, { whole: all, codes }] of one.parts) {
      // A block that was replaced and then appended to is drawn whole: what it is now has both.
      if (all) view.syncPart(number);
      else for (const [block, add] of codes) view.appendCode(number, block, add);
    }
    if (one.notes) view.syncNotes();
    if (one.foot) view.syncStats();
  }

  /** Make the list of messages the branch; what is the same stays as it is. */
  function reconcile() {
    const branch = app.state.branch();
    const kept = new Map();
    const articles = branch.map((message, index) => {
      let view = views.get(message.id) ?? [...views.values()].find((one) => one.message === message);
      if (!view) view = new MessageView(app, message, index + 1);
      view.message = message;
      view.place(index + 1);
      kept.set(message.id, view);
      return view.root;
    });
    for (const [id, view] of views) if (kept.get(id) !== view && ![...kept.values()].includes(view)) view.root.remove();
    views.clear();
    for (const [id, view] of kept) views.set(id, view);
    articles.forEach((article, index) => {
      if (root.children[index] !== article) root.insertBefore(article, root.children[index] ?? null);
    });
    welcome.hidden = branch.length > 0;
    waiting = [...views.values()];
    for (const view of waiting.splice(-AT_ONCE)) view.sync();
    cancelAnimationFrame(slice);
    slice = requestAnimationFrame(drawRest);
  }

  /** Draw the messages further up, the last of them first, some in each frame. */
  function drawRest() {
    const until = performance.now() + SLICE_MS;
    while (waiting.length && performance.now() < until) waiting.pop().sync();
    if (waiting.length) slice = requestAnimationFrame(drawRest);
    if (following) toEnd();
  }

  function toEnd() {
    scroller.scrollTop = scroller.scrollHeight;
    jump.hidden = true;
  }

  function distance() {
    return scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight;
  }

  function showJump() {
    jump.hidden = distance() <= NEAR_END;
  }

  let top = 0;
  scroller.addEventListener("scroll", () => {
    // Only going up is the reader's wish to stay; the distance also grows when more is written.
    if (distance() <= NEAR_END) following = true;
    else if (scroller.scrollTop < top) following = false;
    top = scroller.scrollTop;
    showJump();
  }, { passive: true });
  jump.onclick = () => {
    following = true;
    toEnd();
    scroller.focus({ preventScroll: true });
  };
  // Pictures and a growing composer change the height without a change of the messages.
  new ResizeObserver(() => following && toEnd()).observe(root);
  new ResizeObserver(() => {
    jump.style.insetBlockEnd = `${scroller.parentElement.clientHeight - scroller.clientHeight + 12}px`;
    if (following) toEnd();
  }).observe(scroller);

  function forget() {
    for (const view of views.values()) view.root.remove();
    views.clear();
    waiting = [];
    dirty.clear();
  }

  app.on("conversation", ({ switched }) => {
    if (switched || shown !== app.state) {
      forget();
      following = true;
    }
    shown = app.state;
    changed([{ kind: "conversation" }]);
  });
  app.on("turn", () => {
    const busy = app.state.runningMessage() !== null;
    for (const button of root.querySelectorAll(ONE_TURN)) button.disabled = busy;
  });
  app.on("language", () => {
    forget(); // cards and bars have words, too
    changed([{ kind: "conversation" }]);
  });
  setInterval(() => {
    const running = app.state.runningMessage();
    if (running && !document.hidden) views.get(running.id)?.syncStats();
  }, 1000);

  app.transcript = {
    changed,
    toEnd() {
      following = true;
      toEnd();
    },
    focus(id, action) {
      requestAnimationFrame(() => {
        views.get(id)?.focusAction(action);
        views.get(id)?.root.scrollIntoView({ block: "nearest" });
      });
    },
    /** Show a message: a search has found it. */
    reveal(id) {
      requestAnimationFrame(() => {
        const view = views.get(id);
        if (!view) return;
        view.sync();
        following = false;
        view.root.scrollIntoView({ block: "start" });
        view.root.focus({ preventScroll: true });
        view.root.classList.add("found");
        setTimeout(() => view.root.classList.remove("found"), 2000);
      });
    },
  };
}
