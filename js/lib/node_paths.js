// Where the nodes of a graph run, and where their connections really begin: what the frontend makes
// of reroutes, subgraphs, bypassed nodes and nodes that are the page's alone when a graph is queued.
// Reads the graph that is on the screen; nothing here knows the browser.

/**
 * @typedef {object} Place a node where it runs
 * @property {any} node
 * @property {any[]} path the nodes of the subgraphs that it lies in, the outermost first. A node has
 *   several places where its subgraph is used several times.
 */

const MUTED = 2;
const BYPASSED = 4;
export const MANY = 500; // nodes in a row: a graph that goes round in a circle ends here

// The origin of a subgraph's connections that begin at its frame, where the graph does not tell it.
const FRAME_INPUT = "-10";

/**
 * Whether two ids are one. They are the frontend's: numbers until 1.46, strings since; a prompt and
 * a saved graph may have the other kind.
 */
export function sameId(one, other) {
  return String(one) === String(other);
}

export function widgetOf(node, name) {
  return node?.widgets?.find((widget) => widget.name === name);
}

export function inputOf(node, name) {
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

function nodesOf(graph) {
  return graph?.nodes ?? graph?._nodes ?? [];
}

/** Every node of a graph and of its subgraphs, in each place that it has. @returns {Generator<Place>} */
export function* placesIn(graph, path = []) {
  for (const node of nodesOf(graph)) {
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
    node = nodesOf(inside).find((one) => sameId(one.id, part)) ?? null;
    if (!node) return null;
  }
  return { node, path };
}

/** Whether nothing keeps a node, or a subgraph that it lies in, from running. */
export function runs({ node, path }) {
  return [...path, node].every(({ mode }) => mode !== MUTED && mode !== BYPASSED);
}

/**
 * The node that a connection really comes from: past reroutes, pairs of "Set" and "Get", bypassed
 * nodes and the frames of subgraphs.
 * @param {Place} place
 * @param {any} input one of its inputs, or its name
 * @returns {{node: any, path: any[], slot: number} | null} null: nothing is connected, or it is muted
 */
export function sourceOf(place, input) {
  const { source } = follow(place, input);
  return source ?? null;
}

/**
 * @typedef {object} End where a connection begins
 * @property {{node: any, path: any[], slot: number}} [source]
 * @property {{node: any, input: any}} [open] the input of a subgraph's node, where nothing is
 *   connected to it
 * @property {any} [lost] a virtual node that leads nowhere, such as a "Get" of a name that nothing sets
 *
 * @returns {End}
 */
export function follow(place, input) {
  let { path } = place;
  let graph = place.node?.graph;
  let slot = typeof input === "string" ? inputOf(place.node, input) : input;
  const wanted = slot?.type;
  let holder = null;
  for (let i = 0; i < MANY && slot && graph; i++) {
    const link = slot.found ?? linkOf(graph, slot.link);
    if (!link) return holder ? { open: { node: holder, input: slot } } : {};
    holder = null;
    if (sameId(link.origin_id, graph.inputNode?.id ?? FRAME_INPUT)) {
      holder = path.at(-1);
      path = path.slice(0, -1);
      graph = holder?.graph;
      slot = holder?.inputs?.[link.origin_slot];
      continue;
    }
    const origin = graph.getNodeById(link.origin_id);
    if (!origin) return {};
    if (origin.mode === BYPASSED) slot = passedThrough(origin, link.origin_slot, wanted);
    else if (origin.subgraph && origin.mode !== MUTED) {
      path = [...path, origin];
      graph = origin.subgraph;
      slot = { link: graph.outputs?.[link.origin_slot]?.linkIds?.[0] };
    } else if (handsOn(origin)) {
      const far = handedOn(origin, link.origin_slot);
      if (!far) return { lost: origin };
      if (far.node) ({ graph, path } = graphOfFar(far.node, path));
      slot = { found: far.node ? { origin_id: far.node.id, origin_slot: far.slot } : far };
    } else if (origin.mode === MUTED) return {};
    else return { source: { node: origin, path, slot: link.origin_slot } };
  }
  return {};
}

/** The input whose connection a bypassed node hands on, chosen as the frontend does. */
function passedThrough(node, slot, wanted) {
  const given = node.outputs?.[slot]?.type;
  const suits = (input) => fits(input.type, given) && fits(input.type, wanted);
  const inputs = node.inputs ?? [];
  if (inputs[slot] && suits(inputs[slot])) return inputs[slot];
  return inputs.find((input) => input.type === wanted) ?? inputs.find(suits);
}

/** Whether two types of connections may meet; none and "*" meet all. */
function fits(one, other) {
  const kinds = (type) => String(type || "*").toLowerCase().split(",");
  const [here, there] = [kinds(one), kinds(other)];
  return here.includes("*") || there.includes("*") || here.some((kind) => there.includes(kind));
}

/**
 * Whether a node is the page's alone, and what it gives comes from elsewhere in the graph: a reroute,
 * the "Get" of some pack. A primitive is virtual, too; but its value is its own, which it applies to
 * whatever it feeds.
 */
function handsOn(node) {
  return Boolean(node.isVirtualNode) && !node.subgraph && !node.applyToGraph;
}

/** What virtual nodes were asked in vain, and in what graph: some packs tell the user at each try. */
const inVain = new WeakMap();

/**
 * Where a virtual node has an output from, asked as the frontend asks when a graph is queued.
 * @returns {any} a connection in its own graph; or a node and its slot, in any graph; or null
 */
function handedOn(node, slot) {
  const state = inVain.has(node) ? stateOfVirtual(node) : "";
  if (state && inVain.get(node) === state) return null;
  let found = null;
  try {
    found = node.resolveVirtualOutput?.(slot) ?? node.getInputLink?.(slot) ?? null;
  } catch {
    // A pack's way to say that there is none.
  }
  if (found) inVain.delete(node);
  else inVain.set(node, state || stateOfVirtual(node));
  return found;
}

/** What the answer may depend on: the connections into a virtual node, and all virtual nodes' fields. */
function stateOfVirtual(node) {
  const virtual = [...placesIn(rootOf(node.graph))].filter(({ node: one }) => one.isVirtualNode);
  return JSON.stringify(virtual.map(({ node: one }) => [
    one.id,
    one.inputs?.map(({ link }) => link),
    one.widgets?.map(({ value }) => value),
  ]));
}

/** The graph of a node that a virtual node named, mostly one around the virtual node's own. */
function graphOfFar(node, path) {
  const around = path.findIndex((holder) => holder.graph === node.graph);
  if (around >= 0) return { graph: node.graph, path: path.slice(0, around) };
  if (path.at(-1)?.subgraph === node.graph) return { graph: node.graph, path };
  return { graph: node.graph, path: placesOf(node)[0]?.path ?? [] };
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
  return source && heldBy(source.node, typeof own);
}

/** The value that a node holds; undefined where it makes it of others, which only a run can tell. */
function heldBy(node, kind) {
  if (node.applyToGraph) return node.widgets?.[0]?.value;
  if (node.inputs?.some(({ link }) => link != null)) return undefined;
  const held = (node.widgets ?? []).filter(({ value }) => typeof value === kind);
  return held.length === 1 ? held[0].value : undefined;
}
