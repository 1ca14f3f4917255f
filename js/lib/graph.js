// Which concepts reach a node of the graph, and which prompts are written for them. Reads the graph
// that is on the screen; nothing here knows the browser.

import { finite } from "./gate.js";

/**
 * @typedef {import("./gate.js").Sliders} Sliders
 *
 * @typedef {object} ConceptInGraph
 * @property {any} node the loader that names its file
 * @property {any} via the node that puts it onto model and CLIP: the loader, or an apply node
 * @property {string} file
 * @property {string} placeholder another one than the file's, or ""
 * @property {Sliders} sliders those in effect where the chain was read
 *
 * @typedef {object} Prompt
 * @property {any} node the node it is written in
 * @property {any} widget the field
 * @property {string} text
 * @property {any[]} sources our nodes that its CLIP goes through, the last one first
 */

export const LOADER = "PerfusionConceptLoader";
export const APPLY = "PerfusionApplyConcepts";
export const COMBINE = "PerfusionCombineConcepts";
export const TUNE = "PerfusionTune";
export const DEFAULTS = { bias: 0.6, temperature: 0.15, strength: 1 };

const MUTED = 2;
const BYPASSED = 4;
const MANY = 500; // nodes in a row: a graph that goes round in a circle ends here

export function widgetOf(node, name) {
  return node?.widgets?.find((widget) => widget.name === name);
}

function inputOf(node, name) {
  return node?.inputs?.find((input) => input.name === name);
}

/** Whether a field is fed by a connection, so that what it shows is not in effect. */
export function isConnected(node, name) {
  return inputOf(node, name)?.link != null;
}

function linkOf(graph, id) {
  if (id == null) return null;
  return graph.getLink?.(id) ?? graph.links?.get?.(id) ?? graph.links?.[id] ?? null;
}

/**
 * The node that a connection really comes from: past reroutes and bypassed nodes.
 * @returns {{node: any, slot: number} | null} null: nothing is connected, or it is muted
 */
export function sourceOf(node, input) {
  let slot = typeof input === "string" ? inputOf(node, input) : input;
  let graph = node?.graph;
  for (let i = 0; i < MANY && slot && graph; i++) {
    const link = linkOf(graph, slot.link);
    const origin = link && graph.getNodeById(link.origin_id);
    if (!origin || origin.mode === MUTED) return null;
    if (origin.type !== "Reroute" && origin.mode !== BYPASSED) {
      return { node: origin, slot: link.origin_slot };
    }
    slot = origin.type === "Reroute" ? origin.inputs?.[0] : passedThrough(origin, link.origin_slot);
  }
  return null;
}

/** The input whose connection a bypassed node hands on. */
function passedThrough(node, slot) {
  const type = node.outputs?.[slot]?.type;
  const same = node.inputs?.[slot];
  return same?.type === type ? same : node.inputs?.find((input) => input.type === type);
}

/** A field's value: its own, or that of the node that is connected to it, where that has one. */
export function valueOf(node, name) {
  if (!isConnected(node, name)) return widgetOf(node, name)?.value;
  return sourceOf(node, name)?.node.widgets?.[0]?.value;
}

/** @returns {Sliders} */
export function slidersOf(node) {
  return {
    bias: finite(valueOf(node, "bias"), DEFAULTS.bias),
    temperature: Math.max(finite(valueOf(node, "temperature"), DEFAULTS.temperature), 1e-6),
    strength: finite(valueOf(node, "strength"), DEFAULTS.strength),
  };
}

function conceptOf(loader, via) {
  return {
    node: loader,
    via,
    file: String(valueOf(loader, "file") ?? ""),
    placeholder: String(valueOf(loader, "placeholder") ?? "").trim(),
    sliders: slidersOf(loader),
  };
}

/**
 * The concepts on the model that leaves a node, the first one first.
 * @param {any} node
 * @param {(file: string) => {name?: string, placeholder?: string} | undefined} cardOf
 * @returns {ConceptInGraph[]}
 */
export function conceptsOf(node, cardOf = () => undefined) {
  return conceptsOn(node, cardOf, MANY);
}

function conceptsOn(node, cardOf, left) {
  if (!node || !left) return [];
  const input = inputOf(node, "model") ?? node.inputs?.find((slot) => slot.type === "MODEL");
  const above = input ? conceptsOn(sourceOf(node, input)?.node, cardOf, left - 1) : [];
  if (node.type === LOADER) return [...above, conceptOf(node, node)];
  if (node.type === APPLY) {
    return [...above, ...stackOf(sourceOf(node, "stack")?.node, node, left - 1)];
  }
  if (node.type === TUNE) return tuned(node, above, cardOf);
  return above;
}

function stackOf(node, via, left) {
  if (!node || !left) return [];
  if (node.type === LOADER) return [conceptOf(node, via)];
  if (node.type !== COMBINE) return [];
  const slots = node.inputs.filter((slot) => slot.name === "stack" || slot.name.startsWith("concept_"));
  return slots.flatMap((slot) => stackOf(sourceOf(node, slot)?.node, via, left - 1));
}

function tuned(node, concepts, cardOf) {
  const which = String(valueOf(node, "concept") ?? "").trim().toLowerCase();
  const sliders = slidersOf(node);
  return concepts.map((concept) => {
    const card = cardOf(concept.file);
    const names = [concept.placeholder || card?.placeholder, card?.name].map((n) => n?.toLowerCase());
    return !which || names.includes(which) ? { ...concept, sliders } : concept;
  });
}

/** Our nodes that a CLIP goes through on its way into a node, the last one first. */
function clipSources(node, input) {
  const found = [];
  let source = sourceOf(node, input)?.node;
  for (let i = 0; i < MANY && source; i++) {
    if (source.type === LOADER || source.type === APPLY) found.push(source);
    const above = inputOf(source, "clip") ?? source.inputs?.find((slot) => slot.type === "CLIP");
    source = above ? sourceOf(source, above)?.node : null;
  }
  return found;
}

/**
 * The prompts in a graph that are encoded for any of some concepts' nodes.
 * @param {any} graph
 * @param {Set<any>} nodes loaders and apply nodes
 * @returns {Prompt[]}
 */
export function promptsFor(graph, nodes) {
  const prompts = [];
  for (const node of graph?.nodes ?? graph?._nodes ?? []) {
    if (node.type === LOADER || node.type === APPLY || node.mode === MUTED) continue;
    const clip = node.inputs?.find((input) => input.type === "CLIP");
    if (!clip) continue;
    const sources = clipSources(node, clip);
    if (!sources.some((source) => nodes.has(source))) continue;
    for (const widget of node.widgets ?? []) {
      if (!/^text/.test(widget.name)) continue;
      const text = valueOf(node, widget.name);
      if (typeof text === "string") prompts.push({ node, widget, text, sources });
    }
  }
  return prompts;
}

/** Whether a prompt says what to avoid: nothing but negative inputs takes it. */
export function isNegative(prompt) {
  const { node } = prompt;
  const links = (node?.outputs ?? []).flatMap((output) => output.links ?? []);
  const inputs = links.map((id) => {
    const link = linkOf(node.graph, id);
    return node.graph.getNodeById(link?.target_id)?.inputs?.[link.target_slot]?.name;
  });
  return inputs.length > 0 && inputs.every((name) => name === "negative");
}

/**
 * The prompt to show: the one that names most of the concepts, else the first that is not empty;
 * one that says what to have rather than what to avoid.
 * @param {Prompt[]} prompts
 * @param {string[]} placeholders
 * @returns {Prompt | null}
 */
export function choosePrompt(prompts, placeholders) {
  const wanted = placeholders.filter(Boolean).map((word) => word.toLowerCase());
  let best = null;
  let most = -1;
  for (const prompt of prompts) {
    if (!prompt.text.trim()) continue;
    const text = prompt.text.toLowerCase();
    const named = wanted.filter((word) => text.includes(word)).length;
    const worth = 2 * named + (isNegative(prompt) ? 0 : 1);
    if (worth > most) {
      most = worth;
      best = prompt;
    }
  }
  return best;
}

/** Where the model of a node comes from in the end, past everything that only changes it. */
export function checkpointOf(node) {
  let source = node;
  for (let i = 0; i < MANY; i++) {
    const input = inputOf(source, "model") ?? source?.inputs?.find((slot) => slot.type === "MODEL");
    if (!input) return source === node ? null : source;
    source = sourceOf(source, input)?.node;
    if (!source) return null;
  }
  return null;
}

/**
 * Where the family of a checkpoint can be had: a file of the host's, or what is known by itself.
 * @returns {{folder: string, name: string} | {family: string, title: string} | null}
 */
export function familySource(checkpoint) {
  if (checkpoint?.type === "PerfusionDemoModel") {
    return { family: "emoji", title: "the emoji world of the demo" };
  }
  for (const [field, folder] of [["ckpt_name", "checkpoints"], ["unet_name", "diffusion_models"]]) {
    const name = valueOf(checkpoint, field);
    if (typeof name === "string" && name) return { folder, name };
  }
  return null;
}

/** The id that a node has in a prompt that is sent, or "" inside a subgraph, where it has several. */
export function promptId(node) {
  const graph = node.graph;
  return graph && (graph.isRootGraph ?? true) ? String(node.id) : "";
}
