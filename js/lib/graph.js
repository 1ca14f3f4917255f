// Which concepts reach a node of the graph, and which prompts are written for them.

import { finite } from "./gate.js";
import { mentions, sameWord, withoutComments } from "./placeholder.js";
import { MANY, follow, inputOf, placesIn, promptId, rootOf, runs, sourceOf, valueOf } from "./node_paths.js";

/**
 * @typedef {import("./gate.js").Sliders} Sliders
 *
 * @typedef {import("./node_paths.js").Place} Place
 * @typedef {import("./node_paths.js").End} End
 *
 * @typedef {object} ConceptInGraph
 * @property {any} node the loader that names its file, or what else it comes from
 * @property {string} via id of the node that puts it onto model and CLIP: the loader, or an apply node
 * @property {string} file "" where it has none: a node makes it, or none is chosen
 * @property {string} placeholder another one than the file's, or ""
 * @property {Sliders} sliders those in effect where the chain was read
 *
 * @typedef {object} Prompt
 * @property {any} node the node it is written in
 * @property {any} widget the field
 * @property {string} text "" where it is made by another node when the graph runs, too
 * @property {string} read what of it reaches the text encoder: comments that are typed here do not
 * @property {boolean} negative whether it says what to avoid: nothing but negative inputs takes it
 * @property {Place[]} sources our nodes that its CLIP goes through, the last one first
 */

export const LOADER = "PerfusionConceptLoader";
export const APPLY = "PerfusionApplyConcepts";
export const COMBINE = "PerfusionCombineConcepts";
export const TUNE = "PerfusionTune";
export const DEFAULTS = { bias: 0.6, temperature: 0.15, strength: 1 };

/** @param {Place} place @returns {Sliders} */
export function slidersOf(place) {
  return {
    bias: finite(valueOf(place, "bias"), DEFAULTS.bias),
    temperature: Math.max(finite(valueOf(place, "temperature"), DEFAULTS.temperature), 1e-6),
    strength: finite(valueOf(place, "strength"), DEFAULTS.strength),
  };
}

function conceptOf(loader, via) {
  return {
    node: loader.node,
    via: promptId(via),
    file: String(valueOf(loader, "file") ?? ""),
    placeholder: String(valueOf(loader, "placeholder") ?? "").trim(),
    sliders: slidersOf(loader),
  };
}

/**
 * How the server is asked for a concept: by its file, or by the node that applies it; null where
 * neither tells which it is.
 * @param {ConceptInGraph} concept
 * @returns {{file: string, placeholder: string} | {node: string, placeholder: string} | null}
 */
export function referenceTo({ node, via, file, placeholder }) {
  if (file) return { file, placeholder };
  return node.type !== LOADER && placeholder ? { node: via, placeholder } : null;
}

/**
 * The concepts on the model that leaves a node, the first one first.
 * @param {Place} place
 * @param {(file: string) => {name?: string, placeholder?: string} | undefined} cardOf
 * @returns {ConceptInGraph[]}
 */
export function conceptsOf(place, cardOf = () => undefined) {
  return conceptsOn(place, cardOf, MANY);
}

/**
 * The concepts that are sampled together with those of a node: what is on the model at the far end
 * of the graph below it. Where its model goes several ways, the one with the most of them.
 * @param {Place} place
 * @param {(file: string) => {name?: string, placeholder?: string} | undefined} cardOf
 * @returns {ConceptInGraph[]}
 */
export function conceptsBeside(place, cardOf = () => undefined) {
  const isOwn = (concept) => concept.node === place.node;
  const own = conceptsOf(place, cardOf).filter(isOwn);
  let most = conceptsOf(place, cardOf);
  for (const other of placesIn(rootOf(place.node.graph))) {
    if (!runs(other) || other.node.subgraph || other.node.isVirtualNode || !takesModel(other.node)) continue;
    const found = conceptsOf(other, cardOf);
    if (found.length > most.length && found.some(isOwn)) most = found;
  }
  // Its own sliders are the ones that are seen beside the plot, whatever sets others below.
  return most.map((concept) => (isOwn(concept) && own.length ? { ...concept, sliders: own[0].sliders } : concept));
}

function takesModel(node) {
  return Boolean(node.inputs?.some(({ type }) => type === "MODEL"));
}

function conceptsOn(place, cardOf, left) {
  if (!place || !left) return [];
  const { node } = place;
  const above = conceptsOn(sourceAbove(place, "model"), cardOf, left - 1);
  if (node.type === LOADER) return [...above, conceptOf(place, place)];
  if (node.type === APPLY) return [...above, ...stackOf(sourceOf(place, "stack"), place, left - 1)];
  if (node.type === TUNE) return tuned(place, above, cardOf);
  return above;
}

/** What a node's model or CLIP comes from, whatever its input is called. */
function sourceAbove(place, name) {
  return above(place, name).source ?? null;
}

/** @returns {End} */
function above(place, name) {
  const { node } = place;
  const input = inputOf(node, name) ?? node.inputs?.find((slot) => slot.type === name.toUpperCase());
  return input ? follow(place, input) : {};
}

/**
 * The node at which the way of a model or CLIP up from a node cannot be seen any further, though it
 * goes on: a virtual node that leads nowhere, or a group node (subgraphs' predecessor).
 * @param {Place} place
 * @param {"model" | "clip"} name
 */
export function whereLost(place, name) {
  let at = place;
  for (let i = 0; i < MANY && at; i++) {
    if (isGroup(at.node)) return at.node;
    const { source, lost } = above(at, name);
    if (lost) return lost;
    at = source;
  }
  return null;
}

/** The first such node above any prompt of a graph and its subgraphs. */
export function whereAnyLost(graph) {
  for (const place of placesIn(rootOf(graph))) {
    const lost = runs(place) && encodes(place.node) ? whereLost(place, "clip") : null;
    if (lost) return lost;
  }
  return null;
}

export function isGroup(node) {
  return Boolean(node.type?.startsWith?.("workflow>"));
}

/** Whether a node is one that may encode a prompt. */
function encodes(node) {
  if (node.type === LOADER || node.type === APPLY || node.subgraph) return false;
  return Boolean(node.inputs?.some((input) => input.type === "CLIP"));
}

function stackOf(place, via, left) {
  if (!place || !left) return [];
  const { node } = place;
  if (node.type === COMBINE) {
    const slots = node.inputs.filter(({ name }) => name === "stack" || name.startsWith("concept_"));
    return slots.flatMap((slot) => stackOf(sourceOf(place, slot), via, left - 1));
  }
  // A loader, or a node that has made the concept, whose file is nowhere.
  return [conceptOf(place, via)];
}

function tuned(place, concepts, cardOf) {
  const which = String(valueOf(place, "concept") ?? "").trim();
  const sliders = slidersOf(place);
  return concepts.map((concept) => {
    const card = cardOf(concept.file);
    const names = [concept.placeholder || card?.placeholder, card?.name];
    return !which || names.some((name) => name && sameWord(name, which)) ? { ...concept, sliders } : concept;
  });
}

/** Our nodes that a CLIP goes through on its way into a node, the last one first. */
function clipSources(place, input) {
  const found = [];
  let source = sourceOf(place, input);
  for (let i = 0; i < MANY && source; i++) {
    if (source.node.type === LOADER || source.node.type === APPLY) found.push(source);
    source = sourceAbove(source, "clip");
  }
  return found;
}

/**
 * The prompts in a graph and its subgraphs that are encoded for any of some concepts' nodes.
 * @param {any} graph
 * @param {Set<string>} ids of loaders and apply nodes
 * @returns {Prompt[]}
 */
export function promptsFor(graph, ids) {
  const prompts = [];
  const takers = takersIn(rootOf(graph));
  for (const place of placesIn(rootOf(graph))) {
    const { node } = place;
    if (!runs(place) || !encodes(node)) continue;
    const sources = clipSources(place, node.inputs.find((input) => input.type === "CLIP"));
    if (!sources.some((source) => ids.has(promptId(source)))) continue;
    const names = takers.get(promptId(place)) ?? [];
    const negative = names.length > 0 && names.every((name) => name === "negative");
    for (const widget of node.widgets ?? []) {
      if (!/^text/.test(widget.name) || typeof widget.value !== "string") continue;
      const text = String(valueOf(place, widget.name) ?? "");
      // ComfyUI's page takes comments out of what is typed here, not of what another node gives.
      const typed = widget.dynamicPrompts && text === widget.value;
      prompts.push({ node, widget, text, read: typed ? withoutComments(text) : text, negative, sources });
    }
  }
  return prompts;
}

/** Names of the inputs that take what is encoded, by the id of the node that it comes from. */
function takersIn(graph) {
  const names = new Map();
  for (const place of placesIn(graph)) {
    const { node } = place;
    if (!runs(place) || node.isVirtualNode || node.subgraph) continue;
    for (const input of node.inputs ?? []) {
      const source = input.type === "CONDITIONING" ? sourceOf(place, input) : null;
      if (!source) continue;
      const id = promptId(source);
      names.set(id, [...(names.get(id) ?? []), input.name]);
    }
  }
  return names;
}

/**
 * The prompt to show: the one that names most of the concepts, else the first that is not empty;
 * one that says what to have rather than what to avoid.
 * @param {Prompt[]} prompts
 * @param {string[]} placeholders
 * @returns {Prompt | null}
 */
export function choosePrompt(prompts, placeholders) {
  const wanted = placeholders.filter(Boolean);
  let best = null;
  let most = -1;
  for (const prompt of prompts) {
    if (!prompt.read.trim()) continue;
    const named = wanted.filter((word) => mentions(prompt.read, word)).length;
    const worth = 2 * named + (prompt.negative ? 0 : 1);
    if (worth > most) {
      most = worth;
      best = prompt;
    }
  }
  return best;
}

/** Where the model of a node comes from in the end, past everything that only changes it. */
export function checkpointOf(place) {
  let source = place;
  for (let i = 0; i < MANY && source; i++) {
    const { node } = source;
    if (!inputOf(node, "model") && !node.inputs?.some((slot) => slot.type === "MODEL")) {
      return source === place ? null : source;
    }
    source = sourceAbove(source, "model");
  }
  return null;
}

/**
 * Where the family of a checkpoint can be had: from its file, or from the definition of its node.
 * @param {Place | null} place
 * @returns {{folder: string, name: string} | {family: string, title: string} | null}
 */
export function familySource(place) {
  if (!place) return null;
  const family = familyInDefinition(place.node);
  if (family) return family;
  for (const [field, folder] of [["ckpt_name", "checkpoints"], ["unet_name", "diffusion_models"]]) {
    const name = valueOf(place, field);
    if (typeof name === "string" && name) return { folder, name };
  }
  return null;
}

/** The family that a node always gives, as its definition tells it (nodes/demo_model.py). */
function familyInDefinition(node) {
  const { required, optional } = node.constructor?.nodeData?.input ?? {};
  for (const [, options] of Object.values({ ...required, ...optional })) {
    if (options?.perfusion_family) return options.perfusion_family;
  }
  return null;
}
