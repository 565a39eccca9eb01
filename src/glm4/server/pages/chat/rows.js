// Conversations of the list, by day; of each its link, its menu, renaming in place, deleting after a question.

import { composing, el, iconButton } from "./dom.js";
import { exportItems } from "./exports.js";
import { openMenu } from "./menu.js";

const MAX_TITLE = 80; // the server's
const DAY = 24 * 60 * 60 * 1000;

/** The row of a conversation; `side` is the sidebar's. */
export function conversationRow(side, conversation) {
  const { app } = side;
  const title = titleOf(app, conversation);
  const running = app.t("sidebar.running");
  const mark = el("span", { class: "running-mark", role: "img", "aria-label": running, title: running });
  mark.hidden = !app.running.has(conversation.id);
  const link = el("a", { href: `#/c/${conversation.id}`, title }, mark, el("span", { class: "title", text: title }));
  const name = app.t("sidebar.row_menu", { title });
  const open = () => openMenu(button, name, [
    { label: app.t("sidebar.rename"), act: () => renameRow(side, conversation) },
    { label: app.t(conversation.pinned ? "sidebar.unpin" : "sidebar.pin"),
      act: () => change(side, conversation, { pinned: !conversation.pinned }) },
    ...exportItems(app, conversation),
    { label: app.t("sidebar.delete"), act: () => deleteRow(side, conversation), danger: true },
  ]);
  const button = iconButton("more", name, open, { "aria-haspopup": "menu", "aria-expanded": "false" });
  const row = el("li", { data: { id: conversation.id } }, link, button);
  row.oncontextmenu = (event) => {
    if (event.target.closest("input")) return;
    event.preventDefault();
    open();
  };
  return row;
}

function titleOf(app, conversation) {
  return conversation.title || app.t("sidebar.untitled");
}

/** Turn the title into a text field: Enter keeps what is typed, Escape does not. */
export function renameRow(side, conversation) {
  const { app } = side;
  const link = side.list.querySelector(`li[data-id="${CSS.escape(conversation.id)}"] a`);
  if (!link || side.renaming) return;
  side.renaming = conversation.id;
  const label = app.t("sidebar.new_title");
  const input = el("input", { type: "text", maxlength: MAX_TITLE, dir: "auto", class: "rename", "aria-label": label });
  input.value = conversation.title;
  const finish = (keep) => {
    if (side.renaming !== conversation.id) return; // blur follows Enter
    const focused = document.activeElement === input;
    const title = input.value.trim();
    side.renaming = null;
    input.replaceWith(link);
    if (focused) link.focus();
    if (keep && title && title !== conversation.title) change(side, conversation, { title });
    else side.draw();
  };
  input.onkeydown = (event) => {
    event.stopPropagation();
    if (composing(event) || !["Enter", "Escape"].includes(event.key)) return;
    event.preventDefault();
    finish(event.key === "Enter");
  };
  input.onblur = () => finish(true);
  link.replaceWith(input);
  input.focus();
  input.select();
}

export async function deleteRow(side, conversation) {
  const { app } = side;
  const title = titleOf(app, conversation);
  const question = { title: app.t("sidebar.delete_title"), text: app.t("sidebar.delete_text", { title }) };
  if (!(await app.ask({ ...question, confirm: app.t("sidebar.delete"), danger: true }))) return;
  try {
    await app.api.del(`v1/agent/conversations/${conversation.id}`);
  } catch (error) {
    if (error.status !== 404) { // else it is gone, as wanted
      app.fail(error);
      return;
    }
  }
  app.announce(app.t("sidebar.deleted", { title }));
  app.tell({ conversation: conversation.id });
  side.removed(conversation.id);
}

async function change(side, conversation, changes) {
  const { app } = side;
  try {
    Object.assign(conversation, await app.api.patch(`v1/agent/conversations/${conversation.id}`, changes));
    app.tell({ conversation: conversation.id });
    if (app.state.id === conversation.id && app.state.conversation) {
      Object.assign(app.state.conversation, conversation);
      app.emit("conversation", { switched: false });
    }
  } catch (error) {
    app.fail(error);
  }
  side.draw();
  side.reload();
}

/** Conversations, which come in the server's order, as groups that have some: [{key, conversations}]. */
export function byDay(conversations) {
  const now = new Date();
  const midnight = new Date(now.getFullYear(), now.getMonth(), now.getDate()).getTime();
  const groups = new Map(["pinned", "today", "yesterday", "week", "older"].map((key) => [key, []]));
  for (const one of conversations) groups.get(groupOf(one, midnight)).push(one);
  return [...groups].filter(([, found]) => found.length).map(([key, found]) => ({ key, conversations: found }));
}

function groupOf(conversation, midnight) {
  const changed = conversation.updated * 1000;
  if (conversation.pinned) return "pinned";
  if (changed >= midnight) return "today";
  // Half a day off is still the day before: clocks change twice a year.
  if (changed >= startOf(midnight, 1)) return "yesterday";
  return changed >= startOf(midnight, 7) ? "week" : "older";
}

function startOf(midnight, days) {
  const noon = new Date(midnight - days * DAY + DAY / 2);
  return new Date(noon.getFullYear(), noon.getMonth(), noon.getDate()).getTime();
}
