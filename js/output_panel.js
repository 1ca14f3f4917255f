// What the pack's nodes say when they have run (Perfusion Concept Info, Save Concept, training ...):
// a card on the node, its text to be marked and copied. On the node as
// `node.perfusionSaid` (a Said); its element is `[data-perfusion="said"]`.

import { app } from "../../scripts/app.js";
import { after } from "./lib/callbacks.js";
import { t } from "./lib/language.js";
import { make } from "./lib/make.js";
import { addPart, fit } from "./lib/dom_widget.js";
import { entries } from "./lib/text.js";

const LINE = 16;
const SHORT = 3; // lines
const LONG = 16;

/** The card of one node, there from the first time that it says something. */
class Said {
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
    addPart(node, "said", this.root, {
      least: () => LINE * Math.min(this.lines, LONG),
      most: () => LINE * (this.lines + 1),
    });
  }

  show(text) {
    this.lines = Math.max(text.split("\n").length, SHORT);
    const found = entries(text);
    this.root.replaceChildren(found ? table(found) : make("div", { text }));
    fit(this.node, false);
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
      const told = Array.isArray(text) ? text.join("\n") : text;
      if (typeof told !== "string" || !told) return;
      node.perfusionSaid ??= new Said(node);
      node.perfusionSaid.show(told);
    });
  },
});
