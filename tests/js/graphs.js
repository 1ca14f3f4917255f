// Graphs as the frontend holds them, as far as js/lib/graph.js reads them.

/** A graph of nodes; `links` are [from node, from slot, to node, to input's name]. */
export function graphOf(nodes, links) {
  const graph = { nodes, isRootGraph: true, links: new Map() };
  graph.getNodeById = (id) => nodes.find((node) => node.id === id) ?? null;
  graph.getLink = (id) => graph.links.get(id);
  links.forEach(([from, slot, to, name], id) => {
    const target = graph.getNodeById(to);
    const place = target.inputs.findIndex((input) => input.name === name);
    graph.links.set(id, { origin_id: from, origin_slot: slot, target_id: to, target_slot: place });
    target.inputs[place].link = id;
    (graph.getNodeById(from).outputs[slot] ??= {}).links = [id];
  });
  for (const node of nodes) node.graph = graph;
  return graph;
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
  node(id, "PerfusionConceptLoader", [MODEL, CLIP], {
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

export const lora = (id) => node(id, "LoraLoader", [MODEL, CLIP], {}, ["MODEL", "CLIP"]);

export const reroute = (id, kind) => node(id, "Reroute", [["", "*"]], {}, [kind]);

export const number = (id, value) => node(id, "PrimitiveFloat", [], { value }, ["FLOAT"]);

export const prompt = (id, text) => node(id, "CLIPTextEncode", [CLIP, ["text", "STRING"]], { text }, ["CONDITIONING"]);

export const sampler = (id) =>
  node(id, "KSampler", [MODEL, ["positive", "CONDITIONING"], ["negative", "CONDITIONING"]]);
