// The plot on Perfusion Concept Loader and Perfusion Tune: each prompt token's similarity to each
// concept, and how far that opens the gate. The numbers come from the server, once a prompt; the
// curve is made here, so a slider redraws it at once with nothing queued.
//
// On the node as `node.perfusionPlot` (a GatePlot), for who scripts the page; its element is
// `[data-perfusion="gate-plot"]`, whose data attributes say what it shows.

// First, so that its card on the loader is above the plot.
import "./choosing.js";
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { after, debounced } from "./lib/callbacks.js";
import { describe, layOut, nearest, prospects, step } from "./lib/chart.js";
import { LOADER, TUNE, choosePrompt, conceptsBeside, conceptsOf, isGroup, promptsFor, referenceTo, whereAnyLost, whereLost } from "./lib/graph.js";
import { t, whyNotNow } from "./lib/language.js";
import { GLYPHS, coloursOn, drawChart, isDark } from "./lib/chart_drawing.js";
import { addElement, fitNode } from "./lib/dom_widget.js";
import { isConnected, placesOf, promptId, widgetOf } from "./lib/node_paths.js";
import { server } from "./lib/shared.js";
import { noteOnRelease } from "./lib/widgets.js";

const SLIDERS = ["bias", "temperature", "strength"];
const OPEN_HEIGHT = 190;
const CLOSED_HEIGHT = 22;
const PATIENCE = 200; // milliseconds of quiet before the server is asked

/** @type {Set<GatePlot>} */
const plots = new Set();

let made = 0;

/**
 * @typedef {object} Shown what a plot shows
 * @property {import("./lib/server.js").Similarities | null} answer
 * @property {string} [key] the question that it answers
 * @property {string} note why there is no answer, or not all of it
 * @property {string} status "ok", "none", "error", or the server's reason to wait
 */

/** One plot on one node. */
class GatePlot {
  constructor(node) {
    this.node = node;
    /** Of all plots that were ever made, for names that are its own in the page. */
    this.number = made++;
    /** @type {import("./lib/graph.js").ConceptInGraph[]} */
    this.concepts = [];
    /** @type {import("./lib/server.js").Similarities | null} the last that came */
    this.answer = null;
    /** The question that it answers. */
    this.answered = "";
    /** @type {import("./lib/chart.js").Chart | null} */
    this.chart = null;
    this.series = [];
    this.chosen = null;
    this.draws = 0;
    /** Milliseconds that the last drawing took. */
    this.took = 0;
    this.visible = false;
    this.stale = true; // the graph may have changed since the server was asked
    /** How often the graph was read: an answer to an earlier reading is not shown. */
    this.readings = 0;
    this.note = "";
    this.frame = 0;
    this.ask = debounced(() => this.askNow(), PATIENCE);
    this.build();
    plots.add(this);
  }

  get open() {
    return this.node.properties?.perfusionPlot !== "closed";
  }

  build() {
    const root = document.createElement("div");
    root.className = "perfusion-plot";
    root.dataset.node = String(this.node.id);
    root.innerHTML = `
      <button type="button" class="perfusion-head">
        <span></span><span class="perfusion-legend"></span>
      </button>
      <div class="perfusion-tokens" tabindex="0" role="listbox">
        <canvas class="perfusion-canvas" aria-hidden="true"></canvas>
        <div class="perfusion-unseen" role="presentation"></div>
        <div class="perfusion-prospects" aria-hidden="true"></div>
      </div>
      <div class="perfusion-readout" aria-live="polite"></div>`;
    this.root = root;
    root.setAttribute("role", "group");
    root.setAttribute("aria-label", t`Gates`);
    [this.head, this.list, this.readout] = root.children;
    [this.canvas, this.options, this.prospects] = this.list.children;
    this.head.title = t`Each dot is a word of the prompt: how alike it is to the concept (across), and how far that opens the gate (up)`;
    this.head.firstElementChild.textContent = t`Gates`;
    this.legend = this.head.querySelector(".perfusion-legend");
    this.head.addEventListener("click", () => this.toggle());
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.canvas.addEventListener("pointerleave", () => this.choose(null));
    this.list.addEventListener("keydown", (event) => this.key(event));
    this.list.addEventListener("focus", () => this.writeTokens());
    this.list.addEventListener("blur", () => this.choose(null));
    this.seen = new IntersectionObserver((entries) => {
      this.visible = entries.at(-1).isIntersecting;
      if (this.visible) this.refresh();
    });
    this.seen.observe(root);
    this.sized = new ResizeObserver(() => this.redraw());
    this.sized.observe(this.canvas);

    addElement(this.node, "gate-plot", root, {
      least: () => (this.open ? OPEN_HEIGHT : CLOSED_HEIGHT),
      most: () => (this.open ? 4 * OPEN_HEIGHT : CLOSED_HEIGHT),
    });
    after(this.node, "onRemoved", () => this.close());
    // A node gets its id when it enters the graph, and its properties when the graph is loaded.
    after(this.node, "onAdded", () => {
      root.dataset.node = String(this.node.id);
    });
    after(this.node, "onConfigure", () => this.showOpen());
    this.showOpen();
  }

  close() {
    plots.delete(this);
    this.seen.disconnect();
    this.sized.disconnect();
    cancelAnimationFrame(this.frame);
  }

  toggle() {
    this.node.properties ??= {};
    this.node.properties.perfusionPlot = this.open ? "closed" : "open";
    this.showOpen();
    fitNode(this.node, true);
    this.refresh();
  }

  showOpen() {
    this.root.dataset.open = String(this.open);
    this.head.setAttribute("aria-expanded", String(this.open));
  }

  /** The graph may have changed: read it, and ask the server when the prompt is another one. */
  refresh() {
    this.stale = true;
    this.list.setAttribute("aria-busy", "true");
    if (!this.shown) return;
    this.ask();
    this.redraw();
  }

  get shown() {
    return this.visible && this.open && !this.node.flags?.collapsed && this.node.graph;
  }

  async askNow() {
    if (!this.shown || !this.stale) return;
    this.stale = false;
    const reading = ++this.readings;
    const found = await this.look();
    // Answers may come in another order than they were asked for.
    if (reading === this.readings) this.show(found);
  }

  /** What is to be shown for the graph as it is. @returns {Promise<Shown>} */
  async look() {
    const concepts = this.readConcepts();
    const question = this.question(concepts);
    if (!question) return { answer: null, note: this.whyNone(concepts), status: "none" };
    try {
      const files = question.concepts.map(({ file }) => file).filter(Boolean);
      const cards = await Promise.all(files.map((file) => server.card(file)));
      const broken = cards.find((card) => card.error);
      if (broken) throw new Error(`${broken.file}: ${broken.error}`);
      const found = await server.similarities(question);
      const key = JSON.stringify(question);
      if (found.status === "ok") return { answer: found, key, note: whyUnknown(concepts), status: "ok" };
      // What is known of another prompt, or of other concepts, is not shown for these.
      const known = this.answered === key ? this.answer : null;
      return { answer: known, key, note: whyNotNow(found), status: found.status };
    } catch (error) {
      return { answer: null, note: error.message, status: "error" };
    }
  }

  /** The concepts that reach the node; none where it has not one place. */
  readConcepts() {
    const places = placesOf(this.node);
    if (places.length !== 1) return [];
    // A loader's own is told as it is sampled: beside the others of its model.
    if (this.node.type === LOADER) return conceptsBeside(places[0], (file) => server.cardNow(file));
    return conceptsOf(places[0], (file) => server.cardNow(file));
  }

  /** Whether a concept is drawn: of those that a loader is sampled with, its own alone. */
  isDrawn(concept) {
    return this.node.type !== LOADER || concept.node === this.node;
  }

  question(concepts) {
    const known = concepts.filter(referenceTo);
    if (!known.length) return null;
    const ids = new Set(concepts.filter((concept) => this.isDrawn(concept)).map(({ via }) => via));
    const words = known.map((one) => one.placeholder || server.cardNow(one.file)?.placeholder);
    const prompt = choosePrompt(promptsFor(this.node.graph, ids), words);
    if (!prompt) return null;
    // The CLIP that enters the first of our nodes: the others add words to it.
    const first = prompt.sources.at(-1);
    return {
      node: promptId(first),
      text: prompt.read,
      concepts: known.map(referenceTo),
    };
  }

  /** Why there is nothing to ask the server for. */
  whyNone(concepts) {
    const places = placesOf(this.node);
    if (!places.length) return t`This subgraph is not used in the graph.`;
    if (places.length > 1) {
      return t`This subgraph is used ${places.length} times, and what reaches the node may differ: look at a Perfusion Tune outside of it.`;
    }
    if (!concepts.length) return sentences(t`No concept reaches this node.`, whyLost(whereLost(places[0], "model")));
    return whyUnknown(concepts) || this.whyNoPrompt(concepts);
  }

  whyNoPrompt(concepts) {
    const { graph } = this.node;
    const prompts = promptsFor(graph, new Set(concepts.map(({ via }) => via)));
    if (!prompts.length) return sentences(t`No prompt is encoded with this concept's CLIP.`, whyLost(whereAnyLost(graph)));
    const made = prompts.find(({ node, widget }) => isConnected(node, widget.name));
    return made ? t`The prompt of "${titleOf(made.node)}" is made by another node: only a run knows its words.` : t`The prompt is empty.`;
  }

  /** @param {Shown} found */
  show({ answer, key, note, status }) {
    this.answer = answer;
    if (status === "ok") this.answered = key;
    this.note = note;
    this.root.dataset.status = status;
    this.list.setAttribute("aria-busy", String(this.stale));
    this.redraw();
  }

  /** Draw in the next frame, if anybody sees it. */
  redraw() {
    if (!this.shown || this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      if (this.shown) this.draw();
    });
  }

  draw() {
    const started = performance.now();
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (!width || !height) return;
    this.concepts = this.readConcepts();
    const words = this.answer?.words ?? [];
    let asked = 0;
    this.series = this.concepts.flatMap((concept) => {
      // The server is asked for those that can be told, and answers in their order.
      const number = referenceTo(concept) ? asked++ : -1;
      return !this.isDrawn(concept) ? [] : {
        name: this.nameOf(concept, number),
        sliders: concept.sliders,
        similarities: this.answer?.similarities[number] ?? [],
      };
    });
    this.chart = layOut(width, height, this.series, words);

    const style = getComputedStyle(this.root);
    const colours = coloursOn(isDark(style.backgroundColor));
    const context = this.sharp(width, height);
    context.clearRect(0, 0, width, height);
    drawChart(context, this.chart, {
      colours,
      ink: style.color,
      faint: style.color,
      ground: style.backgroundColor,
      chosen: this.chosen,
      across: t`how alike a word is to the concept`,
      up: t`share of the concept`,
    });
    this.writeLegend(colours);
    this.write(words);
    this.draws += 1;
    this.took = performance.now() - started;
    this.root.dataset.draws = String(this.draws);
    this.root.dataset.tokens = String(words.length);
    this.root.dataset.concepts = String(this.series.length);
  }

  /** The canvas' context, at the pixels of the screen as far as the graph is zoomed in. */
  sharp(width, height) {
    const zoom = Math.max(1, app.canvas?.ds?.scale ?? 1);
    const scale = Math.min(4, (window.devicePixelRatio || 1) * zoom);
    const [wide, high] = [Math.round(width * scale), Math.round(height * scale)];
    if (this.canvas.width !== wide || this.canvas.height !== high) {
      this.canvas.width = wide;
      this.canvas.height = high;
    }
    const context = this.canvas.getContext("2d");
    context.setTransform(scale, 0, 0, scale, 0, 0);
    return context;
  }

  nameOf(concept, number) {
    return concept.placeholder || server.cardNow(concept.file)?.placeholder || this.answer?.names[number] || concept.file || titleOf(concept.node);
  }

  writeLegend(colours) {
    const names = this.series.map((one) => one.name);
    const key = JSON.stringify([names, colours[0]]);
    if (this.legendKey === key) return;
    this.legendKey = key;
    this.legend.replaceChildren(
      ...names.map((name, number) => {
        const swatch = document.createElement("span");
        swatch.className = "perfusion-swatch";
        swatch.style.setProperty("--swatch", colours[number % colours.length]);
        swatch.dataset.glyph = GLYPHS[number % GLYPHS.length];
        swatch.textContent = name;
        swatch.title = name;
        return swatch;
      }),
    );
  }

  write(words) {
    const chosen = this.chosen !== null && this.chosen < words.length;
    const other = this.answer && !this.answer.own ? t`Tokens of another node's CLIP, until this node has run.` : "";
    const told = chosen ? describe(this.series, words, this.chosen, t) : this.note || other || this.answer?.text || "";
    const lines = chosen ? prospects(this.series, this.chosen, t) : [];
    this.prospects.textContent = lines.join("\n");
    // A reason is read whole; a prompt is known, and a token's numbers are short.
    this.readout.classList.toggle("perfusion-note", !chosen && Boolean(this.note || other));
    if (this.readout.textContent !== told) {
      this.readout.textContent = told;
      this.readout.title = told;
    }
    // The option that is chosen is read out, so what is the same here is not.
    const listed = document.activeElement === this.list;
    this.readout.setAttribute("aria-live", chosen && listed ? "off" : "polite");
    if (listed) this.writeTokens();
    const label = t`Gate plot of ${this.series.map((one) => one.name).join(", ")}: ${words.length} tokens. Arrow keys walk through them.`;
    if (this.list.getAttribute("aria-label") !== label) this.list.setAttribute("aria-label", label);
  }

  /** The tokens as a list that a screen reader walks through, made where it is entered. */
  writeTokens() {
    const words = this.answer?.words ?? [];
    while (this.options.children.length > words.length) this.options.lastChild.remove();
    words.forEach((_, token) => {
      const option = this.options.children[token] ?? this.options.appendChild(document.createElement("div"));
      option.setAttribute("role", "option");
      option.id ||= `perfusion-token-${this.number}-${token}`;
      option.setAttribute("aria-selected", String(token === this.chosen));
      const told = [describe(this.series, words, token, t), ...prospects(this.series, token, t)].join("; ");
      if (option.textContent !== told) option.textContent = told;
    });
    const active = this.chosen !== null && this.options.children[this.chosen]?.id;
    if (active) this.list.setAttribute("aria-activedescendant", active);
    else this.list.removeAttribute("aria-activedescendant");
  }

  point(event) {
    if (!this.chart) return;
    const box = this.canvas.getBoundingClientRect();
    // The classic canvas scales the element with the graph.
    const x = ((event.clientX - box.left) * this.canvas.clientWidth) / box.width;
    const y = ((event.clientY - box.top) * this.canvas.clientHeight) / box.height;
    this.choose(nearest(this.chart, x, y)?.token ?? null);
  }

  key(event) {
    if (!["ArrowLeft", "ArrowRight", "Home", "End", "Escape"].includes(event.key)) return;
    // Else the graph would take them for its own.
    event.preventDefault();
    event.stopPropagation();
    this.choose(step(this.chosen, this.answer?.words.length ?? 0, event.key));
  }

  choose(token) {
    if (this.chosen === token) return;
    this.chosen = token;
    this.redraw();
  }
}

/** Why the tokens of some concepts cannot be known, or "". */
function whyUnknown(concepts) {
  const unknown = concepts.find((concept) => !referenceTo(concept))?.node;
  if (!unknown) return "";
  if (unknown.type === LOADER) return t`No concept file is chosen on "${titleOf(unknown)}".`;
  return t`"${titleOf(unknown)}" makes a concept whose word is not known here: save it, and take it from a loader.`;
}

/** Why a connection is seen no further than a node, or "". */
function whyLost(node) {
  if (!node) return "";
  if (isGroup(node)) return t`"${titleOf(node)}" is a group node, which is not looked into: make it a subgraph.`;
  return t`"${titleOf(node)}" leads nowhere: nothing is set under its name.`;
}

function sentences(...said) {
  return said.filter(Boolean).join(" ");
}

function titleOf(node) {
  return node.title || node.type;
}

function redrawAll() {
  for (const plot of plots) plot.redraw();
}

function refreshAll() {
  for (const plot of plots) plot.refresh();
}

app.registerExtension({
  name: "perfusion.gatePlot",

  setup() {
    const style = document.createElement("link");
    style.rel = "stylesheet";
    style.href = new URL("./perfusion.css", import.meta.url).href;
    document.head.append(style);

    // Themes set their colours on these two.
    const themed = new MutationObserver(redrawAll);
    for (const element of [document.documentElement, document.body]) {
      themed.observe(element, { attributeFilter: ["class", "style"] });
    }
    api.addEventListener("graphChanged", refreshAll);
    for (const event of ["execution_success", "execution_error", "execution_interrupted"]) {
      api.addEventListener(event, refreshAll);
    }
  },

  nodeCreated(node) {
    if (node.comfyClass !== LOADER && node.comfyClass !== TUNE) return;
    node.perfusionPlot = new GatePlot(node);
    fitNode(node, false);
    // A loader's slider is in the plot of a Tune below it as well.
    for (const name of SLIDERS) {
      after(widgetOf(node, name), "callback", () => {
        redrawAll();
        noteOnRelease();
      });
    }
    for (const name of ["file", "placeholder", "concept"]) {
      const widget = widgetOf(node, name);
      if (widget) after(widget, "callback", refreshAll);
    }
    after(node, "onConnectionsChange", refreshAll);
  },

  afterConfigureGraph: refreshAll,

  refreshComboInNodes() {
    server.forget();
    refreshAll();
  },
});
