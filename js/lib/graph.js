// Which concepts reach a node of the graph, and which prompts are written for them. Reads the graph
// that is on the screen; nothing here knows the browser.

import { finite } from "./gate.js";

/**
 * @typedef {import("./gate.js").Sliders} Sliders
 *
 * @typedef {object} Place a node where it runs
 * @property {any} node
 * @property {any[]} path the nodes of the subgraphs that it lies in, the outermost first. A node has
 *   several places where its subgraph is used several times.
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
 * @property {string} text
 * @property {boolean} negative whether it says what to avoid: nothing but negative inputs takes it
 * @property {Place[]} sources our nodes that its CLIP goes through, the last one first
 */

export const LOADER = "PerfusionConceptLoader";
export const APPLY = "PerfusionApplyConcepts";
export const COMBINE = "PerfusionCombineConcepts";
export const TUNE = "PerfusionTune";
export const DEFAULTS = { bias: 0.6, temperature: 0.15, strength: 1 };

const MUTED = 2;
const BYPASSED = 4;
const MANY = 500; // nodes in a row: a graph that goes round in a circle ends here

// The ends of a subgraph's connections that lie on its frame, as the frontend numbers them.
const FRAME_INPUT = -10;
const FRAME_OUTPUT = -20;

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

/** The graph that all subgraphs are in. */
export function rootOf(graph) {
  return graph?.rootGraph ?? graph;
}

/** Every node of a graph and of its subgraphs, in each place that it has. @returns {Generator<Place>} */
export function* placesIn(graph, path = []) {
  for (const node of graph?.nodes ?? graph?._nodes ?? []) {
    yield { node, path };
    if (node.subgraph && !path.includes(node)) yield* placesIn(node.subgraph, [...path, node]);
  }
}

/** The places of a node: one, but for a node in a subgraph that is used several times, or nowhere. */
export function placesOf(node) {
  const graph = node?.graph;
  const root = rootOf(graph);
  if (graph === root) return [{ node, path: [] }];
  return [...placesIn(root)].filter((place) => place.node === node);
}

/** The id that a node has in a prompt that is sent. @param {Place} place */
export function promptId({ node, path }) {
  return [...path, node].map((one) => one.id).join(":");
}

/** The node that has an id in a prompt, and where. @returns {Place | null} */
export function placeAt(graph, id) {
  const path = [];
  let node = null;
  for (const part of String(id).split(":")) {
    if (node) path.push(node);
    const inside = node ? node.subgraph : graph;
    node = inside?.getNodeById(Number(part)) ?? inside?.getNodeById(part) ?? null;
    if (!node) return null;
  }
  return { node, path };
}

/** Whether nothing keeps a node, or a subgraph that it lies in, from running. */
function runs({ node, path }) {
  return node.mode !== MUTED && path.every(({ mode }) => mode !== MUTED && mode !== BYPASSED);
}

/**
 * The node that a connection really comes from: past reroutes, bypassed nodes and the frames of
 * subgraphs.
 * @param {Place} place
 * @param {any} input one of its inputs, or its name
 * @returns {{node: any, path: any[], slot: number} | null} null: nothing is connected, or it is muted
 */
export function sourceOf(place, input) {
  const { source } = follow(place, input);
  return source ?? null;
}

/**
 * @returns {{source?: {node: any, path: any[], slot: number}, open?: {node: any, input: any}}} open:
 *   the input of a subgraph's node that the connection begins at, where nothing is connected to it
 */
function follow(place, input) {
  let { path } = place;
  let graph = place.node?.graph;
  let slot = typeof input === "string" ? inputOf(place.node, input) : input;
  let holder = null;
  for (let i = 0; i < MANY && slot && graph; i++) {
    const link = linkOf(graph, slot.link);
    if (!link) return holder ? { open: { node: holder, input: slot } } : {};
    holder = null;
    if (link.origin_id === FRAME_INPUT) {
      holder = path.at(-1);
      path = path.slice(0, -1);
      graph = holder?.graph;
      slot = holder?.inputs?.[link.origin_slot];
      continue;
    }
    const origin = graph.getNodeById(link.origin_id);
    if (!origin || origin.mode === MUTED) return {};
    if (origin.mode === BYPASSED) slot = passedThrough(origin, link.origin_slot);
    else if (origin.type === "Reroute") slot = origin.inputs?.[0];
    else if (origin.subgraph) {
      path = [...path, origin];
      graph = origin.subgraph;
      slot = { link: graph.outputs?.[link.origin_slot]?.linkIds?.[0] };
    } else return { source: { node: origin, path, slot: link.origin_slot } };
  }
  return {};
}

/** The input whose connection a bypassed node hands on. */
function passedThrough(node, slot) {
  const type = node.outputs?.[slot]?.type;
  const same = node.inputs?.[slot];
  return same?.type === type ? same : node.inputs?.find((input) => input.type === type);
}

/**
 * A field's value: its own, or that of the node that is connected to it, where that has one; on the
 * frame of a subgraph, that of the subgraph's own field.
 * @param {Place} place
 */
export function valueOf(place, name) {
  const own = widgetOf(place.node, name)?.value;
  if (!isConnected(place.node, name)) return own;
  const { source, open } = follow(place, name);
  if (open) return widgetOf(open.node, open.input.widget?.name ?? open.input.name)?.value ?? own;
  return source?.node.widgets?.[0]?.value;
}

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
  const { node } = place;
  const input = inputOf(node, name) ?? node.inputs?.find((slot) => slot.type === name.toUpperCase());
  return input ? sourceOf(place, input) : null;
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
  const which = String(valueOf(place, "concept") ?? "").trim().toLowerCase();
  const sliders = slidersOf(place);
  return concepts.map((concept) => {
    const card = cardOf(concept.file);
    const names = [concept.placeholder || card?.placeholder, card?.name].map((n) => n?.toLowerCase());
    return !which || names.includes(which) ? { ...concept, sliders } : concept;
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
  for (const place of placesIn(rootOf(graph))) {
    const { node } = place;
    if (node.type === LOADER || node.type === APPLY || node.subgraph || !runs(place)) continue;
    const clip = node.inputs?.find((input) => input.type === "CLIP");
    if (!clip) continue;
    const sources = clipSources(place, clip);
    if (!sources.some((source) => ids.has(promptId(source)))) continue;
    const negative = isNegative(place);
    for (const widget of node.widgets ?? []) {
      if (!/^text/.test(widget.name)) continue;
      const text = valueOf(place, widget.name);
      if (typeof text === "string") prompts.push({ node, widget, text, negative, sources });
    }
  }
  return prompts;
}

/** Whether nothing but negative inputs takes what a node gives. */
function isNegative({ node, path }) {
  const names = (node.outputs ?? []).flatMap((output) => takers(node.graph, output.links ?? [], path));
  return names.length > 0 && names.every((name) => name === "negative");
}

/** Names of the inputs that connections lead to, out of subgraphs as well. */
function takers(graph, ids, path) {
  return ids.flatMap((id) => {
    const link = linkOf(graph, id);
    if (link?.target_id !== FRAME_OUTPUT) {
      return [graph.getNodeById(link?.target_id)?.inputs?.[link.target_slot]?.name];
    }
    const holder = path.at(-1);
    return takers(holder?.graph, holder?.outputs?.[link.target_slot]?.links ?? [], path.slice(0, -1));
  });
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
 * Where the family of a checkpoint can be had: a file of the host's, or what is known by itself.
 * @param {Place | null} place
 * @returns {{folder: string, name: string} | {family: string, title: string} | null}
 */
export function familySource(place) {
  if (!place) return null;
  if (place.node.type === "PerfusionDemoModel") {
    return { family: "emoji", title: "the emoji world of the demo" };
  }
  for (const [field, folder] of [["ckpt_name", "checkpoints"], ["unet_name", "diffusion_models"]]) {
    const name = valueOf(place, field);
    if (typeof name === "string" && name) return { folder, name };
  }
  return null;
}
