// What the next turn is made with (app.settings), and the dialog in which it is chosen.
//
// The choices live in the conversation, on the server; a new conversation begins with those that were used last, which
// the browser keeps.

import { byId, el, fill, iconButton, openDialog, setName, stored, storedObject, textButton } from "./dom.js";
import { LANGUAGES } from "./i18n.js";
import { modelDetails, setupMeter, setupModels, toolName } from "./models.js";
import { systemEditor } from "./prompts.js";
import { samplingForm } from "./sampling.js";

const KEPT_AS = "glm4.settings";
const THEME = "glm4.theme";
const THEMES = ["system", "light", "dark"];

export function setupSettings(app) {
  /** Fields of the request for a turn. */
  app.settings.forTurn = () => chosen(app.settings);
  const settings = { app, dialog: byId("settings-dialog"), pending: 0, sending: null, shown: {}, told: "",
    last: lastUsed() };
  adopt(settings);
  app.choose = (changes) => choose(settings, changes);
  app.model = () => app.session?.models.find((one) => one.name === app.settings.model);
  app.openSettings = (section) => open(settings, section);
  app.on("conversation", () => adopt(settings));
  app.on("session", () => adopt(settings));
  app.on("turn", ({ running }) => running && app.session && remember(settings)); // before, no tool is known
  app.on("settings", () => show(settings));
  app.on("language", () => {
    if (settings.dialog.open) build(settings);
    nameButton();
  });
  const button = iconButton("settings", "", () => open(settings));
  const nameButton = () => setName(button, app.t("settings.title"));
  nameButton();
  byId("bar-tools").append(button);
  setupModels(app);
  setupMeter(app);
}

/** Take over the choices of the conversation that is shown; the last used ones for a new one. */
function adopt(settings) {
  const { app } = settings;
  const { id, conversation } = app.state;
  if (settings.pending || (id && !conversation)) return; // what was chosen is on its way
  const taken = conversation
    ? { model: conversation.model, system: conversation.system, tools: conversation.params.tools ?? [],
      params: conversation.params.sampling ?? {} }
    : settings.last;
  Object.assign(app.settings, offered(settings, taken));
  app.emit("settings", app.settings);
}

function lastUsed() {
  const { model = null, tools = [], system = "", params = {} } = storedObject(KEPT_AS);
  return { model, tools, system, params };
}

/** The choices without what this server does not have (any more). */
function offered(settings, { model, tools, system, params }) {
  const { app } = settings;
  const { models = [], tools: known = [] } = app.session ?? {};
  const usable = models.filter((one) => one.state !== "failed");
  const served = models.some((one) => one.name === model);
  if (model && !served && usable.length && app.state.id && settings.told !== app.state.id) {
    settings.told = app.state.id;
    const values = { model, other: usable[0].name };
    app.notice(app.t("settings.model_gone", values));
  }
  const names = new Set(known.map((tool) => tool.name));
  return { model: served ? model : usable[0]?.name ?? null, tools: tools.filter((name) => names.has(name)), system, params };
}

function remember(settings) {
  settings.last = { ...settings.app.settings };
  stored(KEPT_AS, JSON.stringify(settings.last));
}

function chosen({ model, tools, system, params }) {
  return { ...(model ? { model } : {}), tools, system, params };
}

/** Change some of the choices, here and in the conversation. */
async function choose(settings, changes) {
  const { app } = settings;
  Object.assign(app.settings, changes);
  remember(settings);
  app.emit("settings", app.settings);
  const { id } = app.state;
  if (!id) return;
  settings.pending += 1;
  // One after the other: the last choice must be the last to arrive.
  settings.sending = Promise.resolve(settings.sending).then(() => send(settings, id, changes));
}

async function send(settings, id, changes) {
  const { app } = settings;
  try {
    const changed = await app.api.patch(`v1/agent/conversations/${id}`, changes);
    if (app.state.id === id && app.state.conversation) Object.assign(app.state.conversation, changed);
    app.tell({ conversation: id });
  } catch (error) {
    app.fail(error);
  } finally {
    settings.pending -= 1;
  }
}

function open(settings, section = null) {
  build(settings);
  openDialog(settings.dialog);
  const target = section && settings.dialog.querySelector(`#settings-${section}`);
  if (target) target.scrollIntoView();
  (target?.querySelector("input, textarea, select, button") ?? settings.dialog.querySelector("input, textarea"))?.focus();
}

function build(settings) {
  const { app, dialog } = settings;
  const close = iconButton("close", app.t("dialog.close"), () => dialog.close());
  const system = systemEditor(app, (text) => app.choose({ system: text }));
  const sampling = samplingForm(app, (params) => app.choose({ params }));
  settings.shown = { system, sampling, details: el("div"), tools: el("div") };
  fill(dialog,
    el("header", { class: "dialog-head" }, el("h2", { id: "settings-title" }, app.t("settings.title")), close),
    el("div", { class: "dialog-body" },
      section(app, "model", settings.shown.details),
      section(app, "tools", settings.shown.tools),
      section(app, "system", system.element),
      section(app, "sampling", sampling.element),
      section(app, "appearance", themeChoice(app), languageChoice(app)),
      section(app, "about", about(settings))));
  dialog.onclose = () => system.flush();
  show(settings);
}

function section(app, name, ...children) {
  return el("section", { id: `settings-${name}`, "aria-labelledby": `settings-${name}-title` },
    el("h3", { id: `settings-${name}-title` }, app.t(`settings.${name}`)), ...children);
}

function show(settings) {
  const { app, shown } = settings;
  if (!shown.details) return; // not opened yet
  const model = app.model();
  fill(shown.details, modelDetails(app, model));
  showTools(app, shown.tools);
  shown.system.show(app.settings.system);
  shown.sampling.show(app.settings.params, model?.sampling ?? {});
}

function showTools(app, element) {
  const known = app.session?.tools ?? [];
  if (element.contains(document.activeElement) && element.children.length === known.length) return;
  const rows = known.map((tool) => {
    const id = `tool-${tool.name.replace(/[^\w-]/g, "_")}`;
    const input = el("input", { type: "checkbox", role: "switch", id, "aria-describedby": `${id}-about` });
    input.checked = app.settings.tools.includes(tool.name);
    input.onchange = () => {
      const others = app.settings.tools.filter((name) => name !== tool.name);
      app.choose({ tools: input.checked ? [...others, tool.name] : others });
    };
    return el("div", { class: "switch" }, input, el("label", { for: id }, toolName(tool.name)),
      el("p", { id: `${id}-about`, class: "help" }, summaryOf(app, tool)));
  });
  fill(element, rows.length ? rows : el("p", { class: "help" }, app.t("settings.no_tools")));
}

/** Tools of our own are described in the reader's language; others only by themselves. */
function summaryOf(app, tool) {
  return app.has(`settings.tool_${tool.name}`) ? app.t(`settings.tool_${tool.name}`) : tool.summary;
}

function choice(label, id, options, value, change) {
  const select = el("select", { id }, ...options.map(([name, text]) => el("option", { value: name }, text)));
  select.value = value;
  select.onchange = () => change(select.value);
  return el("div", { class: "field" }, el("label", { for: id }, label), select);
}

function themeChoice(app) {
  const options = THEMES.map((name) => [name, app.t(`settings.theme_${name}`)]);
  return choice(app.t("settings.theme"), "theme", options, stored(THEME) ?? "system", (theme) => {
    stored(THEME, theme === "system" ? null : theme);
    showTheme(theme);
  });
}

function showTheme(theme) {
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
}

function languageChoice(app) {
  return choice(app.t("settings.language"), "language", Object.entries(LANGUAGES), app.lang, async (lang) => {
    await app.setLanguage(lang);
    byId("language").focus();
  });
}

function about(settings) {
  const { app, dialog } = settings;
  const { version, login, user, operator } = app.session;
  const line = el("p", { class: "help" }, `glm4 ${version} · `, el("a", { href: "docs" }, app.t("settings.docs")));
  if (operator) line.append(" · ", el("a", { href: "#/operator", onclick: () => dialog.close() }, app.t("operator.title")));
  const leave = login && user && textButton(app.t("login.logout"), () => {
    dialog.close();
    stored(KEPT_AS, null); // the next one at this computer is somebody else
    settings.last = lastUsed();
    app.logout();
  });
  return el("div", {}, line, leave);
}
