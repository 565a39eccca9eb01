// Server-sent events over fetch: one parser, and a follower that attaches again until the turn has ended.
//
// EventSource is not used: it cannot be told to wait, and browsers allow six of them per server.

import { ApiError } from "./api.js";

const SHORTEST_WAIT = 500;
const LONGEST_WAIT = 8000;
const KEEP_ALIVE = 25_000; // the server sends something more often than this, also while a prompt is read
const HIDDEN_MOST = 60_000; // then the stream is closed, and opened again when the page is looked at

/** Turns pieces of a stream into events, wherever the pieces are cut. */
export class EventParser {
  #rest = "";
  #data = [];

  /** Returns the data of the events that end in this piece, as text. Their types stand in it, too. */
  feed(piece) {
    const events = [];
    const lines = (this.#rest + piece).split("\n");
    this.#rest = lines.pop();
    for (const raw of lines) {
      const line = raw.endsWith("\r") ? raw.slice(0, -1) : raw;
      if (line.startsWith("data:")) {
        this.#data.push(line.slice(line[5] === " " ? 6 : 5));
      } else if (line === "" && this.#data.length) {
        events.push(this.#data.join("\n"));
        this.#data = [];
      }
    }
    return events;
  }
}

/** How long to wait before the attempt after `failures` failed ones, in milliseconds. */
export function backoff(failures, random = Math.random()) {
  const most = Math.min(LONGEST_WAIT, SHORTEST_WAIT * 2 ** failures);
  return SHORTEST_WAIT + random * (most - SHORTEST_WAIT);
}

/** A pause, {over: a promise, end()}; null is one without an end of its own. */
export function pause(milliseconds) {
  let end;
  const over = new Promise((resolve) => { end = resolve; });
  if (milliseconds !== null) setTimeout(end, milliseconds);
  return { over, end };
}

/**
 * Follow a turn. Every attach begins with a snapshot, so nothing can be missed or doubled.
 * onGone is called if the server does not know the turn (any more): its message is in the conversation.
 */
export function followTurn(app, turn, { onEvent, onGone }) {
  let closed = false;
  let paused = false;
  let failures = 0;
  let heard = performance.now();
  let attempt = null; // aborts what runs
  let endWait = () => {};
  let hiddenTimer = 0;

  async function attach() {
    attempt = new AbortController();
    const answer = await app.api.open(`ui/turns/${turn}/events`, { signal: attempt.signal });
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    const parser = new EventParser();
    let ended = false;
    for (;;) {
      const { value, done } = await reader.read();
      if (done) {
        attempt = null;
        return ended;
      }
      heard = performance.now();
      for (const data of parser.feed(value)) {
        if (closed) return true;
        const event = JSON.parse(data);
        failures = 0;
        try {
          onEvent(event);
        } catch (error) {
          console.error(error); // a fault of the page must not look like one of the connection
        }
        ended ||= event.type === "end";
      }
    }
  }

  async function run() {
    while (!closed) {
      if (paused) await waitFor(null);
      if (closed) return;
      try {
        if (await attach()) return;
      } catch (error) {
        if (closed) return;
        if (error instanceof ApiError && [400, 403, 404].includes(error.status)) {
          onGone(error);
          return;
        }
      }
      if (closed) return;
      await waitFor(backoff(failures));
      failures += 1;
    }
  }

  function waitFor(milliseconds) {
    const waiting = pause(milliseconds);
    endWait = waiting.end;
    return waiting.over;
  }

  /** The network or the page is back: try now, and drop a connection that has been silent for too long. */
  function wake() {
    if (performance.now() - heard > KEEP_ALIVE) attempt?.abort();
    endWait();
  }

  function onVisibility() {
    clearTimeout(hiddenTimer);
    if (document.hidden) {
      hiddenTimer = setTimeout(() => {
        paused = true;
        attempt?.abort();
      }, HIDDEN_MOST);
    } else {
      paused = false;
      wake();
    }
  }

  function close() {
    closed = true;
    clearTimeout(hiddenTimer);
    document.removeEventListener("visibilitychange", onVisibility);
    attempt?.abort();
    endWait();
  }

  document.addEventListener("visibilitychange", onVisibility);
  run().finally(close);
  return { close, wake };
}
