// Sending, following, stopping; what is shown and the running turn belong together here.

import { isAway } from "./api.js";
import { newId, stored } from "./dom.js";
import { backoff, followTurn, pause } from "./stream.js";

const OUTBOX = "glm4.outbox";
const KNOWN_MS = 240_000; // for so long the server surely knows a client_id again

/** Adds send, resend, takeBack, stop, retry, edit, decide, follow and flushOutbox to the app. */
export function setupTurns(app) {
  const outbox = new Map(); // local id → {body, state, files, created, posted}
  const later = read(); // of an earlier life of this page, for conversations that are not shown yet
  let follower = null; // {turn, state, close, wake}

  // Sending

  /** Show and send a message. True once it is in the transcript; what becomes of it is shown there. */
  app.send = async ({ text, files = [], images = [] }) => {
    if (app.state.runningMessage()) {
      app.notice(app.t("error.turn_running"));
      return false;
    }
    const parent = app.state.branch().at(-1)?.id ?? null;
    return place({ text, files: [...files, ...images], parent });
  };

  app.edit = async (id, { text, files = [] }) => {
    const message = app.state.messages.get(id);
    if (!message) return false;
    return place({ text, files, parent: message.parent, edits: true });
  };

  function place({ text, files, parent, edits = false }) {
    const { state } = app;
    if (state.branch().some((message) => message.local)) {
      app.notice(app.t("send.one"));
      return false;
    }
    const id = newId();
    const body = { client_id: id, content: text };
    if (files.length) body.files = files.map((file) => file.file);
    if (state.id) body.conversation = state.id;
    if (edits) body.parent = parent ?? "root";
    const before = state.leaf;
    app.transcript.changed(state.addLocal(id, { text, files, parent }));
    app.transcript.toEnd();
    outbox.set(id, { body, state, files, before, created: Date.now(), posted: false });
    keep();
    deliver(id);
    return true;
  }

  app.resend = (id) => {
    const entry = outbox.get(id);
    if (!entry) return;
    entry.body.client_id = entry.failed ? newId() : entry.body.client_id;
    entry.failed = false;
    entry.state.messages.get(id).failure = null;
    deliver(id);
  };

  /** Not to be sent after all: it becomes the draft again. */
  app.takeBack = (id) => {
    const entry = outbox.get(id);
    if (!entry) return;
    entry.withdrawn = true;
    entry.wake?.();
    outbox.delete(id);
    keep();
    const changes = entry.state.removeLocal(id);
    entry.state.leaf = entry.before;
    if (entry.state === app.state) {
      app.transcript.changed(changes);
      app.emit("turn", { running: false, message: null });
    }
    app.emit("draft", { text: entry.body.content, files: entry.files });
  };

  async function deliver(id) {
    const entry = outbox.get(id);
    for (let failures = 0; outbox.get(id) === entry && !entry.withdrawn; failures += 1) {
      if (!modelReady()) {
        show(id, "waiting");
        await wait(entry, null);
        failures = -1;
        continue;
      }
      show(id, failures ? "away" : "sending");
      try {
        entry.posted = true;
        keep();
        const ids = await app.api.post("v1/agent/turns", { ...app.settings.forTurn(), ...entry.body });
        if (entry.withdrawn) await app.api.post(`v1/agent/turns/${ids.turn}/stop`).catch(() => {});
        else taken(id, entry, ids);
        return;
      } catch (error) {
        if (!isAway(error)) {
          failed(id, entry, error);
          return;
        }
        if (error.code === "shutting_down" || error.status) entry.posted = true;
      }
      show(id, "away");
      await wait(entry, backoff(failures));
    }
  }

  function wait(entry, milliseconds) {
    const { over, end } = pause(milliseconds);
    entry.wake = end;
    return over;
  }

  /** Whether the chosen model can answer. Unknown names are for the server to refuse. */
  function modelReady() {
    const models = app.session?.models ?? [];
    const name = app.settings.model ?? app.state.conversation?.model;
    const model = models.find((one) => one.name === name) ?? models[0];
    return model?.state === "ready" || model?.state === "failed";
  }

  function show(id, status) {
    const entry = outbox.get(id);
    const message = entry?.state.messages.get(id);
    if (!message || message.status === status) return;
    message.status = status;
    if (entry.state !== app.state) return;
    app.transcript.changed([{ message: id, kind: "end" }]);
    app.emit("turn", { running: status !== "failed", message: null, sending: true });
  }

  function taken(id, entry, ids) {
    outbox.delete(id);
    keep();
    const { state } = entry;
    const fresh = state.id === null;
    begun(state, id, ids);
    if (fresh && state === app.state) app.showAddress(ids.conversation);
    if (app.state.id === ids.conversation && (fresh || state !== app.state)) app.reload();
    app.emit("list");
  }

  /** The server answers: show the message that it writes. */
  function begun(state, local, ids) {
    const changes = state.started(local, ids, app.settings.model ?? "");
    mark(ids.conversation, ids);
    app.tell({ conversation: ids.conversation });
    if (state !== app.state) return;
    state.messages.get(ids.message).times.started = Date.now();
    app.transcript.changed(changes);
    follow(ids.message);
  }

  /** Which conversations are being answered: the list shows it. */
  function mark(conversation, turn) {
    if (turn) app.running.set(conversation, turn);
    else app.running.delete(conversation);
    app.emit("running");
  }

  function failed(id, entry, error) {
    entry.failed = true;
    const message = entry.state.messages.get(id);
    if (!message) return;
    message.failure = app.errorText(error);
    show(id, "failed");
    keep();
    app.announce(app.t("send.failed", { message: message.failure }), { assertive: true });
    if (error.code === "turn_running") app.reload();
  }

  // What is kept over a reload of the page

  function keep() {
    const entries = [...outbox].map(([id, { body, state, files, created, posted }]) => ({ id, files, created, posted,
      body: { ...body, conversation: state.id ?? undefined }, failure: state.messages.get(id)?.failure }));
    entries.push(...later);
    // Of this tab: another one would send it, too.
    stored(OUTBOX, entries.length ? JSON.stringify(entries) : null, { tab: true });
  }

  function read() {
    try {
      return JSON.parse(stored(OUTBOX, undefined, { tab: true }) ?? "[]");
    } catch {
      return []; // not ours
    }
  }

  /** What was being sent to the shown conversation when the page was closed: sent again, under the same client_id. */
  app.flushOutbox = () => {
    reshow();
    const { state } = app;
    const mine = later.find(({ body }) => (body.conversation ?? null) === state.id);
    if (!mine || state.branch().some((message) => message.local)) return;
    later.splice(later.indexOf(mine), 1);
    const { id, body, files, created, posted, failure } = mine;
    if (posted && !failure && Date.now() - created > KNOWN_MS) {
      app.emit("draft", { text: body.content, files });
    } else {
      const before = state.leaf;
      const parent = body.parent === undefined ? before : body.parent === "root" ? null : body.parent;
      app.transcript.changed(state.addLocal(id, { text: body.content, files, parent }));
      outbox.set(id, { body, state, files, before, created, posted, failed: Boolean(failure) });
      if (failure) Object.assign(state.messages.get(id), { failure, status: "failed" });
      else deliver(id);
    }
    keep();
  };

  /** Show what is being sent to this conversation, which was left and is shown again. */
  function reshow() {
    const { state } = app;
    for (const [id, entry] of outbox) {
      if (!state.id || entry.state === state || entry.state.id !== state.id) continue;
      const { status, failure, parent } = entry.state.messages.get(id);
      Object.assign(entry, { state, before: state.leaf });
      app.transcript.changed(state.addLocal(id, { text: entry.body.content, files: entry.files, parent }));
      Object.assign(state.messages.get(id), { status, failure });
      if (status !== "failed") app.emit("turn", { running: true, message: null, sending: true });
    }
  }

  app.on("session", ({ login, user }) => {
    if (login && !user) { // what is on the screen stays for who signs in again; nothing else for whoever comes next
      later.length = 0;
      for (const [id, { state }] of outbox) if (state !== app.state) outbox.delete(id);
      stored(OUTBOX, null, { tab: true });
    }
    for (const [id, entry] of outbox) if (entry.state.messages.get(id)?.status === "waiting") entry.wake?.();
  });
  app.on("reached", () => {
    for (const [id, entry] of outbox) if (entry.state.messages.get(id)?.status === "away") entry.wake?.();
    follower?.wake();
  });

  // Following

  /** Follow a message that is being written; at most one stream is open. */
  function follow(id) {
    const { state } = app;
    const message = state.messages.get(id);
    if (!message?.turn) return;
    if (follower?.turn === message.turn && follower.state === state) return;
    follower?.close();
    const { turn } = message;
    const mine = followTurn(app, turn, {
      onEvent(event) {
        if (follower?.turn !== turn) return;
        const now = state.messages.get(id);
        if (!now) return;
        app.transcript.changed(state.apply(event, now));
        app.emit("message", { id, event });
        if (now.status !== "running") ended(now);
      },
      onGone() {
        if (follower?.turn === turn) follower = null;
        // A server that has started again does not know the turn; the conversation says what became of it.
        app.reload().then(() => follower ?? app.emit("turn", { running: false, message: null }));
      },
    });
    follower = { turn, state, ...mine };
    say(true, message);
  }

  function say(running, message) {
    app.emit("turn", { running, message });
  }

  function ended(message) {
    if (!follower) return;
    follower = null;
    mark(app.state.id, null);
    say(false, message);
    app.emit("list");
    app.tell({ conversation: app.state.id });
  }

  /** Open the stream of the shown conversation's running message, or close the one of another. */
  app.follow = () => {
    const message = app.state.runningMessage();
    if (message?.turn) {
      follow(message.id);
      return;
    }
    follower?.close();
    follower = null;
    // The turn's own end may have been missed, or another conversation is shown.
    const branch = app.state.branch();
    const sending = branch.some((one) => one.local && one.status !== "failed");
    if (!message && !sending) say(false, branch.at(-1) ?? null);
  };

  app.wakeStream = () => follower?.wake();

  // Acting on messages

  app.stop = async () => {
    const sending = app.state.branch().find((message) => message.local && message.status !== "failed");
    if (sending) {
      app.takeBack(sending.id);
      return;
    }
    const message = app.state.runningMessage();
    if (!message?.turn || message.stopping) return;
    message.stopping = true;
    app.transcript.changed([{ message: message.id, kind: "progress" }]);
    app.announce(app.t("status.stopping"));
    try {
      await app.api.post(`v1/agent/turns/${message.turn}/stop`);
    } catch (error) {
      message.stopping = false;
      app.transcript.changed([{ message: message.id, kind: "progress" }]);
      if (error.status === 404) app.reload();
      else app.fail(error);
    }
  };

  app.retry = async (id) => {
    const { state } = app;
    const message = state.messages.get(id);
    const parent = message?.role === "assistant" ? message.parent : id;
    if (!parent || !state.id || state.runningMessage()) return;
    try {
      const body = { ...app.settings.forTurn(), client_id: newId(), conversation: state.id, parent };
      begun(state, null, await app.api.post("v1/agent/turns", body));
      if (state === app.state) app.transcript.toEnd();
    } catch (error) {
      app.fail(error);
      if (error.code === "turn_running") app.reload();
    }
  };

  app.decide = async (call, decision) => {
    const message = app.state.runningMessage();
    if (!message?.turn) return false;
    try {
      const { done } = await app.api.post(`v1/agent/turns/${message.turn}/approvals/${encodeURIComponent(call)}`,
        { decision });
      return done;
    } catch (error) {
      app.fail(error);
      return false;
    }
  };
}
