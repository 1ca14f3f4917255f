// Words into a prompt.

/**
 * A text with a word put in, apart from its neighbours by a space.
 * @param {string} text
 * @param {string} word
 * @param {number} at where the cursor is; beyond the end is the end
 * @returns {{text: string, cursor: number}} the cursor is after the word
 */
export function insertWord(text, word, at) {
  const place = Math.min(Math.max(at, 0), text.length);
  const before = text.slice(0, place);
  const after = text.slice(place);
  const left = before && !/[\s(]$/.test(before) ? " " : "";
  const right = after && !/^[\s,.:;)]/.test(after) ? " " : "";
  return { text: before + left + word + right + after, cursor: (before + left + word).length };
}

/** A file's size as people read it. @param {number} bytes */
export function readableSize(bytes) {
  if (bytes < 1000) return `${bytes} B`;
  return bytes < 1e6 ? `${(bytes / 1000).toFixed(1)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}

/**
 * The cards that a search finds: all of its words, anywhere in what a card says.
 * @param {import("./server.js").Card[]} cards
 * @param {string} search
 */
export function searched(cards, search) {
  const words = search.toLowerCase().split(/\s+/).filter(Boolean);
  return cards.filter((card) => {
    const said = [card.file, card.name, card.placeholder, card.superclass, card.family_title, card.author]
      .filter(Boolean)
      .join(" ")
      .toLowerCase();
    return words.every((word) => said.includes(word));
  });
}

/**
 * Lines of "entry: value" as pairs, or null for any other text.
 * @param {string} text
 * @returns {[string, string][] | null}
 */
export function entries(text) {
  const pairs = text.split("\n").map((line) => line.match(/^([^:]{1,60}): (.*)$/));
  if (pairs.length < 2 || pairs.some((pair) => !pair)) return null;
  return pairs.map((pair) => [pair[1], pair[2]]);
}
