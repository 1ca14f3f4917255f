// Graphs as the frontend holds them, as far as js/lib/node_paths.js and graph.js read them.

/** A graph of nodes; `links` are [from node, from slot, to node, to input's name]. */
export function graphOf(nodes, links) {
  const graph = { nodes, isRootGraph: true, links: new Map() };
  graph.getNodeById = (id) => nodes.find((node) => node.id === id) ?? null;
  graph.getLink = (id) => graph.links.get(id);
  links.forEach(([from, slot, to, name], id) => {
    const source = graph.getNodeById(from);
    const target = graph.getNodeById(to);
    // The frame of a subgraph is numbered, and its slots are.
    const place = target ? target.inputs.findIndex((input) => input.name === name) : name;
    graph.links.set(id, { origin_id: from, origin_slot: slot, target_id: to, target_slot: place });
    if (target) target.inputs[place].link = id;
    if (source) ((source.outputs[slot] ??= {}).links ??= []).push(id);
  });
  for (const node of nodes) {
    node.graph = graph;
    // As the frontend's nodes have it.
    node.getInputLink ??= (slot) => graph.getLink(node.inputs[slot]?.link) ?? null;
  }
  return graph;
}

export const FRAME_INPUT = -10;
export const FRAME_OUTPUT = -20;

/** A subgraph: its links may begin at FRAME_INPUT, and end at FRAME_OUTPUT with the slot's number. */
export function subgraphOf(nodes, links) {
  const graph = graphOf(nodes, links);
  graph.isRootGraph = false;
  graph.outputs = [];
  for (const [id, link] of graph.links) {
    if (link.target_id === FRAME_OUTPUT) graph.outputs[link.target_slot] = { linkIds: [id] };
  }
  return graph;
}

/** The same graphs with the ids that the frontend has since 1.47: all of them strings. */
export function withStringIds(...graphs) {
  for (const graph of graphs) {
    for (const node of graph.nodes) node.id = String(node.id);
    for (const link of graph.links.values()) {
      link.origin_id = String(link.origin_id);
      link.target_id = String(link.target_id);
    }
  }
}

/** A node that stands for a subgraph. */
export function holder(id, subgraph, inputs, outputs, widgets = {}) {
  return { ...node(id, `uuid-of-${id}`, inputs, widgets, outputs), subgraph };
}

/** A root graph that knows its subgraphs, as they know it. */
export function rooted(root, ...subgraphs) {
  for (const subgraph of subgraphs) subgraph.rootGraph = root;
  return root;
}

function node(id, type, inputs, widgets = {}, outputs = []) {
  return {
    id,
    type,
    mode: 0,
    inputs: inputs.map(([name, kind]) => ({ name, type: kind, link: null })),
    outputs: outputs.map((kind) => ({ type: kind })),
    widgets: Object.entries(widgets).map(([name, value]) => ({ name, value })),
  };
}

const MODEL = ["model", "MODEL"];
const CLIP = ["clip", "CLIP"];

export const checkpoint = (id, file = "base.safetensors") =>
  node(id, "CheckpointLoaderSimple", [], { ckpt_name: file }, ["MODEL", "CLIP", "VAE"]);

export const loader = (id, file, widgets = {}) =>
  node(id, "PerfusionConceptLoader", [MODEL, CLIP, ["bias", "FLOAT"]], {
    file,
    bias: 0.6,
    temperature: 0.15,
    strength: 1,
    placeholder: "",
    ...widgets,
  }, ["MODEL", "CLIP", "PERFUSION_CONCEPT"]);

export const tune = (id, widgets = {}) =>
  node(id, "PerfusionTune", [MODEL, ["bias", "FLOAT"]], { bias: 0.4, temperature: 0.2, strength: 0.5, concept: "", ...widgets }, ["MODEL"]);

export const combine = (id) =>
  node(id, "PerfusionCombineConcepts", [
    ["stack", "PERFUSION_STACK"],
    ["concept_1", "PERFUSION_CONCEPT"],
    ["concept_2", "PERFUSION_CONCEPT"],
  ]);

export const apply = (id) =>
  node(id, "PerfusionApplyConcepts", [MODEL, CLIP, ["stack", "PERFUSION_STACK"]], {}, ["MODEL", "CLIP"]);

export const train = (id, placeholder) =>
  node(id, "PerfusionTrainConcept", [MODEL, CLIP], { placeholder }, ["PERFUSION_CONCEPT"]);

export const lora = (id) => node(id, "LoraLoader", [MODEL, CLIP], {}, ["MODEL", "CLIP"]);

export const reroute = (id, kind) =>
  ({ ...node(id, "Reroute", [["", "*"]], {}, [kind]), isVirtualNode: true });

/** What packs with hidden connections have: what goes into the one ... */
export const setter = (id, name, kind) =>
  ({ ...node(id, "SomeSet", [[kind, kind]], { Constant: name }, [kind]), isVirtualNode: true });

/** ... comes out of all of the other with the same name. The frontend asks that one for the way. */
export function getter(id, name, kind = "*") {
  const made = { ...node(id, "SomeGet", [], { Constant: name }, [kind]), isVirtualNode: true, asked: 0 };
  made.getInputLink = (slot) => {
    made.asked += 1;
    const named = ({ type, widgets }) => type === "SomeSet" && widgets[0].value === made.widgets[0].value;
    const found = made.graph.nodes.find(named);
    return found && made.graph.getLink(found.inputs[slot].link);
  };
  return made;
}

/** The frontend's own primitive: it writes its value into the fields that it feeds. */
export const primitive = (id, value) =>
  ({ ...node(id, "PrimitiveNode", [], { value }, ["FLOAT"]), isVirtualNode: true, applyToGraph() {} });

/** A node of any kind with one input and one output. */
export const through = (id, kind, from = kind) => node(id, "Anything", [["any", from]], {}, [kind]);

export const number = (id, value) => node(id, "PrimitiveFloat", [], { value }, ["FLOAT"]);

export const prompt = (id, text) => node(id, "CLIPTextEncode", [CLIP, ["text", "STRING"]], { text }, ["CONDITIONING"]);

export const sampler = (id) =>
  node(id, "KSampler", [MODEL, ["positive", "CONDITIONING"], ["negative", "CONDITIONING"]]);
