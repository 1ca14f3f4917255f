// The output panel on a node: what the node says when it has run (Perfusion Concept Info, Save
// Concept, training ...), as text to be marked and copied. It is `node.perfusionSaid`; its element is
// `[data-perfusion="said"]`.

import { app } from "../../scripts/app.js";
import { after } from "./lib/callbacks.js";
import { t } from "./lib/language.js";
import { make } from "./lib/make.js";
import { addElement, fitNode } from "./lib/dom_widget.js";
import { entries } from "./lib/text.js";

const LINE = 16;
const SHORT = 3; // lines
const LONG = 16;

/** The panel of one node, there from the first time that it says something. */
class OutputPanel {
  constructor(node) {
    this.node = node;
    this.lines = SHORT;
    this.root = make("div", {
      class: "perfusion-said",
      tabindex: "0",
      role: "region",
      "aria-live": "polite",
      "aria-label": t`What the node says`,
    });
    addElement(node, "said", this.root, {
      least: () => LINE * Math.min(this.lines, LONG),
      most: () => LINE * (this.lines + 1),
    });
  }

  show(text) {
    this.lines = Math.max(text.split("\n").length, SHORT);
    const found = entries(text);
    this.root.replaceChildren(found ? table(found) : make("div", { text }));
    fitNode(this.node, false);
  }
}

function table(pairs) {
  const cells = pairs.flatMap(([key, value]) => [make("dt", { text: key }), make("dd", { text: value })]);
  return make("dl", {}, cells);
}

app.registerExtension({
  name: "perfusion.said",

  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("Perfusion")) return;
    after(node, "onExecuted", (output) => {
      const text = output?.text;
      const shown = Array.isArray(text) ? text.join("\n") : text;
      if (typeof shown !== "string" || !shown) return;
      node.perfusionSaid ??= new OutputPanel(node);
      node.perfusionSaid.show(shown);
    });
  },
});
