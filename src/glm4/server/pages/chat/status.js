// What stands below a message: how far it is, how it ended, what it cost.

import { el, icon, textButton } from "./dom.js";

const SHORTEST = 0.05; // seconds that are worth telling

/** Elements that say how a message is doing; none for one that is complete. */
export function statusNotes(app, message) {
  if (message.local) return [localNote(app, message)];
  const notes = [];
  if (message.status === "running") notes.push(...runningNotes(app, message));
  for (const error of message.errors) notes.push(errorNote(app, message, error));
  if (message.status === "stopped") notes.push(note(app.t("status.stopped"), "info"));
  if (message.status === "limit") {
    const key = `limit.${message.reason}`;
    notes.push(note(app.t(app.has(key) ? key : "limit.other", { reason: message.reason ?? "" }), "warn"));
  }
  if (message.status === "completed" && message.reason === "length") notes.push(note(app.t("limit.length"), "warn"));
  if (message.status === "interrupted") notes.push(note(app.t("status.interrupted"), "warn", again(app, message)));
  if (message.status === "error" && !message.errors.length) {
    notes.push(note(app.t("status.error"), "error", again(app, message)));
  }
  return notes;
}

function runningNotes(app, message) {
  if (message.stopping) return [working(app.t("status.stopping"))];
  const { progress } = message;
  if (progress && progress.phase !== "generate") {
    const { phase, done, total } = progress;
    const bar = total > 0 && el("progress", { max: total, "aria-label": app.t(`progress.${phase}`) });
    if (bar) bar.value = done;
    const key = `progress.${phase}`;
    return [working(total > 0 ? app.t(`${key}_of`, { done, total }) : app.t(key), bar)];
  }
  if (!message.parts.length) return [working(app.t("progress.waiting"))];
  return [];
}

function localNote(app, message) {
  if (message.status === "sending") return working(app.t("send.sending"));
  const again = textButton(app.t("send.again"), () => app.resend(message.id));
  const edit = textButton(app.t("send.edit"), () => app.takeBack(message.id));
  if (message.status === "waiting") return working(app.t("send.waiting"), edit);
  if (message.status === "away") return working(app.t("send.away"), edit);
  return note(app.t("send.failed", { message: message.failure ?? "" }), "error", again, edit);
}

function errorNote(app, message, error) {
  const key = `error.${error.code}`;
  const text = app.has(key) ? app.t(key, { message: error.message, status: "" }) : error.message;
  return note(text, "error", hasRetry(message) && again(app, message));
}

function hasRetry(message) {
  return message.role === "assistant" && message.status !== "running";
}

function again(app, message) {
  return textButton(app.t("message.retry"), () => app.retry(message.id));
}

function note(text, kind, ...actions) {
  return el("div", { class: "note", data: { kind } }, kind !== "info" && icon("warning"),
    el("span", { text }), ...actions);
}

function working(text, ...more) {
  return el("div", { class: "note working" }, el("span", { class: "dots", "aria-hidden": "true" }, el("i"), el("i"), el("i")),
    el("span", { text }), ...more);
}

/** Speed and cost in one line. While an answer is written they are estimates from its length. */
export function statLine(app, message) {
  if (message.role !== "assistant") return "";
  const { usage, times } = message;
  const told = [];
  if (message.status === "running") {
    const seconds = times.first === null ? 0 : (times.last - times.first) / 1000;
    if (seconds > 1) told.push(app.t("stats.about_speed", { speed: rounded(app, times.pieces / seconds) }));
    return told.join(" · ");
  }
  if (usage.completion) {
    if (usage.decode_seconds > 0 && usage.completion > 1) {
      told.push(app.t("stats.speed", { speed: rounded(app, usage.completion / usage.decode_seconds) }));
    }
    told.push(app.t("stats.tokens", { count: usage.completion }));
  }
  if (times.started !== null && times.first !== null) {
    told.push(app.t("stats.first", { time: app.duration((times.first - times.started) / 1000) }));
  } else if (usage.prefill_seconds >= SHORTEST) {
    told.push(app.t("stats.prefill", { time: app.duration(usage.prefill_seconds) }));
  }
  if (usage.prompt) {
    const key = usage.cached ? "stats.prompt_cached" : "stats.prompt";
    told.push(app.t(key, { count: usage.prompt, cached: usage.cached }));
  }
  return told.join(" · ");
}

function rounded(app, speed) {
  return app.number(speed, { maximumFractionDigits: speed < 10 ? 1 : 0 });
}
