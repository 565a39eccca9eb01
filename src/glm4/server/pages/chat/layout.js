// The frame around the conversation: drawer and panel, banner, notices, questions, pictures.

import { byId, composing, el, fill, icon, iconButton, openDialog, stored, textButton } from "./dom.js";
import { downloadLink, fileAddress } from "./files.js";

const NARROW = "(max-width: 55rem)";
const NOTICE_MS = 8000;

/** Adds panel, notice, ask, showPicture and toggleSidebar to the app. */
export function setupLayout(app) {
  setupSidebarToggle(app);
  setupPanel(app);
  setupNotices(app);
  setupQuestions(app);
  setupPictures(app);
  for (const button of document.querySelectorAll("[data-close]")) {
    button.append(icon("close"));
    button.addEventListener("click", () => button.closest("dialog").close());
  }
  for (const dialog of document.querySelectorAll("dialog")) {
    // A click beside a dialog is a click on its backdrop, which belongs to the dialog itself.
    dialog.addEventListener("pointerdown", (event) => {
      if (event.target === dialog && !dialog.hasAttribute("data-modal")) dialog.close();
    });
  }
  byId("skip-link").addEventListener("click", (event) => {
    event.preventDefault(); // the address names a conversation
    byId("composer-text")?.focus();
  });
}

function setupSidebarToggle(app) {
  const toggle = byId("sidebar-toggle");
  const scrim = byId("scrim");
  const sidebar = byId("sidebar");
  const narrow = matchMedia(NARROW);
  let open = !narrow.matches && stored("glm4.sidebar") !== "closed";
  toggle.append(icon("menu"));

  function show() {
    document.body.classList.toggle("sidebar-open", open);
    toggle.setAttribute("aria-expanded", open);
    const drawer = open && narrow.matches;
    scrim.hidden = !drawer;
    sidebar.inert = !open;
    // The focus stays in the drawer.
    for (const id of ["center", "panel", "skip-link"]) byId(id).inert = drawer;
  }

  app.toggleSidebar = (wanted = !open) => {
    const had = sidebar.contains(document.activeElement);
    open = wanted;
    if (!narrow.matches) stored("glm4.sidebar", open ? "open" : "closed");
    show();
    if (!open && had) toggle.focus();
    if (open && narrow.matches) sidebar.querySelector("button, input, a")?.focus();
  };
  toggle.onclick = () => app.toggleSidebar();
  scrim.onclick = () => app.toggleSidebar(false);
  narrow.addEventListener("change", () => app.toggleSidebar(!narrow.matches && stored("glm4.sidebar") !== "closed"));
  sidebar.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !narrow.matches || event.defaultPrevented) return;
    event.preventDefault();
    app.toggleSidebar(false);
  });
  // On a phone the list has done its work once a conversation is chosen.
  sidebar.addEventListener("click", (event) => { // also the one that is shown already
    if (narrow.matches && event.target.closest("a[aria-current]")) app.toggleSidebar(false);
  });
  app.on("conversation", ({ switched }) => switched && narrow.matches && app.toggleSidebar(false));
  app.shortcut("ctrl+b", "key.sidebar", () => app.toggleSidebar());
  show();
}

/** app.panel.open({title, body, actions, onClose}) shows elements beside the transcript; app.panel.close() */
function setupPanel(app) {
  const panel = byId("panel");
  const close = byId("panel-close");
  let before = null;
  let ended = null;
  close.append(icon("close"));
  app.panel = {
    open({ title, body, actions = [], onClose = null }) {
      if (panel.hidden) before = document.activeElement;
      ended?.();
      ended = onClose;
      fill(byId("panel-title"), title);
      fill(byId("panel-actions"), actions);
      fill(byId("panel-body"), body);
      panel.hidden = false;
      close.focus({ preventScroll: true });
    },
    close() {
      if (panel.hidden) return;
      panel.hidden = true;
      ended?.();
      ended = null;
      byId("panel-body").replaceChildren();
      if (before?.isConnected) before.focus({ preventScroll: true });
    },
  };
  close.onclick = app.panel.close;
  panel.onkeydown = (event) => {
    if (event.key !== "Escape") return;
    event.preventDefault();
    event.stopPropagation();
    app.panel.close();
  };
  app.on("conversation", ({ switched }) => switched && app.panel.close());
}

/** app.notice(text, kind): "info" or "error" */
function setupNotices(app) {
  const notices = byId("notices");
  app.notice = (text, kind = "info") => {
    const notice = el("div", { class: "notice", data: { kind } }, el("span", { text }));
    const close = iconButton("close", app.t("notice.close"), () => notice.remove());
    notice.append(close);
    notices.append(notice);
    while (notices.children.length > 4) notices.firstElementChild.remove();
    app.announce(text, { assertive: kind === "error" });
    if (kind !== "error") setTimeout(() => notice.remove(), NOTICE_MS);
  };
}

/** await app.ask({title, text, confirm, danger, input}) → the input's text (true without input), or null */
function setupQuestions(app) {
  const dialog = byId("question-dialog");
  app.ask = ({ title, text = "", confirm, danger = false, input = null }) =>
    new Promise((resolve) => {
      let answer = null;
      const field = input === null ? null : el("input", { type: "text", value: input, "aria-labelledby": "question-title" });
      const accept = () => {
        answer = field ? field.value : true;
        dialog.close();
      };
      const yes = textButton(confirm, accept, { class: danger ? "danger" : "primary" });
      const no = textButton(app.t("dialog.cancel"), () => dialog.close());
      field?.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" || composing(event)) return;
        event.preventDefault(); // else the button that gets the focus back is pressed
        accept();
      });
      fill(dialog, el("h2", { id: "question-title", text: title }), text && el("p", { text }), field,
        el("div", { class: "dialog-foot" }, no, yes));
      dialog.addEventListener("close", () => resolve(answer), { once: true });
      openDialog(dialog);
      if (field) field.select();
      else (danger ? no : yes).focus();
    });
}

/** app.showPicture({file, name, alt}) */
function setupPictures(app) {
  const dialog = byId("picture-dialog");
  app.showPicture = (file) => {
    const close = iconButton("close", app.t("dialog.close"), () => dialog.close());
    fill(dialog,
      el("header", { class: "dialog-head" }, el("h2", { text: file.name }),
        downloadLink(app, file), close),
      el("img", { src: fileAddress(file), alt: file.alt ?? file.name, width: file.width, height: file.height }));
    openDialog(dialog);
  };
}
