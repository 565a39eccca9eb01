// Search in the texts of all conversations; a result opens its conversation at the message.

import { composing, el } from "./dom.js";

const WAIT = 250; // milliseconds after the last key

/** The search field. Results go into `found`; `show(searching)` is told whether there are some. */
export function searchBox(app, found, show) {
  const input = el("input", { type: "search", id: "search", "aria-label": app.t("search.label"), placeholder: app.t("search.label"),
    autocomplete: "off", spellcheck: "false", enterkeyhint: "search" });
  const search = { app, found, input, asked: 0, timer: 0 };
  const clear = () => {
    search.asked += 1;
    show(false);
    found.replaceChildren();
  };
  input.addEventListener("input", (event) => {
    clearTimeout(search.timer);
    if (!worthAsking(input.value)) return clear();
    if (event.isComposing) return; // letters of a syllable are not yet a word
    search.timer = setTimeout(() => ask(search, show), WAIT);
  });
  input.addEventListener("compositionend", () => input.dispatchEvent(new InputEvent("input")));
  input.onkeydown = (event) => {
    if (composing(event)) return;
    if (event.key === "Escape" && input.value) {
      event.stopPropagation();
      input.value = "";
      clear();
    }
    if (event.key === "ArrowDown") {
      event.preventDefault();
      document.querySelector(".search-results:not([hidden]) a, .conversations:not([hidden]) a")?.focus();
    }
    if (event.key === "Enter" && worthAsking(input.value)) {
      clearTimeout(search.timer);
      ask(search, show);
    }
  };
  return el("div", { class: "search", role: "search" }, input);
}

/** Two characters, or one of a script in which one is a word. */
function worthAsking(text) {
  const query = text.trim();
  return query.length >= 2 || /\p{Script=Han}/u.test(query);
}

async function ask(search, show) {
  const { app, found, input } = search;
  const query = input.value.trim();
  const asked = ++search.asked;
  try {
    const { results } = await app.api.get(`v1/agent/search?q=${encodeURIComponent(query)}`);
    if (asked !== search.asked) return;
    const said = app.t("search.count", { count: results.length });
    found.replaceChildren(el("h3", {}, said),
      el("ul", {}, ...results.map((one) => el("li", {}, resultLink(app, one, query)))));
    app.announce(said);
    show(true);
  } catch (error) {
    if (asked !== search.asked) return;
    app.fail(error);
  }
}

function resultLink(app, result, query) {
  const link = el("a", { href: `#/c/${result.conversation}` },
    el("span", { class: "title", text: result.title || app.t("sidebar.untitled") }),
    el("span", { class: "excerpt", dir: "auto" }, ...marked(result.excerpt, query)));
  link.onclick = (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return; // a new tab
    event.preventDefault();
    app.open(result.conversation, { message: result.message });
  };
  return link;
}

/** The text with each place of the query in a mark. */
function marked(text, query) {
  const parts = [];
  const [low, wanted] = [text.toLowerCase(), query.toLowerCase()];
  let at = 0;
  // Letters whose lower case has another length would move the marks; such a text has none.
  for (let next; low.length === text.length && (next = low.indexOf(wanted, at)) >= 0; at = next + wanted.length) {
    parts.push(text.slice(at, next), el("mark", {}, text.slice(next, next + wanted.length)));
  }
  return [...parts, text.slice(at)];
}
