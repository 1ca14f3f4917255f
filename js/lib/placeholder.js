// Where a placeholder stands in a text: the rule of perfusion_core/placeholder.py, which says it in
// words. tests/placeholder_cases.json holds both to the same examples.

// First and last code points of scripts without spaces between words, and of Korean.
const UNSPACED = [
  [0x0e00, 0x0fff], [0x1000, 0x109f], [0x1100, 0x11ff], [0x1780, 0x17ff], [0x1950, 0x19ff],
  [0x1a20, 0x1aaf], [0x1b00, 0x1b7f], [0x2e80, 0xa4cf], [0xa960, 0xa9ff], [0xaa60, 0xaadf],
  [0xac00, 0xd7ff], [0xf900, 0xfaff], [0xff66, 0xffdc], [0x1aff0, 0x1b2ff], [0x20000, 0x3ffff],
];
const UNSEEN = /[\p{Cf}\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\u{e0100}-\u{e01ef}]/gu;
// A mark, or a vowel or final of a Korean syllable that is written in parts.
const PART = /^[\p{M}\u1160-\u11ff\ud7b0-\ud7ff]/u;
const OF_WORD = /^[\p{L}\p{M}\p{N}_]/u;

/** A text as it is compared: without case, decomposed, without what nobody sees. @param {string} text */
export function fold(text) {
  const seen = text.replace(UNSEEN, "").normalize("NFD");
  // Letter by letter: a final sigma is one in a word alone.
  const cases = Array.from(seen, (letter) => Array.from(letter.toUpperCase(), (one) => one.toLowerCase()).join("")).join("");
  return cases.normalize("NFD").replaceAll("i\u0307", "i");
}

/** Whether two placeholders are one and the same in a prompt. @param {string} word @param {string} other */
export function sameWord(word, other) {
  return fold(word) === fold(other);
}

/** Whether a text holds a placeholder as a word of its own. @param {string} text @param {string} word */
export function mentions(text, word) {
  const read = fold(text);
  const wanted = fold(word);
  if (!wanted) return false;
  for (let start = read.indexOf(wanted); start >= 0; start = read.indexOf(wanted, start + 1)) {
    if (isOwn(read, start, start + wanted.length)) return true;
  }
  return false;
}

/**
 * A text as ComfyUI's page sends it: without comments, which reach no text encoder.
 * @param {string} text
 */
export function withoutComments(text) {
  return text.replace(/\/\*[\s\S]*?\*\/|\/\/.*/g, "");
}

function isOwn(text, start, end) {
  const before = start ? lastOf(text, start) : "";
  const after = letterAt(text, end);
  if (after && (PART.test(after) || joins(lastOf(text, end), after))) return false;
  if (before && joins(before, letterAt(text, start))) return false;
  return !text.slice(0, start).endsWith("embedding:");
}

/** The letter that ends at `at`; half a pair alone is no letter. */
function lastOf(text, at) {
  return Array.from(text.slice(Math.max(0, at - 2), at)).at(-1) ?? "";
}

function letterAt(text, at) {
  return at < text.length ? String.fromCodePoint(text.codePointAt(at)) : "";
}

/** Whether two letters side by side belong to one word. */
function joins(letter, other) {
  return [letter, other].every((one) => OF_WORD.test(one) && !isUnspaced(one.codePointAt(0)));
}

function isUnspaced(code) {
  return UNSPACED.some(([first, last]) => first <= code && code <= last);
}
