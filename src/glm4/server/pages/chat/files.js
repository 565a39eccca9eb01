// Files in messages: pictures as thumbnails that a dialog enlarges, sounds with a player, all others as cards.
// Their addresses need no key in them: the cookie goes along, and the server answers only to whom a file belongs.

import { el, icon, iconButton } from "./dom.js";

const PICTURES = ["image/png", "image/jpeg", "image/webp", "image/gif"];
const ARTIFACTS = { __proto__: null, "text/html": "html", "image/svg+xml": "svg" };
const UNREADABLE = ["application/octet-stream", "application/zip", "application/gzip"];
const MOST_ARTIFACT_BYTES = 2_000_000;

/** "picture" (a browser shows it), "audio", "video", "document" (its text can be read) or "other". */
export function fileKind(type = "") {
  if (PICTURES.includes(type)) return "picture";
  if (type.startsWith("audio/")) return "audio";
  if (type.startsWith("video/")) return "video";
  if (UNREADABLE.includes(type) || (type.startsWith("image/") && type !== "image/svg+xml")) return "other";
  return "document";
}

export function fileAddress(file) {
  return `v1/agent/files/${encodeURIComponent(file.file)}`;
}

export function fileList(app, files) {
  return el("ul", { class: "files", "aria-label": app.t("files.label") },
    ...files.map((file) => el("li", {}, fileCard(app, file))));
}

export function fileCard(app, file) {
  const kind = fileKind(file.media_type);
  if (kind === "picture") return pictureView(app, file);
  if (kind === "audio" || kind === "video") return playerView(app, file, kind);
  return cardView(app, file, kind);
}

function pictureView(app, file) {
  const picture = el("img", { src: fileAddress(file), alt: file.alt ?? file.name, loading: "lazy", decoding: "async",
    width: file.width, height: file.height });
  const label = app.t("files.enlarge", { name: file.alt ?? file.name });
  const button = el("button", { type: "button", class: "picture", title: label, "aria-label": label,
    onclick: () => app.showPicture(file) }, picture);
  const root = el("figure", { class: "shown-picture" }, button, downloadLink(app, file));
  picture.onerror = () => root.replaceWith(cardView(app, file, "other"));
  return root;
}

function playerView(app, file, kind) {
  const player = el(kind, { controls: true, preload: "metadata", src: fileAddress(file), "aria-label": file.name });
  return el("figure", { class: "player" }, el("figcaption", { text: file.name }), player, downloadLink(app, file));
}

function cardView(app, file, kind) {
  const about = el("span", { class: "file-about", text: app.bytes(file.bytes ?? 0) });
  const name = el("span", { class: "file-name", text: file.name });
  const shown = [icon("document"), name, about];
  const opens = kind === "document" && app.showDocument;
  const main = opens
    ? el("button", { type: "button", class: "file-open", title: app.t("files.read", { name: file.name }),
      onclick: () => app.showDocument({ file: file.file, name: file.name }) }, ...shown)
    : el("span", { class: "file-open" }, ...shown);
  return el("div", { class: "file-card" }, main, artifactButton(app, file), downloadLink(app, file));
}

function artifactButton(app, file) {
  const kind = ARTIFACTS[file.media_type];
  if (!kind || file.bytes > MOST_ARTIFACT_BYTES) return null;
  return iconButton("play", app.t("files.show", { name: file.name }), async () => {
    try {
      const source = await (await app.api.open(fileAddress(file))).text();
      app.showArtifact({ kind, source, title: file.name });
    } catch (error) {
      app.fail(error);
    }
  });
}

export function downloadLink(app, file) {
  const label = app.t("files.download", { name: file.name });
  return el("a", { class: "icon-button", href: fileAddress(file), download: file.name, title: label,
    "aria-label": label }, icon("download"));
}
