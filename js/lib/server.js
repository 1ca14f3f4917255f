// The pack's routes (nodes/routes.py), as the page asks them.

import { inEnglish } from "./words.js";

const KEPT = 100; // answers; each is a few kilobytes

/**
 * @typedef {object} Card what a concept file says of itself
 * @property {string} file
 * @property {string} [error] why it cannot be read; then the rest is missing
 * @property {string} name
 * @property {string} placeholder
 * @property {string} superclass
 * @property {string} family
 * @property {string} family_title
 * @property {number} bias
 * @property {number} temperature
 * @property {string} author
 * @property {string} licence
 * @property {string} hash
 * @property {number} size
 * @property {boolean} has_preview
 *
 * @typedef {object} Similarities
 * @property {"ok"} status
 * @property {string} text
 * @property {string[]} words
 * @property {string[]} names placeholders, one a concept
 * @property {number[][]} similarities one list a concept, one number a token
 * @property {string} family of the CLIP
 * @property {string} family_title
 * @property {boolean} own whether it is the CLIP that the graph has there
 *
 * @typedef {object} NotNow
 * @property {"busy" | "no_encoder" | "gone" | "twice" | "no_concept" | "mismatch" | "over"} status
 * @property {string} reason
 */

export class Server {
  /**
   * @param {any} api ComfyUI's, or anything with fetchApi and apiURL
   * @param {typeof inEnglish} t the language
   */
  constructor(api, t = inEnglish) {
    this.api = api;
    this.t = t;
    /** @type {Map<string, Promise<Card>>} */
    this.cards = new Map();
    /** @type {Map<string, Card>} those that have come */
    this.known = new Map();
    /** @type {Map<string, Promise<any>>} */
    this.families = new Map();
    /** @type {Map<string, Similarities>} */
    this.answers = new Map();
  }

  /** The card of one file. @returns {Promise<Card>} */
  card(file) {
    let card = this.cards.get(file);
    if (!card) {
      card = this.get("/perfusion/concept", { file }).then((found) => {
        this.known.set(file, found);
        return found;
      });
      // A file that is not there is kept, too, until somebody refreshes or something has run: else
      // every change of the graph would ask for it.
      card.catch(() => {});
      this.cards.set(file, card);
    }
    return card;
  }

  /** The card of a file, if it has come already. @returns {Card | undefined} */
  cardNow(file) {
    return this.known.get(file);
  }

  /** The cards of all files. @returns {Promise<{concepts: Card[], more: number}>} */
  async all() {
    const found = await this.get("/perfusion/concepts", {});
    for (const card of found.concepts) {
      this.known.set(card.file, card);
      this.cards.set(card.file, Promise.resolve(card));
    }
    return found;
  }

  /** Files may have changed: ask again. */
  forget() {
    this.cards.clear();
    this.families.clear();
    this.answers.clear();
  }

  /** Where a concept's picture is; another address for another concept of the same name. */
  preview(card) {
    const query = new URLSearchParams({ file: card.file, v: card.hash.slice(0, 16) });
    return this.api.apiURL(`/perfusion/preview?${query}`);
  }

  /** The family of a checkpoint's file. @returns {Promise<{family: string | null, title: string | null}>} */
  family(folder, name) {
    const key = `${folder}/${name}`;
    let found = this.families.get(key);
    if (!found) {
      found = this.get("/perfusion/family", { folder, name });
      found.catch(() => {});
      this.families.set(key, found);
    }
    return found;
  }

  /**
   * @param {{node: string, text: string, concepts: {file?: string, node?: string, placeholder: string}[]}} question
   * @returns {Promise<Similarities | NotNow>}
   */
  async similarities(question) {
    const key = JSON.stringify(question);
    const kept = this.answers.get(key);
    if (kept) return kept;
    const found = await this.post("/perfusion/similarities", question);
    // An answer of another node's CLIP holds only until this one's is known.
    if (found.status === "ok" && found.own) {
      this.answers.set(key, found);
      if (this.answers.size > KEPT) this.answers.delete(this.answers.keys().next().value);
    }
    return found;
  }

  /** A run may have brought another CLIP or other concepts. */
  ran() {
    this.cards.clear();
    this.answers.clear();
  }

  /** Sliders for a sampler that is running. @returns {Promise<{status: "ok"} | NotNow>} */
  live(move) {
    return this.post("/perfusion/live", move);
  }

  async get(path, query) {
    const text = new URLSearchParams(query).toString();
    return this.answer(await this.api.fetchApi(text ? `${path}?${text}` : path, { cache: "no-store" }));
  }

  async post(path, body) {
    const headers = { "Content-Type": "application/json" };
    return this.answer(await this.api.fetchApi(path, { method: "POST", headers, body: JSON.stringify(body) }));
  }

  /** What a response says. Throws the server's reason when it refused. */
  async answer(response) {
    let body = null;
    try {
      body = await response.json();
    } catch {
      // Not from our routes: below.
    }
    if (response.ok && body) return body;
    throw new Error(body?.error ?? this.t`the server answered ${response.status}: is Perfusion installed there?`);
  }
}
