// One conversation of the list: its link, its menu, renaming in place, deleting after a question.

import { composing, el, iconButton } from "./dom.js";
import { exportItems } from "./exports.js";
import { openMenu } from "./menu.js";

const MAX_TITLE = 80; // the server's

/** The row of a conversation.
 * @param {{app: object, list: HTMLElement, renaming: string|null}} side
 * @param {{changed: () => void, removed: (id: string) => void, drawAgain: () => void}} actions
 */
export function conversationRow(side, conversation, actions) {
  const { app } = side;
  const title = titleOf(app, conversation);
  const running = app.t("sidebar.running");
  const mark = el("span", { class: "running-mark", role: "img", "aria-label": running, title: running });
  mark.hidden = !app.running.has(conversation.id);
  const link = el("a", { href: `#/c/${conversation.id}`, title }, mark, el("span", { class: "title", dir: "auto" }, title));
  const name = app.t("sidebar.row_menu", { title });
  const open = () => openMenu(button, name, [
    { label: app.t("sidebar.rename"), act: () => renameRow(side, conversation, actions) },
    { label: app.t(conversation.pinned ? "sidebar.unpin" : "sidebar.pin"),
      act: () => change(app, conversation, { pinned: !conversation.pinned }, actions) },
    ...exportItems(app, conversation),
    { label: app.t("sidebar.delete"), act: () => deleteRow(side, conversation, actions), danger: true },
  ]);
  const button = iconButton("more", name, open, { "aria-haspopup": "menu", "aria-expanded": "false" });
  const row = el("li", { data: { id: conversation.id } }, link, button);
  row.addEventListener("contextmenu", (event) => {
    if (event.target.closest("input")) return;
    event.preventDefault();
    open();
  });
  return row;
}

export function titleOf(app, conversation) {
  return conversation.title || app.t("sidebar.untitled");
}

/** Turn the title into a text field: Enter keeps what is typed, Escape does not. */
export function renameRow(side, conversation, actions) {
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
    if (keep && title && title !== conversation.title) change(app, conversation, { title }, actions);
    else actions.drawAgain();
  };
  input.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (composing(event) || !["Enter", "Escape"].includes(event.key)) return;
    event.preventDefault();
    finish(event.key === "Enter");
  });
  input.addEventListener("blur", () => finish(true));
  link.replaceWith(input);
  input.focus();
  input.select();
}

/** Delete a conversation once the reader has said so. */
export async function deleteRow(side, conversation, actions) {
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
  actions.removed(conversation.id);
}

async function change(app, conversation, changes, actions) {
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
  actions.drawAgain();
  actions.changed();
}
