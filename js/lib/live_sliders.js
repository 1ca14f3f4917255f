// Sliders that are moved while a sampler runs: what is sent, and what is written back afterwards.

/**
 * @typedef {object} Used what a live run used in the end
 * @property {string} prompt_id
 * @property {string} node_id
 * @property {number} bias
 * @property {number} temperature
 * @property {number} strength
 * @property {string} moves what it used before, as PerfusionTune takes it
 */

/**
 * Sends the newest of many values, one at a time: what comes while one is under way waits, and only
 * the last of that is sent.
 */
export class Newest {
  /** @param {(value: any) => Promise<any>} send */
  constructor(send) {
    this.send = send;
    this.waiting = null;
    this.busy = false;
  }

  async offer(value) {
    this.waiting = { value };
    if (this.busy) return;
    this.busy = true;
    try {
      while (this.waiting) {
        const next = this.waiting.value;
        this.waiting = null;
        await this.send(next);
      }
    } finally {
      this.busy = false;
    }
  }
}

/** Which prompt runs, and what live nodes have used in it. */
export class Run {
  constructor() {
    /** @type {string | null} */
    this.promptId = null;
    /** @type {Map<string, Used>} by the node's id */
    this.used = new Map();
  }

  start(promptId) {
    this.promptId = promptId;
    this.used.clear();
  }

  /** @param {Used} used */
  note(used) {
    if (used.prompt_id === this.promptId) this.used.set(used.node_id, used);
  }

  /** What the run used, when it is the one that is over. @returns {Used[]} */
  end(promptId) {
    if (promptId !== this.promptId) return [];
    const found = [...this.used.values()];
    this.promptId = null;
    this.used.clear();
    return found;
  }
}
