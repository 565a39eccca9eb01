// Finds a quotation in the text of a page: white space, hyphenation and the width of characters do not matter.

const SENTENCE = /[^.!?。！？；\n]+(?:[.!?。！？；]+["”’」』)）\]]*|\n|$)/g;
const LEAST_CHARS = 6; // of what is looked for
const LEAST_SHARED = 0.5; // of a claim's words that a sentence has to have

/** {start, end} of a quotation in a text, whole or, if it was cut, its longest beginning; null if it is not there. */
export function findQuotation(text, quotation) {
  const page = folded(text);
  const wanted = folded(quotation.replace(/[…\s]+$/, "")).text;
  if (wanted.length < LEAST_CHARS) return null;
  for (let length = wanted.length; length >= LEAST_CHARS; length = Math.floor(length * 0.75)) {
    const at = page.text.indexOf(wanted.slice(0, length));
    if (at >= 0) return { start: page.from[at], end: page.from[at + length - 1] + 1 };
  }
  return null;
}

/** {start, end} of the sentence that shares most words with a claim; null if none shares many. */
export function findClaim(text, claim) {
  const wanted = new Set(words(claim));
  if (wanted.size < 2) return null;
  let best = null;
  for (const match of text.matchAll(SENTENCE)) {
    const has = new Set(words(match[0]));
    const shared = [...wanted].filter((word) => has.has(word)).length;
    const share = shared / wanted.size;
    if (shared >= 2 && share >= LEAST_SHARED && share > (best?.share ?? 0)) {
      const start = match.index + /^\s*/.exec(match[0])[0].length;
      best = { share, start, end: match.index + match[0].trimEnd().length };
    }
  }
  return best && { start: best.start, end: best.end };
}

/** The sentence of an answer in front of a citation that stands at `at`. */
export function claimBefore(answer, at) {
  const before = answer.slice(0, at).replace(/【[^】]*】/g, "").trimEnd();
  const start = Math.max(...[...before.slice(0, -1).matchAll(/[.!?](?=\s)|[。！？；\n]/g)].map((one) => one.index), -1);
  return before.slice(start + 1).replace(/[*_`#>|]/g, "").trim();
}

/** A text without white space and soft hyphens, in lower case and usual width; `from`: where each character was. */
function folded(text) {
  let made = "";
  const from = [];
  let at = 0;
  for (const character of text) {
    const plain = /[\s\u00ad\u200b]/.test(character) ? "" : character.normalize("NFKC").toLowerCase();
    made += plain;
    for (let index = 0; index < plain.length; index++) from.push(at);
    at += character.length;
  }
  return { text: made, from };
}

/** Words of at least three letters or a digit; of Chinese, which has no spaces, each pair of characters. */
function words(text) {
  const plain = text.normalize("NFKC").toLowerCase();
  const found = plain.match(/[\p{L}\p{N}]+/gu) ?? [];
  return found.flatMap((word) => {
    if (!/[\u2e80-\u9fff\uac00-\ud7af]/.test(word)) return word.length > 2 || /\d/.test(word) ? [word] : [];
    return Array.from({ length: Math.max(1, word.length - 1) }, (_, at) => word.slice(at, at + 2));
  });
}
