// Texts of the page: flat keys, {placeholders}, plurals as key.one and key.other.
//
// It imports nothing: it is the first module that runs, and the first words wait for no other.

export const LANGUAGES = { en: "English", zh: "中文" };
const KEPT_AS = "glm4.language";

/** The language to begin with: the one that was chosen, else the first that the browser asks for and we have. */
function firstLanguage() {
  try {
    const chosen = localStorage.getItem(KEPT_AS);
    if (chosen in LANGUAGES) return chosen;
  } catch {
    // no storage
  }
  const asked = (navigator.languages ?? [navigator.language]).map((tag) => tag.toLowerCase().split("-")[0]);
  return asked.find((tag) => tag in LANGUAGES) ?? "en";
}

/** The texts; a page of an own folder (`data-texts`) has more of them there. */
async function fetched(lang) {
  const { texts } = document.documentElement.dataset;
  const parts = ["", ...(texts ? [`${texts}/`] : [])].map(async (folder) => {
    const answer = await fetch(`ui/${folder}${lang}.json`, { priority: "high" });
    if (!answer.ok) throw new Error(`${answer.url}: ${answer.status}`);
    return answer.json();
  });
  return Object.assign({}, ...(await Promise.all(parts)));
}

function translated(root, t) {
  for (const element of root.querySelectorAll("[data-t]")) element.textContent = t(element.dataset.t);
  for (const element of root.querySelectorAll("[data-t-placeholder]")) {
    element.setAttribute("placeholder", t(element.dataset.tPlaceholder));
  }
  for (const element of root.querySelectorAll("[data-t-label]")) {
    const label = t(element.dataset.tLabel);
    element.setAttribute("aria-label", label);
    if (element.tagName === "BUTTON") element.title = label;
  }
}

const FIRST = fetched(firstLanguage());
FIRST.then((catalog) => {
  translated(document, (key) => catalog[key] ?? "");
  const welcome = document.getElementById("welcome");
  if (welcome && !location.hash.startsWith("#/c/")) welcome.hidden = false;
}, () => {});

/** Adds t, has, number, percent, bytes, duration, date, translate and setLanguage to the app. */
export async function setupLanguage(app) {
  let catalog = {};
  let plurals;

  async function load(lang, texts) {
    catalog = await texts;
    plurals = new Intl.PluralRules(lang);
    app.lang = lang;
    document.documentElement.lang = lang === "zh" ? "zh-Hans" : lang;
    app.translate(document);
  }

  app.lang = "en";
  app.has = (key) => key in catalog || `${key}.other` in catalog;
  app.number = (value, options) => new Intl.NumberFormat(app.lang, options).format(value);
  app.percent = (share, digits = 0) => app.number(share, { style: "percent", maximumFractionDigits: digits });
  app.t = (key, values = {}) => {
    const form = "count" in values ? `${key}.${plurals.select(values.count)}` : key;
    const text = catalog[form] ?? catalog[`${key}.other`] ?? catalog[key] ?? key;
    return text.replace(/\{(\w+)\}/g, (whole, name) => {
      const value = values[name];
      if (value === undefined) return whole;
      return typeof value === "number" ? app.number(value) : String(value);
    });
  };
  app.bytes = (count) => {
    const units = ["byte", "kilobyte", "megabyte", "gigabyte"];
    const power = count < 1 ? 0 : Math.min(Math.floor(Math.log10(count) / 3), 3);
    const options = { style: "unit", unit: units[power], unitDisplay: "short", maximumFractionDigits: power ? 1 : 0 };
    return app.number(count / 1000 ** power, options);
  };
  app.duration = (seconds) => {
    if (seconds < 60) {
      const digits = seconds < 10 ? 1 : 0;
      return app.number(seconds, { style: "unit", unit: "second", unitDisplay: "narrow", maximumFractionDigits: digits });
    }
    const whole = Math.round(seconds);
    return app.t("time.minutes", { minutes: Math.floor(whole / 60), seconds: String(whole % 60).padStart(2, "0") });
  };
  app.date = (seconds, options) =>
    new Intl.DateTimeFormat(app.lang, options).format(new Date(seconds * 1000));
  app.translate = (root) => translated(root, app.t);
  app.setLanguage = async (lang) => {
    await load(lang, fetched(lang));
    try {
      localStorage.setItem(KEPT_AS, lang);
    } catch {
      // not kept
    }
    app.emit("language", lang);
  };
  await load(firstLanguage(), FIRST);
}
