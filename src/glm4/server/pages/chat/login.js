// Login by API key: the server gives a cookie that scripts cannot read. What is in the composer stays; when the key has
// been accepted, the page goes on where it was.

import { byId, el, fill } from "./dom.js";

export function setupLogin(app) {
  const login = { app, dialog: byId("login-dialog"), wrong: "" };
  // Without a key there is nothing behind this dialog: no key and no click closes it.
  // Browsers ask "cancel" only once, and close the second time.
  login.dialog.dataset.modal = "";
  login.dialog.setAttribute("closedby", "none");
  login.dialog.addEventListener("cancel", (event) => event.preventDefault());
  login.dialog.addEventListener("keydown", (event) => event.key === "Escape" && event.preventDefault());
  login.dialog.addEventListener("close", () => show(login));
  app.on("session", () => show(login));
  app.on("language", () => login.dialog.open && build(login));
  app.logout = () => logout(app);
  show(login);
}

function show(login) {
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
  shown.addEventListener("change", () => { key.type = shown.checked ? "text" : "password"; });
  const error = el("p", { class: "error", role: "alert", id: "login-error" }, login.wrong);
  const go = el("button", { type: "submit", class: "primary" }, app.t("login.login"));
  const form = el("form", { class: "login" },
    el("h2", { id: "login-title" }, app.t("login.title")),
    el("p", { class: "help", id: "login-help" }, app.t("login.help")),
    name, el("label", { for: "login-key" }, app.t("login.key")), key,
    el("div", { class: "check" }, shown, el("label", { for: "login-shown" }, app.t("login.show_key"))), error, go);
  form.addEventListener("submit", async (event) => {
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
  });
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
