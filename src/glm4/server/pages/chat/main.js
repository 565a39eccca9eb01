// The start of the page: the app object, addresses (#/c/ID), the session, other tabs.

import { setupAccessibility } from "./a11y.js";
import { setupApi } from "./api.js";
import { setupArtifacts } from "./artifact.js";
import { setupComposer } from "./composer.js";
import { setupDocuments } from "./documents.js";
import { byId } from "./dom.js";
import { setupLanguage } from "./i18n.js";
import { setupLayout } from "./layout.js";
import { setupOperator } from "./operator.js";
import { setupConnection, setupLogin } from "./session.js";
import { setupSettings } from "./settings.js";
import { setupSidebar } from "./sidebar.js";
import { ConversationState } from "./state.js";
import { setupTranscript } from "./transcript.js";
import { setupTurns } from "./turns.js";

const app = {
  session: null,
  state: new ConversationState(),
  settings: { model: null, tools: [], system: "", params: {} },
  ...events(),
};

function events() {
  const listeners = new Map();
  return {
    /** `names` are separated by spaces. */
    on(names, listener) {
      for (const name of names.split(" ")) listeners.set(name, [...(listeners.get(name) ?? []), listener]);
    },
    emit(name, detail = {}) {
      for (const listener of listeners.get(name) ?? []) {
        try {
          listener(detail);
        } catch (error) {
          console.error(error); // the others have to hear of it all the same
        }
      }
    },
  };
}

// Conversations and addresses

function addressed() {
  return /^#\/c\/([A-Za-z0-9_-]+)$/.exec(location.hash)?.[1] ?? null;
}

/** The pages of the operator lie over whatever conversation is shown. */
function isOverlaid() {
  return location.hash === "#/operator";
}

app.showAddress = (id) => {
  if (isOverlaid()) return;
  const hash = id === null ? "#/" : `#/c/${id}`;
  if (location.hash === hash) return;
  // "Back" leads to what was shown before, not to the empty page that a conversation began as.
  if (["", "#/"].includes(location.hash)) history.replaceState(null, "", hash);
  else history.pushState(null, "", hash);
};

let opening = 0;

/** Show a conversation; null is a new one. `message` of `options` is scrolled to, on whatever branch it is. */
app.open = async (id, { message = null } = {}) => {
  opening += 1;
  const mine = opening;
  if (id === null) {
    app.showAddress(null);
    show(new ConversationState());
    return;
  }
  try {
    const path = `ui/conversations/${encodeURIComponent(id)}`;
    const state = new ConversationState();
    state.load(await app.api.get(path));
    if (message && !state.messages.has(message) && state.tree.has(message)) {
      state.load(await app.api.get(`${path}?leaf=${encodeURIComponent(state.leafBelow(message))}`));
    }
    if (mine !== opening) return;
    app.showAddress(id);
    show(state);
    if (message) app.transcript.reveal(message);
  } catch (error) {
    if (mine !== opening) return;
    app.fail(error);
    if (error.status === 404) app.open(null);
  }
};

function show(state) {
  app.state = state;
  app.emit("conversation", { id: state.id, switched: true });
  app.follow();
  if (app.session?.user) app.flushOutbox();
}

/** Read the shown conversation again: something may have happened elsewhere. */
app.reload = async () => {
  const { state } = app;
  if (state.id === null || !app.session?.user) return;
  try {
    let view;
    for (let turns = -1; turns !== state.turns; ) {
      turns = state.turns;
      view = await app.api.get(`ui/conversations/${encodeURIComponent(state.id)}`);
      if (state !== app.state) return;
    }
    app.transcript.changed(state.load(view));
    app.emit("conversation", { id: state.id, switched: false });
    app.follow();
  } catch (error) {
    if (error.status === 404 && state === app.state) {
      app.notice(app.t("conversation.gone"));
      app.open(null);
    }
  }
};

/** Show another branch, and remember it. */
app.select = async (leaf, { focus = null, action = null } = {}) => {
  const { id } = app.state;
  try {
    // First, so that no view which is on its way brings the other branch back.
    await app.api.patch(`v1/agent/conversations/${encodeURIComponent(id)}`, { leaf });
  } catch (error) {
    app.fail(error);
    return;
  }
  if (id !== app.state.id) return;
  await app.reload();
  if (focus) app.transcript.focus(focus, action);
  app.tell({ conversation: id });
};

// Links, "back" and what is typed into the address bar all come here.
window.addEventListener("popstate", () => {
  if (!isOverlaid() && addressed() !== app.state.id) app.open(addressed());
});

const channel = "BroadcastChannel" in globalThis ? new BroadcastChannel("glm4") : null;

app.tell = (what) => channel?.postMessage(what);

channel?.addEventListener("message", ({ data }) => {
  if (data.session) {
    app.refreshSession();
    return;
  }
  app.emit("list");
  if (data.conversation && data.conversation === app.state.id) app.reload();
});

function title() {
  const name = app.state.conversation?.title ?? "";
  const running = app.state.runningMessage() ? "● " : "";
  document.title = `${running}${name ? `${name} · ` : ""}glm4`;
  byId("title").textContent = name || "glm4"; // which is there for the first paint
}

async function start() {
  setupApi(app);
  await setupLanguage(app);
  setupAccessibility(app);
  setupLayout(app);
  setupConnection(app);
  setupTranscript(app);
  setupTurns(app);
  setupSettings(app);
  setupSidebar(app);
  setupComposer(app);
  setupDocuments(app);
  setupArtifacts(app);
  setupLogin(app);
  setupOperator(app);
  app.translate(document);
  app.on("conversation turn language", title);
  app.shortcut("ctrl+shift+o", "sidebar.new", () => app.open(null));
  app.shortcut("escape", "key.stop", () => {
    // What is open is closed first.
    if (document.querySelector("dialog:modal, :popover-open") || !app.state.runningMessage()) return false;
    return app.stop();
  });
  show(app.state);
  await app.refreshSession();
  // Whoever was quick has sent something by now; it must not be swept away.
  if (app.session?.user && app.state.leaf === null) await app.open(addressed());
  app.on("authorized", () => app.open(addressed()));
}

start();
