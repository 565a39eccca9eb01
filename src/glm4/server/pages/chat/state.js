// The conversation that is shown. Pure: no page, no network; all that changes it comes through load(), apply() and the
// methods for messages that are being sent. Every change is told as [{message, part, kind, …}].

const ENDED = ["completed", "stopped", "limit", "error", "interrupted"];

export class ConversationState {
  #childrenOf = null; // of the tree as it is now

  constructor() {
    this.id = null;
    this.conversation = null; // {id, title, system, model, params, leaf, pinned, created, updated}
    this.files = [];
    this.messages = new Map(); // those whose content is known
    this.tree = new Map(); // all: id → {id, parent, role, status, created}
    this.leaf = null;
    this.turns = 0; // that were started from here: a view that was asked for before may not have them
  }

  /** What GET ui/conversations/{id} answers. Messages that are being sent stay. */
  load(view) {
    const sending = this.branch().filter((message) => message.local);
    this.id = view.conversation.id;
    this.conversation = view.conversation;
    this.files = view.files ?? [];
    const before = this.messages;
    this.tree = new Map(view.tree.map((node) => [node.id, node]));
    this.#childrenOf = null;
    this.messages = new Map();
    for (const given of view.messages) {
      const message = newer(before.get(given.id), asMessage(given));
      this.messages.set(message.id, message);
      if (!this.tree.has(message.id)) this.tree.set(message.id, message);
    }
    this.leaf = view.messages.at(-1)?.id ?? null;
    for (const message of sending) {
      if (message.parent === null || this.tree.has(message.parent)) this.#append(message);
    }
    return [{ kind: "conversation" }];
  }

  /** The messages from the first to the last one that is shown. */
  branch() {
    return [...this.#upwards()].reverse();
  }

  *#upwards() {
    for (let at = this.messages.get(this.leaf); at; at = this.messages.get(at.parent)) yield at;
  }

  /** The messages that answer the same one as this message: {ids, index}. */
  siblings(id) {
    const node = this.tree.get(id) ?? this.messages.get(id);
    if (!node) return { ids: [id], index: 0 };
    const ids = this.#children().get(node.parent ?? null) ?? [];
    return { ids, index: Math.max(ids.indexOf(id), 0) };
  }

  /** The latest leaf below a message: what is shown of its branch. */
  leafBelow(id) {
    const children = this.#children(); // in the order of creation, as the tree
    let at = id;
    while (children.has(at)) at = children.get(at).at(-1);
    return at;
  }

  /** Parent → the messages that answer it. */
  #children() {
    if (this.#childrenOf) return this.#childrenOf;
    this.#childrenOf = new Map();
    for (const { id, parent } of this.tree.values()) {
      const known = this.#childrenOf.get(parent ?? null);
      if (known) known.push(id);
      else this.#childrenOf.set(parent ?? null, [id]);
    }
    return this.#childrenOf;
  }

  runningMessage() {
    for (const message of this.#upwards()) {
      if (message.role === "assistant" && message.status === "running") return message;
    }
    return null;
  }

  // Messages that are being sent

  /** A message of the user that the server does not have yet. */
  addLocal(id, { text, files, parent }) {
    const parts = [{ kind: "text", text }, ...files.map((file) => ({ kind: "file", ...file }))];
    const message = asMessage({ id, parent, role: "user", status: "sending", model: "", created: Date.now() / 1000,
      parts, usage: {} });
    message.local = true;
    this.#append(message);
    return [{ message: id, kind: "conversation" }];
  }

  removeLocal(id) {
    const message = this.messages.get(id);
    this.messages.delete(id);
    this.tree.delete(id);
    this.#childrenOf = null;
    if (this.leaf === id) this.leaf = message.parent ?? null;
    return [{ message: id, kind: "conversation" }];
  }

  /** The server has taken a message, and answers it. `ids` is what POST v1/agent/turns answers; `local` may be null. */
  started(local, ids, model) {
    this.turns += 1;
    const asked = this.messages.get(local);
    if (asked && local !== ids.user_message) {
      this.messages.delete(local);
      this.tree.delete(local);
      this.#childrenOf = null;
      Object.assign(asked, { id: ids.user_message, status: "completed", local: false });
      this.#append(asked);
    }
    if (this.id === null) this.id = ids.conversation;
    if (!this.messages.has(ids.message)) {
      this.#append(asMessage({ id: ids.message, parent: ids.user_message, role: "assistant", status: "running", model,
        created: Date.now() / 1000, parts: [], usage: {}, turn: ids.turn }));
    }
    return [{ message: ids.message, kind: "conversation" }];
  }

  #append(message) {
    this.messages.set(message.id, message);
    this.tree.set(message.id, message);
    this.#childrenOf = null;
    this.leaf = message.id;
  }

  // Events of turns

  /** An event of a turn. `now` is in milliseconds, for the speed of writing. */
  apply(event, message = this.runningMessage(), now = Date.now()) {
    const id = event.message ?? message?.id;
    const target = this.messages.get(event.type === "error" ? message?.id : id);
    const handle = HANDLERS[event.type];
    if (!target || !handle) return [];
    const change = handle(target, event, now);
    const node = this.tree.get(target.id);
    if (node) node.status = target.status;
    return change ? [{ message: target.id, part: event.part ?? null, ...change }] : [];
  }
}

/** A message as the page uses it, from one of the server's. Errors stand beside the parts, whose numbers events use. */
export function asMessage(given) {
  const parts = given.parts ?? [];
  return {
    id: given.id,
    parent: given.parent ?? null,
    role: given.role,
    status: given.status,
    model: given.model ?? "",
    created: given.created ?? 0,
    parts: parts.filter((part) => part.kind !== "error"),
    errors: parts.filter((part) => part.kind === "error"),
    usage: given.usage ?? {},
    files: given.files ?? [],
    turn: given.turn ?? null,
    reason: given.usage?.reason ?? null,
    progress: null,
    context: given.usage?.context ?? null,
    local: false,
    times: { started: null, first: null, pieces: 0, reasoning: {} },
  };
}

/**
 * The message to go on with. What is stored of one that is being written is older than what its stream has told, and a
 * view that was asked for before the end may arrive after it.
 */
function newer(known, given) {
  if (!known) return given;
  const { local, status, turn } = known;
  // Without a turn, it ended after the server had read the message.
  const same = turn && (given.turn === null || turn === given.turn);
  if (!local && given.status === "running" && (status !== "running" || same)) return known;
  return Object.assign(given, { times: known.times });
}

/** The Markdown of an answer, as the model wrote it. */
export function sourceOf(message) {
  return message.parts.filter((part) => part.kind === "text").map((part) => part.text).join("\n\n");
}

export function hasEnded(message) {
  return ENDED.includes(message.status);
}

/** Add plain text at the end of a rendered code block. */
export function withCode(block, add) {
  const at = block.lastIndexOf("</code>");
  const escaped = add.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  return at < 0 ? block : block.slice(0, at) + escaped + block.slice(at);
}

function partIndex(message, id) {
  return message.parts.findIndex((part) => part.call === id);
}

const HANDLERS = {
  snapshot(message, event, now) {
    event.parts.forEach(({ kind }, number) => {
      const last = number === event.parts.length - 1 && !event.end;
      // When it began is not told; nothing is written before the turn has been started.
      if (kind === "reasoning" && last) message.times.reasoning[number] ??= { from: message.times.started ?? now, to: null };
    });
    Object.assign(message, {
      model: event.model ?? message.model,
      context: event.context ?? message.context,
      parts: event.parts,
      files: event.files ?? [],
      usage: event.usage ?? {},
      errors: (event.errors ?? []).map((error) => ({ kind: "error", ...error })),
      turn: event.turn,
      status: event.end?.status ?? "running",
      reason: event.end?.reason ?? null,
      progress: event.progress ?? (event.parts.length ? null : message.progress),
    });
    return { kind: "message" };
  },

  turn(message, event) {
    Object.assign(message, { model: event.model, context: event.context, turn: event.turn });
    return { kind: "about" };
  },

  progress(message, event, now) {
    message.progress = { phase: event.phase, done: event.done, total: event.total };
    if (event.phase === "generate") message.times.writing = now;
    return { kind: "progress" };
  },

  part(message, event, now) {
    const tool = { state: "writing", arguments: "", output: [], files: [] };
    message.parts[event.part] = { kind: event.kind, ...(event.kind === "tool" ? tool : { text: "", blocks: [] }) };
    message.progress = null;
    if (event.kind === "reasoning") message.times.reasoning[event.part] = { from: now, to: null };
    else endReasoning(message, now);
    return { kind: "part" };
  },

  text(message, event, now) {
    const part = message.parts[event.part];
    if (!part) return null;
    part.text += event.add;
    countWriting(message, event.add, now);
    return { kind: "text" };
  },

  html(message, event) {
    const part = message.parts[event.part];
    if (!part) return null;
    part.blocks ??= [];
    part.blocks.splice(event.first, part.blocks.length, ...event.blocks);
    return { kind: "blocks", first: event.first };
  },

  code(message, event) {
    const blocks = message.parts[event.part]?.blocks;
    if (blocks?.[event.block] === undefined) return null;
    blocks[event.block] = withCode(blocks[event.block], event.add);
    return { kind: "code", block: event.block, add: event.add };
  },

  call(message, event, now) {
    const part = (message.parts[event.part] ??= { kind: "tool", arguments: "", output: [], files: [] });
    part.call = event.call;
    part.tool = event.tool;
    part.state = event.state;
    if (event.add) {
      part.arguments += event.add;
      countWriting(message, event.add, now);
    }
    for (const name of ["about", "seconds", "code"]) if (event[name] !== undefined) part[name] = event[name];
    return { kind: "call" };
  },

  output(message, event) {
    const number = partIndex(message, event.call);
    const part = message.parts[number];
    if (!part) return null;
    part.output ??= [];
    if (part.output.at(-1)?.channel !== event.channel) part.output.push({ channel: event.channel, text: "" });
    const output = part.output.at(-1);
    output.text += event.add;
    if (event.truncated) output.truncated = true;
    return { kind: "output", part: number, add: event.add };
  },

  file(message, event) {
    const { type, call, ...file } = event;
    const part = call && message.parts[partIndex(message, call)];
    if (part) (part.files ??= []).push(file);
    else message.files.push(file);
    return { kind: "file" };
  },

  citation(message, event) {
    const { type, part, ...citation } = event;
    const cited = message.parts[part];
    if (!cited) return null;
    (cited.citations ??= []).push(citation);
    return { kind: "citation" };
  },

  usage(message, event) {
    const usage = message.usage;
    usage.rounds = (usage.rounds ?? 0) + 1;
    usage.context = event.context;
    for (const name of ["prompt", "cached", "completion", "prefill_seconds", "decode_seconds"]) {
      if (typeof event[name] === "number") usage[name] = (usage[name] ?? 0) + event[name];
    }
    usage.last = { prompt: event.prompt, completion: event.completion };
    return { kind: "usage" };
  },

  error(message, event) {
    const { type, ...error } = event;
    message.errors.push({ kind: "error", ...error });
    return { kind: "error" };
  },

  end(message, event, now) {
    endReasoning(message, now);
    Object.assign(message, { status: event.status, reason: event.reason ?? null, turn: null, progress: null });
    message.usage.reason = event.reason;
    return { kind: "end" };
  },
};

function endReasoning(message, now) {
  for (const time of Object.values(message.times.reasoning)) time.to ??= now;
}

function countWriting(message, add, now) {
  const { times } = message;
  times.first ??= now;
  times.last = now;
  // About as many tokens: four letters, or one and a half Chinese characters.
  for (const character of add) times.pieces += character > "\u2e7f" ? 0.67 : 0.25;
}
