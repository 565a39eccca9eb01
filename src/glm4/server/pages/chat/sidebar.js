// The list of conversations: by day, a page at a time, with marks of those that are being answered, and with keys.

import { isAway } from "./api.js";
import { byId, el, fill, icon, iconButton, textButton } from "./dom.js";
import { importFiles, openListMenu } from "./exports.js";
import { byDay, conversationRow, deleteRow, renameRow } from "./rows.js";
import { searchBox } from "./search.js";

const PAGE = 50;

export function setupSidebar(app) {
  const side = { app, conversations: [], more: false, loading: 0, renaming: null,
    draw: () => draw(side), reload: () => reload(side), removed: (id) => removed(side, id) };
  build(side);
  app.on("language", () => build(side));
  app.on("list", () => reload(side));
  app.on("session", () => sessionChanged(side));
  app.on("running", () => markRunning(side));
  app.on("conversation", () => markCurrent(side));
  app.shortcut("ctrl+k", "key.search", () => {
    app.toggleSidebar(true);
    byId("search").focus();
  });
  sessionChanged(side);
}

function sessionChanged(side) {
  showWhetherSaved(side.app);
  const { user } = side.app.session ?? {};
  if (user === side.user) return; // models may have changed, not the reader
  side.user = user;
  reload(side);
}

function build(side) {
  const { app } = side;
  const fresh = el("button", { type: "button", class: "new", onclick: () => startNew(app) }, icon("plus"),
    app.t("sidebar.new"));
  const menu = iconButton("more", app.t("sidebar.list_menu"), () => openListMenu(app, menu),
    { "aria-haspopup": "menu", "aria-expanded": "false" });
  const close = iconButton("close", app.t("sidebar.close"), () => app.toggleSidebar(false), { class: "drawer-close" });
  side.list = el("div", { class: "conversations", onkeydown: (event) => listKeys(side, event) });
  side.found = el("div", { class: "search-results", hidden: true,
    onkeydown: (event) => move(event, [...side.found.querySelectorAll("a")]) });
  const search = searchBox(app, side.found, (searching) => {
    side.found.hidden = !searching;
    side.list.hidden = searching;
  });
  fill(byId("sidebar-head"), el("div", { class: "sidebar-row" }, fresh, menu, close), search);
  const body = byId("sidebar-body");
  fill(body, side.list, side.found);
  body.dataset.drop = app.t("import.drop");
  acceptDrops(side, body);
  showWhetherSaved(app);
  draw(side);
}

function showWhetherSaved(app) {
  const lost = app.session?.user && !app.session.saved;
  byId("sidebar-foot").textContent = lost ? app.t("sidebar.not_saved") : "";
}

function startNew(app) {
  app.open(null);
  byId("composer-text")?.focus();
}

/** Load as many conversations as are shown now, and at least a page. */
async function reload(side) {
  if (!side.user) {
    Object.assign(side, { conversations: [], more: false });
    draw(side);
    return;
  }
  const wanted = Math.min(999, Math.max(PAGE, side.conversations.length));
  const asked = ++side.loading;
  try {
    const { conversations } = await side.app.api.get(`v1/agent/conversations?limit=${wanted}`);
    if (asked !== side.loading) return; // a later request knows more
    Object.assign(side, { conversations, more: conversations.length === wanted });
    draw(side);
  } catch (error) {
    if (!isAway(error) && error.status !== 401) side.app.fail(error);
  }
}

async function loadMore(side) {
  const last = side.conversations.at(-1);
  if (!last || !side.more) return;
  const asked = ++side.loading;
  side.more = false; // one request at a time
  try {
    const path = `v1/agent/conversations?limit=${PAGE}&after=${encodeURIComponent(last.id)}`;
    const { conversations } = await side.app.api.get(path);
    if (asked !== side.loading) return;
    const known = new Set(side.conversations.map((one) => one.id));
    side.conversations.push(...conversations.filter((one) => !known.has(one.id)));
    side.more = conversations.length === PAGE;
    draw(side);
  } catch {
    reload(side); // the last one was deleted elsewhere
  }
}

function markRunning({ app, list }) {
  for (const row of list.querySelectorAll("li[data-id]")) {
    row.querySelector(".running-mark").hidden = !app.running.has(row.dataset.id);
  }
}

function draw(side) {
  if (side.renaming) return; // what is being typed stays
  const { app, list } = side;
  const focused = list.contains(document.activeElement) ? document.activeElement : null;
  const kept = focused && { id: focused.closest("li[data-id]")?.dataset.id, menu: focused.matches("button") };
  const groups = byDay(side.conversations).map(({ key, conversations }) =>
    el("section", { "aria-labelledby": `group-${key}` }, el("h3", { id: `group-${key}` }, app.t(`sidebar.${key}`)),
      el("ul", {}, ...conversations.map((one) => conversationRow(side, one)))));
  if (!groups.length) groups.push(el("p", { class: "list-empty" }, app.t("sidebar.empty")));
  if (side.more) groups.push(moreButton(side));
  fill(list, groups);
  markCurrent(side);
  if (!kept) return;
  const row = kept.id && list.querySelector(`li[data-id="${CSS.escape(kept.id)}"]`);
  (row?.querySelector(kept.menu ? "button" : "a") ?? list.querySelector("a"))?.focus();
}

function moreButton(side) {
  const button = textButton(side.app.t("sidebar.more"), () => loadMore(side), { class: "more" });
  new IntersectionObserver(([entry]) => entry.isIntersecting && loadMore(side)).observe(button);
  return button;
}

/** A conversation is gone: the focus goes to the next one. */
function removed(side, id) {
  const links = [...side.list.querySelectorAll("a")];
  const at = links.findIndex((link) => link.closest("li").dataset.id === id);
  side.conversations = side.conversations.filter((one) => one.id !== id);
  (links[at + 1] ?? links[at - 1])?.focus();
  draw(side);
  if (side.app.state.id === id) side.app.open(null);
}

function markCurrent(side) {
  const shown = side.app.state.id;
  const links = [...side.list.querySelectorAll("a")];
  for (const link of links) {
    if (link.closest("li").dataset.id === shown) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  // One of them is reached with Tab, the others with the arrows.
  setStop(links, links.find((link) => link.hasAttribute("aria-current")) ?? links[0]);
}

function setStop(links, stop) {
  for (const link of links) {
    link.tabIndex = link === stop ? 0 : -1;
    link.closest("li").querySelector("button").tabIndex = link === stop ? 0 : -1;
  }
}

function listKeys(side, event) {
  const row = event.target.closest("li[data-id]");
  if (!row || side.renaming) return;
  const conversation = side.conversations.find((one) => one.id === row.dataset.id);
  if (event.key === "F2" || event.key === "Delete") {
    event.preventDefault();
    (event.key === "F2" ? renameRow : deleteRow)(side, conversation);
    return;
  }
  const links = [...side.list.querySelectorAll("a")];
  const next = move(event, links, row.querySelector("a"));
  if (next) setStop(links, next);
}

/** Arrow keys, Home and End in a list of links; returns the one that has the focus now, if it changed. */
function move(event, links, from = document.activeElement) {
  const at = links.indexOf(from);
  const steps = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: links.length - 1 };
  if (at < 0 || !(event.key in steps)) return null;
  event.preventDefault();
  const next = links[steps[event.key]] ?? null;
  next?.focus();
  return next;
}

function acceptDrops(side, area) {
  const hasFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  const handle = (act) => (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    event.stopPropagation(); // the composer would attach it
    act(event);
  };
  area.ondragover = handle(() => area.classList.add("dropping"));
  area.ondragleave = (event) => area.contains(event.relatedTarget) || area.classList.remove("dropping");
  area.ondrop = handle((event) => {
    area.classList.remove("dropping");
    importFiles(side.app, [...event.dataTransfer.files]);
  });
}
