// Choosing a concept on Perfusion Concept Loader: what the file says of it, its recommended settings
// filled in, its placeholder put into the prompt, and a dialog of all concepts with their pictures.
//
// On the node as `node.perfusionCard` (a ConceptCard); its element is `[data-perfusion="card"]`, the
// dialog is `dialog[data-perfusion="chooser"]`.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { after } from "./lib/callbacks.js";
import { openChooser } from "./lib/chooser.js";
import { LOADER, checkpointOf, choosePrompt, familySource, promptsFor } from "./lib/graph.js";
import { t, translated } from "./lib/language.js";
import { make } from "./lib/make.js";
import { addElement } from "./lib/dom_widget.js";
import { fill, picture } from "./lib/picture.js";
import { isConnected, placesOf, promptId, valueOf, widgetOf } from "./lib/node_paths.js";
import { mentions, withoutComments } from "./lib/placeholder.js";
import { server } from "./lib/shared.js";
import { insertWord, readableSize } from "./lib/text.js";
import { noteChange, setWidget } from "./lib/widgets.js";

const HEIGHT = 74;

/** @type {Set<ConceptCard>} */
const cards = new Set();

/** What one loader shows of its file. */
class ConceptCard {
  constructor(node) {
    this.node = node;
    /** @type {import("./lib/server.js").Card | null} */
    this.card = null;
    /** @type {{family: string, title: string} | null} of the connected checkpoint */
    this.family = null;
    this.kept = false;
    this.build();
    cards.add(this);
    after(node, "onRemoved", () => cards.delete(this));
  }

  build() {
    this.picture = picture("", "");
    this.word = make("button", {
      type: "button",
      class: "perfusion-word",
      title: t`Put this word into the prompt, where its cursor is; copied when there is no prompt`,
    });
    this.word.addEventListener("click", () => this.insert());
    this.told = make("div", { class: "perfusion-told" });
    this.settings = make("button", {
      type: "button",
      class: "perfusion-link",
      title: t`Set the bias and the temperature that the file recommends`,
    });
    this.settings.addEventListener("click", () => this.recommend());
    this.warning = make("div", { class: "perfusion-warning", role: "status" });
    const choose = make("button", { type: "button", class: "perfusion-choose", "aria-haspopup": "dialog", text: t`Choose…` });
    choose.title = t`All concepts, with their pictures`;
    choose.addEventListener("click", () => this.choose());
    this.root = make("div", { class: "perfusion-card", role: "group", "aria-label": t`The chosen concept` }, [
      this.picture,
      make("div", { class: "perfusion-about" }, [
        make("div", { class: "perfusion-row" }, [this.word, choose]),
        this.told,
        this.settings,
        this.warning,
      ]),
    ]);
    addElement(this.node, "card", this.root, { least: () => HEIGHT });
  }

  /** Where the node is; the first of its places, where its subgraph is used several times. */
  get place() {
    return placesOf(this.node)[0] ?? { node: this.node, path: [] };
  }

  get file() {
    return String(valueOf(this.place, "file") ?? "");
  }

  get placeholder() {
    return String(valueOf(this.place, "placeholder") ?? "").trim() || this.card?.placeholder || "";
  }

  /**
   * The file is another one. If that is all that is being set, its recommended settings are wanted;
   * what sets the sliders too, in one go (a graph that is loaded, a node that is pasted), means them.
   */
  changed() {
    queueMicrotask(() => this.refresh(!this.kept && !app.configuringGraph));
  }

  /** The sliders are being set: until whoever does it is done, their values stand. */
  keepSettings() {
    this.kept = true;
    setTimeout(() => {
      this.kept = false;
    });
  }

  /** Read the file's card and the connected family again. @param {boolean} chosen by the user */
  async refresh(chosen = false) {
    const { file } = this;
    let card = null;
    let problem = file ? "" : t`There is no concept file yet: train one, or put one into models/perfusion.`;
    try {
      if (file) card = await server.card(file);
    } catch (error) {
      problem = error.message;
    }
    // Another one may have been chosen while this one was on its way.
    if (file !== this.file) return;
    this.card = card?.error ? null : card;
    this.problem = card?.error ?? problem;
    if (chosen) this.recommend();
    this.family = await this.connectedFamily();
    this.show();
  }

  /** The family of the connected checkpoint: from its file, or what it was in the last run. */
  async connectedFamily() {
    const source = familySource(checkpointOf(this.place));
    try {
      if (source && "family" in source) return source;
      const found = source && (await server.family(source.folder, source.name));
      if (found?.family) return found;
    } catch {
      // A checkpoint that this machine does not have: ComfyUI says so itself.
    }
    const ran = this.node.perfusionPlot?.answer;
    return ran?.own ? { family: ran.family, title: ran.family_title } : null;
  }

  get mismatch() {
    const { card, family } = this;
    if (!card || !family || card.family === family.family) return "";
    const [own, connected] = [card, family].map((one) => translated(one.family_title ?? one.title));
    return t`For ${own}; the connected model is ${connected}.`;
  }

  show() {
    const { card } = this;
    const problem = this.problem || this.mismatch;
    this.root.dataset.status = this.problem ? "error" : this.mismatch ? "mismatch" : "ok";
    this.root.dataset.file = this.file;
    this.root.dataset.family = card?.family ?? "";
    this.showPicture();
    this.word.textContent = this.placeholder || "–";
    this.word.disabled = !card;
    const told = card ? `${card.superclass} · ${translated(card.family_title)} · ${readableSize(card.size)}` : "";
    this.told.textContent = told;
    this.told.title = told;
    this.settings.textContent = card ? t`bias ${card.bias}, temperature ${card.temperature}` : "";
    this.warning.textContent = problem;
    this.warning.title = problem;
  }

  showPicture() {
    const { card } = this;
    const address = card?.has_preview ? server.preview(card) : "";
    const shown = JSON.stringify([address, card?.name]);
    // A picture that is there already is not loaded again.
    if (this.shown === shown) return;
    this.shown = shown;
    fill(this.picture, address, card?.name ?? "", card ? t`Preview of ${card.name}` : "");
  }

  /** Sets the bias and temperature that the file recommends. */
  recommend() {
    if (!this.card) return;
    setWidget(this.node, "bias", this.card.bias);
    setWidget(this.node, "temperature", this.card.temperature);
    noteChange();
  }

  /** Puts the placeholder into the prompt, at its cursor; copies it when there is none. */
  async insert() {
    const word = this.placeholder;
    if (!word) return;
    const prompts = promptsFor(this.node.graph, new Set(placesOf(this.node).map(promptId)));
    const prompt = choosePrompt(prompts, [word]) ?? prompts.find((one) => !one.negative) ?? prompts[0];
    if (!prompt || isConnected(prompt.node, prompt.widget.name)) {
      await this.copy(word, prompt ? t`the prompt comes from another node` : t`no prompt is encoded with this loader's CLIP`);
      return;
    }
    const field = prompt.widget.element ?? prompt.widget.inputEl;
    // A field that was never entered has its cursor at the beginning; people mean the end.
    const cursor = field?.selectionEnd || prompt.text.length;
    let { text, cursor: behind } = insertWord(prompt.text, word, cursor);
    if (prompt.widget.dynamicPrompts && !mentions(withoutComments(text), word)) {
      // The cursor is in a comment, or the word after //, which no text encoder sees.
      text = `${prompt.text}\n${word}`;
      behind = text.length;
    }
    setWidget(prompt.node, prompt.widget.name, text);
    field?.setSelectionRange?.(behind, behind);
    noteChange();
    this.say(t`"${word}" is in the prompt now.`);
  }

  async copy(word, why) {
    try {
      await navigator.clipboard.writeText(word);
      this.say(t`"${word}" is copied: ${why}.`);
    } catch {
      this.say(t`The browser does not let "${word}" be copied from here; type it into the prompt.`);
    }
  }

  say(detail) {
    app.extensionManager?.toast?.add?.({ severity: "info", summary: "Perfusion", detail, life: 3000 });
  }

  async choose() {
    // What is marked in the dialog must not depend on how fast it was opened.
    const family = await this.connectedFamily();
    const file = await openChooser(server, this.file, family?.family ?? null);
    if (!file || file === this.file) return;
    setWidget(this.node, "file", file);
    noteChange();
  }
}

function refreshAll() {
  for (const card of cards) card.refresh();
}

app.registerExtension({
  name: "perfusion.choosing",

  setup() {
    api.addEventListener("execution_success", refreshAll);
  },

  nodeCreated(node) {
    if (node.comfyClass !== LOADER) return;
    const card = new ConceptCard(node);
    node.perfusionCard = card;
    for (const name of ["bias", "temperature"]) {
      after(widgetOf(node, name), "callback", () => card.keepSettings());
    }
    after(node, "onConfigure", () => card.keepSettings());
    after(widgetOf(node, "file"), "callback", () => card.changed());
    after(widgetOf(node, "placeholder"), "callback", () => card.show());
    after(node, "onConnectionsChange", () => app.configuringGraph || card.refresh());
    card.changed();
  },

  afterConfigureGraph: refreshAll,

  refreshComboInNodes() {
    server.forget();
    refreshAll();
  },
});
