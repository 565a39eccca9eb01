// Whether the server is there, who we are (and the login), what it has loaded, which turns run.

import { byId, el, fill } from "./dom.js";

const LOADING_MS = 1000;
const POLL_MS = 5000;
const AWAY_MS = 2000;

/** Adds refreshSession, reached, unauthorized and running (conversation id → turn) to the app. */
export function setupConnection(app) {
  const banner = byId("banner");
  let away = false;
  let timer = 0;
  let checking = null;
  app.running = new Map();

  app.reached = (yes) => {
    if (yes !== away) return;
    away = !yes;
    drawBanner();
    if (away) {
      app.announce(app.t("banner.away"), { assertive: true });
    } else {
      app.announce(app.t("banner.back"));
      app.emit("reached");
      app.refreshSession();
      app.reload();
      app.emit("list");
    }
    schedule();
  };

  app.unauthorized = () => {
    if (app.session?.user) app.refreshSession();
  };

  app.refreshSession = () => {
    checking ??= app.api.get("ui/session").then((session) => app.setSession(session)).catch(() => schedule()).finally(() => {
      checking = null;
    });
    return checking;
  };

  /** What GET ui/session or POST ui/login answers. */
  app.setSession = (session) => {
    const before = app.session;
    app.session = session;
    drawBanner();
    if (JSON.stringify(before) !== JSON.stringify(session)) app.emit("session", session);
    if (before && !before.user && session.user) app.emit("authorized");
    if (session.user) poll();
    schedule();
  };

  /** What is being done to load a model, in words. The server's "loading, 12% of 3,000 MB" has the share once more. */
  app.stageText = (model) => {
    const stage = (model.stage ?? "").split(",")[0];
    const repository = /^pulling (\S+)/.exec(stage)?.[1];
    if (repository) return app.t("stage.pulling", { repository });
    const key = `stage.${stage.replaceAll(" ", "_")}`;
    return app.has(key) ? app.t(key) : stage;
  };

  function loading() {
    return (app.session?.models ?? []).find((model) => model.state === "loading");
  }

  function schedule() {
    clearTimeout(timer);
    if (document.hidden) return;
    if (away || !app.session) timer = setTimeout(app.refreshSession, AWAY_MS);
    else if (loading()) timer = setTimeout(app.refreshSession, LOADING_MS);
    else if (app.session.user) timer = setTimeout(() => poll().finally(schedule), POLL_MS);
  }

  /** The turns that run, here and in other tabs or programs with the same key. */
  async function poll() {
    try {
      const { turns } = await app.api.get("v1/agent/turns");
      const now = new Map(turns.map((turn) => [turn.conversation, turn]));
      const changed = now.size !== app.running.size || [...now.keys()].some((id) => !app.running.has(id));
      app.running = now;
      if (changed) app.emit("running");
      const here = now.get(app.state.id);
      const message = app.state.runningMessage();
      if (Boolean(here) !== Boolean(message) || (here && message?.turn !== here.turn)) app.reload();
    } catch {
      // the banner says so
    }
  }

  function drawBanner() {
    const model = loading();
    const broken = (app.session?.models ?? []).find((one) => one.state === "failed");
    banner.hidden = !(away || model || broken);
    banner.dataset.kind = away ? "warn" : broken && !model ? "error" : "info";
    if (away) fill(banner, el("span", { text: app.t("banner.away") }));
    else if (model) drawLoading(model);
    else if (broken) fill(banner, el("span", { text: app.t("banner.failed", { model: broken.name, message: broken.error ?? "" }) }));
  }

  function drawLoading(model) {
    const stage = app.stageText(model);
    const known = typeof model.progress === "number";
    const bar = el("progress", { max: "1", "aria-label": app.t("banner.loading", { model: model.name }) });
    if (known) bar.value = model.progress;
    const percent = known ? app.percent(model.progress) : "";
    fill(banner, el("span", { text: app.t("banner.loading", { model: model.name }) }), bar,
      el("span", { class: "banner-stage", text: [stage, percent].filter(Boolean).join(" · ") }));
  }

  function back() {
    if (document.hidden) {
      clearTimeout(timer);
      return;
    }
    app.wakeStream?.();
    app.refreshSession();
    app.reload();
    app.emit("list");
  }
  document.addEventListener("visibilitychange", back);
  window.addEventListener("online", back);
  window.addEventListener("pageshow", (event) => event.persisted && back());
  let focused = 0;
  window.addEventListener("focus", () => {
    if (Date.now() - focused > 1000) back();
    focused = Date.now();
  });
  app.on("language", drawBanner);
}

// Login by API key: the server gives a cookie that scripts cannot read. What is in the composer stays; when the key has
// been accepted, the page goes on where it was.

export function setupLogin(app) {
  const login = { app, dialog: byId("login-dialog"), wrong: "" };
  // Without a key there is nothing behind this dialog: no key and no click closes it.
  // Browsers ask "cancel" only once, and close the second time.
  login.dialog.dataset.modal = "";
  login.dialog.setAttribute("closedby", "none");
  login.dialog.addEventListener("cancel", (event) => event.preventDefault());
  login.dialog.addEventListener("keydown", (event) => event.key === "Escape" && event.preventDefault());
  login.dialog.addEventListener("close", () => showLogin(login));
  app.on("session", () => showLogin(login));
  app.on("language", () => login.dialog.open && build(login));
  app.logout = () => logout(app);
  showLogin(login);
}

function showLogin(login) {
  const { app, dialog } = login;
  const needed = Boolean(app.session?.login && !app.session.user);
  if (needed && !dialog.open) {
    build(login);
    dialog.showModal();
    dialog.querySelector("input").focus();
  }
  if (needed || !dialog.open) return;
  dialog.close();
  byId("composer-text")?.focus();
}

function build(login) {
  const { app, dialog } = login;
  const key = el("input", { id: "login-key", type: "password", autocomplete: "current-password", required: true,
    spellcheck: "false", autocapitalize: "off", "aria-describedby": "login-help login-error" });
  // Password managers keep a password under a name.
  const name = el("input", { type: "text", autocomplete: "username", hidden: true, value: "glm4", tabindex: "-1" });
  const shown = el("input", { type: "checkbox", id: "login-shown" });
  shown.onchange = () => { key.type = shown.checked ? "text" : "password"; };
  const error = el("p", { class: "error", role: "alert", id: "login-error" }, login.wrong);
  const go = el("button", { type: "submit", class: "primary" }, app.t("login.login"));
  const form = el("form", { class: "login" },
    el("h2", { id: "login-title" }, app.t("login.title")),
    el("p", { class: "help", id: "login-help" }, app.t("login.help")),
    name, el("label", { for: "login-key" }, app.t("login.key")), key,
    el("div", { class: "check" }, shown, el("label", { for: "login-shown" }, app.t("login.show_key"))), error, go);
  form.onsubmit = async (event) => {
    event.preventDefault();
    go.disabled = true;
    error.textContent = "";
    const wrong = await enter(app, key.value.trim());
    go.disabled = false;
    if (!wrong) return;
    error.textContent = wrong;
    key.setAttribute("aria-invalid", "true");
    key.select();
    key.focus();
  };
  fill(dialog, form);
}

/** Try a key; returns what is wrong with it, else nothing. */
async function enter(app, key) {
  try {
    app.setSession(await app.api.post("ui/login", { key }));
  } catch (error) {
    return error.status === 401 ? app.t("login.wrong") : app.errorText(error);
  }
  byId("notices").replaceChildren(); // that the key was missing
  app.tell({ session: true }); // other tabs
  app.announce(app.t("login.done"));
  return "";
}

async function logout(app) {
  try {
    await app.api.post("ui/logout");
  } catch (error) {
    app.fail(error);
    return;
  }
  await app.open(null); // nothing of it stays on the screen
  await app.refreshSession();
  app.tell({ session: true });
}
