// Bars on code blocks, tables and formulas; HTML and SVG that a model wrote, in a frame of their own.
//
// What runs in the frame has no origin: no cookie, no storage, nothing of this page, and no network. The server sends it
// with a policy that says so, too, and only into a frame. Not covered: what it draws, which may look like anything.

import { byId, copyButton, el, fill, icon, iconButton, saveText } from "./dom.js";
import { dressTable } from "./tables.js";

const SAME_ENDING = new Set(`c cpp css csv diff go html java js json jsx lua md php py r sh sql svg swift tex toml ts tsx
  xml yaml`.split(/\s+/));
const ENDINGS = {
  __proto__: null,
  bash: "sh", csharp: "cs", javascript: "js", kotlin: "kt", latex: "tex", markdown: "md", python: "py", ruby: "rb",
  rust: "rs", shell: "sh", typescript: "ts", yml: "yaml",
};
const NAMED = /^\s*(?:#|\/\/|--|;|%|\/\*|<!--)\s*(?:file(?:name)?:\s*)?(?:[\w.-]+\/)*([\w-][\w.-]*\.[a-z][a-z0-9]{0,5})\s*(?:\*\/|-->)?\s*$/i;

export function setupArtifacts(app) {
  /** Show {kind: "html" | "svg", source, title?} in the side panel. */
  app.showArtifact = (artifact) => openArtifact(app, artifact);
}

/** Called once for each `div.block` that will not change any more. */
export function dressBlock(app, element) {
  for (const code of element.querySelectorAll("pre.code")) dressCode(app, code);
  for (const table of element.querySelectorAll("div.table")) dressTable(app, table);
  for (const formula of element.querySelectorAll(".formula[data-tex]")) dressFormula(app, formula);
}

function dressCode(app, pre) {
  if (pre.parentElement.classList.contains("code-block")) return;
  const language = pre.dataset.lang ?? "";
  const source = () => pre.textContent;
  const kind = artifactKind(language, source());
  const wrap = iconButton("wrap", app.t("artifact.wrap"), () => {
    wrap.setAttribute("aria-pressed", pre.classList.toggle("wrapped"));
  }, { "aria-pressed": "false" });
  const bar = el("div", { class: "code-bar" }, el("span", { class: "code-language", text: language || app.t("tools.code") }),
    kind ? el("button", { type: "button", class: "text-button", onclick: () => app.showArtifact({ kind, source: source() }) },
      icon("play"), app.t("artifact.show")) : null,
    wrap,
    iconButton("download", app.t("file.download"), () => saveText(fileName(language, source()), source())),
    copyButton(app, app.t("artifact.copy"), source));
  pre.setAttribute("aria-label", app.t("artifact.code_in", { language: language || app.t("tools.code") }));
  const block = el("div", { class: "code-block" });
  pre.replaceWith(block);
  block.append(bar, pre);
}

function artifactKind(language, source) {
  const name = language.toLowerCase();
  if (name === "html" || name === "xhtml") return "html";
  return name === "svg" || (name === "xml" && /^\s*(<\?xml[^>]*>\s*)?(<!--[\s\S]*?-->\s*)*<svg[\s>]/.test(source)) ? "svg" : null;
}

/** A name for code: the one in its first line if there is one, else by its language. */
function fileName(language, source) {
  const name = language.toLowerCase();
  const own = NAMED.exec(source.split("\n", 1)[0])?.[1];
  return own ?? `code.${SAME_ENDING.has(name) ? name : (ENDINGS[name] ?? "txt")}`;
}

function dressFormula(app, formula) {
  if (formula.querySelector("button")) return;
  formula.append(copyButton(app, app.t("artifact.copy_tex"), () => formula.dataset.tex));
}

function openArtifact(app, { kind, source, title = "" }) {
  const name = title || app.t(kind === "svg" ? "artifact.picture" : "artifact.page");
  const stage = el("div", { class: "artifact-stage" });
  const code = el("pre", { class: "code artifact-source", tabindex: "0", hidden: true, "aria-label": app.t("artifact.source") },
    el("code", { text: source }));
  const toggle = iconButton("code", app.t("artifact.source"), () => {
    code.hidden = !code.hidden;
    stage.hidden = !code.hidden;
    toggle.setAttribute("aria-pressed", !code.hidden);
  }, { "aria-pressed": "false" });
  const wide = iconButton("expand", app.t("artifact.larger"), () => {
    setWide(!document.body.classList.contains("panel-wide"));
  }, { "aria-pressed": "false" });

  const behind = ["center", "sidebar", "skip-link"].map((id) => byId(id));
  let reached = []; // what could be reached before

  /** Over the whole window; what is behind it cannot be reached then. */
  function setWide(value) {
    if (value === document.body.classList.contains("panel-wide")) return;
    document.body.classList.toggle("panel-wide", value);
    wide.setAttribute("aria-pressed", value);
    if (value) reached = behind.filter((element) => !element.inert);
    for (const element of reached) element.inert = value;
  }

  async function load() {
    fill(stage, el("p", { class: "artifact-note", role: "status", text: app.t("artifact.loading") }));
    try {
      const { id } = await app.api.post("ui/artifacts", { kind, source });
      // Its document, not this page, decides what it may load; the sandbox keeps it from being anybody here.
      fill(stage, el("iframe", { src: `ui/artifacts/${encodeURIComponent(id)}`, sandbox: "allow-scripts", title: name,
        referrerpolicy: "no-referrer" }));
    } catch (error) {
      fill(stage, el("p", { class: "artifact-note", role: "alert", text: app.errorText(error) }));
    }
  }

  const reload = iconButton("retry", app.t("artifact.reload"), load);
  const save = iconButton("download", app.t("file.download"), () => {
    saveText(title.includes(".") ? title : fileName(kind, source), source);
  });
  app.panel.open({ title: name, actions: [toggle, reload, wide, save], body: [stage, code],
    onClose: () => setWide(false) });
  load();
}
