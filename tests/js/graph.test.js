import assert from "node:assert/strict";
import { test } from "node:test";

import { checkpointOf, choosePrompt, conceptsBeside, conceptsOf, familySource, isGroup, promptsFor, referenceTo, whereAnyLost, whereLost } from "../../js/lib/graph.js";
import { placeAt, placesOf, promptId, sourceOf } from "../../js/lib/node_paths.js";
import { FRAME_INPUT, FRAME_OUTPUT, apply, checkpoint, combine, getter, graphOf, holder, loader, lora, number, primitive, prompt, reroute, rooted, sampler, setter, subgraphOf, through, train, tune, withStringIds } from "./graphs.js";

const files = (concepts) => concepts.map((concept) => concept.file);

/** A node of a graph without subgraphs, where it is. */
const place = (node) => ({ node, path: [] });

/** checkpoint 1 -> loaders 2 and 3 -> tune 4 -> sampler 5; prompts 6 (full) and 7 (empty). */
function chain(tuning = {}) {
  const nodes = [
    checkpoint(1),
    loader(2, "berry", { bias: 0.7 }),
    loader(3, "royal", { placeholder: "pot*" }),
    tune(4, tuning),
    sampler(5),
    prompt(6, "a teddy* beside a pot*"),
    prompt(7, ""),
  ];
  const graph = graphOf(nodes, [
    [1, 0, 2, "model"],
    [1, 1, 2, "clip"],
    [2, 0, 3, "model"],
    [2, 1, 3, "clip"],
    [3, 0, 4, "model"],
    [4, 0, 5, "model"],
    [3, 1, 6, "clip"],
    [3, 1, 7, "clip"],
  ]);
  return { graph, at: (id) => place(graph.getNodeById(id)) };
}

test("a loader has its own concept last, after those above it", () => {
  const { at } = chain();
  assert.deepEqual(files(conceptsOf(at(2))), ["berry"]);
  assert.deepEqual(files(conceptsOf(at(3))), ["berry", "royal"]);
  assert.equal(conceptsOf(at(3))[0].sliders.bias, 0.7);
  assert.equal(conceptsOf(at(3))[1].placeholder, "pot*");
});

test("a loader's concept is sampled beside all that are on its model in the end, with its own sliders", () => {
  const { at } = chain();
  for (const id of [2, 3]) {
    const found = conceptsBeside(at(id));
    assert.deepEqual(files(found), ["berry", "royal"]);
    const own = found.find(({ node }) => node === at(id).node);
    assert.deepEqual(own.sliders, { bias: id === 2 ? 0.7 : 0.6, temperature: 0.15, strength: 1 });
  }
});

test("a loader's concept is not sampled beside those of another way, or of a bypassed loader", () => {
  const nodes = [checkpoint(1), loader(2, "berry"), loader(3, "royal"), loader(4, "plum"), sampler(5), sampler(6)];
  const links = [[1, 0, 2, "model"], [2, 0, 3, "model"], [1, 0, 4, "model"], [3, 0, 5, "model"], [4, 0, 6, "model"]];
  const graph = graphOf(nodes, links);
  const beside = (id) => files(conceptsBeside(place(graph.getNodeById(id))));
  assert.deepEqual([2, 3, 4].map(beside), [["berry", "royal"], ["berry", "royal"], ["plum"]]);
  graph.getNodeById(3).mode = 4;
  assert.deepEqual(beside(2), ["berry"]);
});

test("a loader whose concept goes into a stack is sampled beside the others of the stack", () => {
  const nodes = [checkpoint(1), loader(2, "berry"), loader(3, "royal"), combine(4), apply(5), sampler(6)];
  const graph = graphOf(nodes, [
    [1, 0, 5, "model"],
    [2, 2, 4, "concept_1"],
    [3, 2, 4, "concept_2"],
    [4, 0, 5, "stack"],
    [5, 0, 6, "model"],
  ]);
  for (const id of [2, 3]) assert.deepEqual(files(conceptsBeside(place(graph.getNodeById(id)))), ["berry", "royal"]);
});

test("Tune sets the sliders of all concepts above it", () => {
  const { at } = chain();
  for (const concept of conceptsOf(at(4))) {
    assert.deepEqual(concept.sliders, { bias: 0.4, temperature: 0.2, strength: 0.5 });
  }
});

test("Tune sets one concept alone when it is named, by placeholder or by name", () => {
  const cards = { berry: { placeholder: "teddy*", name: "Berry" }, royal: { placeholder: "teapot*" } };
  for (const [word, expected] of [["TEDDY*", [0.4, 0.6]], ["berry", [0.4, 0.6]], ["pot*", [0.7, 0.4]], ["teapot*", [0.7, 0.6]]]) {
    const { at } = chain({ concept: word });
    const found = conceptsOf(at(4), (file) => cards[file]);
    assert.deepEqual(found.map((concept) => concept.sliders.bias), expected, word);
  }
});

test("the chain is followed through reroutes, LoRAs and bypassed nodes, and ends at muted ones", () => {
  const nodes = [checkpoint(1), loader(2, "berry"), reroute(3, "MODEL"), lora(4), loader(5, "royal"), tune(6)];
  const graph = graphOf(nodes, [
    [1, 0, 2, "model"],
    [2, 0, 3, ""],
    [3, 0, 4, "model"],
    [4, 0, 5, "model"],
    [5, 0, 6, "model"],
  ]);
  const last = place(graph.getNodeById(6));
  assert.deepEqual(files(conceptsOf(last)), ["berry", "royal"]);
  graph.getNodeById(5).mode = 4;
  assert.deepEqual(files(conceptsOf(last)), ["berry"]);
  graph.getNodeById(5).mode = 2;
  assert.deepEqual(files(conceptsOf(last)), []);
});

test("a graph that goes round in a circle ends", () => {
  const graph = graphOf([lora(1), lora(2)], [[1, 0, 2, "model"], [2, 0, 1, "model"]]);
  assert.deepEqual(conceptsOf(place(graph.getNodeById(1))), []);
  const round = graphOf([reroute(1, "MODEL"), reroute(2, "MODEL")], [[1, 0, 2, ""], [2, 0, 1, ""]]);
  assert.equal(sourceOf(place(round.getNodeById(1)), ""), null);
});

test("a stack gives its concepts to the node that applies it", () => {
  const nodes = [checkpoint(1), loader(2, "berry"), loader(3, "royal"), combine(4), apply(5), prompt(6, "a teddy*")];
  const graph = graphOf(nodes, [
    [2, 2, 4, "concept_1"],
    [3, 2, 4, "concept_2"],
    [1, 0, 5, "model"],
    [1, 1, 5, "clip"],
    [4, 0, 5, "stack"],
    [5, 1, 6, "clip"],
  ]);
  const found = conceptsOf(place(graph.getNodeById(5)));
  assert.deepEqual(files(found), ["berry", "royal"]);
  const nodesOf = new Set(found.map((concept) => concept.via));
  assert.deepEqual([...nodesOf], ["5"]);
  assert.deepEqual(promptsFor(graph, nodesOf).map((one) => one.node.id), [6]);
});

test("a slider that is connected has the value of what it is connected to", () => {
  const nodes = [loader(1, "berry"), tune(2), number(3, 0.9)];
  const graph = graphOf(nodes, [[1, 0, 2, "model"], [3, 0, 2, "bias"]]);
  assert.equal(conceptsOf(place(graph.getNodeById(2)))[0].sliders.bias, 0.9);
});

test("prompts belong to the concepts that their CLIP goes through", () => {
  const { graph } = chain();
  const all = promptsFor(graph, new Set(["2"]));
  assert.deepEqual(all.map((one) => one.node.id), [6, 7]);
  assert.deepEqual(all[0].sources.map(promptId), ["3", "2"]);
  assert.deepEqual(promptsFor(graph, new Set(["1"])), []);
});

test("the prompt with most of the placeholders is chosen, whatever their case", () => {
  const prompts = ["", "a photo", "A TEDDY* here", "a teddy* and a pot*"].map((text) => ({ text, read: text }));
  assert.equal(choosePrompt(prompts, ["teddy*", "pot*"]).text, "a teddy* and a pot*");
  assert.equal(choosePrompt(prompts, ["none*", ""]).text, "a photo");
  assert.equal(choosePrompt(prompts.slice(0, 1), ["teddy*"]), null);
});

test("a prompt that has a placeholder in a longer word alone does not have it", () => {
  const prompts = ["a photo", "myteddy* here", "一只teddy*在沙滩上"].map((text) => ({ text, read: text }));
  assert.equal(choosePrompt(prompts.slice(0, 2), ["teddy*"]).text, "a photo");
  assert.equal(choosePrompt(prompts, ["teddy*"]).text, "一只teddy*在沙滩上");
});

test("what is in a comment is in no prompt", () => {
  const nodes = [loader(1, "berry"), prompt(2, "a photo //teddy*"), prompt(3, "a /* */teddy*")];
  const graph = graphOf(nodes, [[1, 1, 2, "clip"], [1, 1, 3, "clip"]]);
  for (const node of nodes.slice(1)) node.widgets[0].dynamicPrompts = true;
  const prompts = promptsFor(graph, new Set(["1"]));
  assert.deepEqual(prompts.map((one) => one.read), ["a photo ", "a teddy*"]);
  assert.deepEqual(prompts.map((one) => one.text), ["a photo //teddy*", "a /* */teddy*"]);
  assert.equal(choosePrompt(prompts, ["teddy*"]).node.id, 3);
});

test("a prompt that only negative inputs take comes last", () => {
  const nodes = [loader(1, "berry"), prompt(2, "no teddy*"), prompt(3, "a photo"), sampler(4)];
  const graph = graphOf(nodes, [
    [1, 1, 2, "clip"],
    [1, 1, 3, "clip"],
    [2, 0, 4, "negative"],
    [3, 0, 4, "positive"],
  ]);
  const prompts = promptsFor(graph, new Set(["1"]));
  assert.deepEqual(prompts.map((one) => one.negative), [true, false]);
  assert.equal(choosePrompt(prompts, []).node.id, 3);
  // A placeholder in it tells more.
  assert.equal(choosePrompt(prompts, ["teddy*"]).node.id, 2);
});

test("where a checkpoint's family can be had", () => {
  assert.deepEqual(familySource(place(checkpoint(1, "x.safetensors"))), { folder: "checkpoints", name: "x.safetensors" });
  // A node may always give the same one, which is in its definition.
  const tiny = { family: "tiny", title: "a tiny world" };
  class Defined {
    static nodeData = { input: { optional: { any: ["COMBO"], pictures_of: ["COMBO", { perfusion_family: tiny }] } } };
  }
  assert.deepEqual(familySource(place(new Defined())), tiny);
  assert.equal(familySource(place(sampler(1))), null);
  assert.equal(familySource(null), null);
});

test("the checkpoint is found behind everything that only changes it", () => {
  const { at } = chain();
  assert.equal(checkpointOf(at(5)).node.id, 1);
  assert.equal(checkpointOf(place(loader(9, "berry"))), null);
});

/**
 * checkpoint 1 -> subgraph 2 {loader 5 -> loader 6, prompt 7} -> tune 3; prompt 4 outside. `times`: how
 * often the subgraph is used, one behind the other.
 */
function framed(times = 1) {
  const inner = subgraphOf([loader(5, "berry"), loader(6, "royal"), prompt(7, "a teddy*")], [
    [FRAME_INPUT, 0, 5, "model"],
    [FRAME_INPUT, 1, 5, "clip"],
    [5, 0, 6, "model"],
    [5, 1, 6, "clip"],
    [6, 1, 7, "clip"],
    [6, 0, FRAME_OUTPUT, 0],
    [6, 1, FRAME_OUTPUT, 1],
    [7, 0, FRAME_OUTPUT, 2],
    [FRAME_INPUT, 2, 5, "bias"],
  ]);
  const inputs = [["model", "MODEL"], ["clip", "CLIP"], ["bias", "FLOAT"]];
  const holders = Array.from({ length: times }, (_, number) =>
    holder(20 + number, inner, inputs, ["MODEL", "CLIP", "CONDITIONING"], { bias: 0.3 + number }));
  const links = [];
  let before = 1;
  for (const { id } of holders) {
    links.push([before, 0, id, "model"], [before, 1, id, "clip"]);
    before = id;
  }
  links.push([before, 0, 3, "model"], [before, 1, 4, "clip"], [20, 2, 8, "negative"]);
  const nodes = [checkpoint(1), ...holders, tune(3, { concept: "pot*" }), prompt(4, "a pot"), sampler(8)];
  const root = rooted(graphOf(nodes, links), inner);
  return { root, inner, tuning: place(root.getNodeById(3)) };
}

test("the chain is followed into a subgraph, and out of it", () => {
  const { root, inner, tuning } = framed();
  assert.deepEqual(files(conceptsOf(tuning)), ["berry", "royal"]);
  assert.deepEqual(conceptsOf(tuning).map((one) => one.via), ["20:5", "20:6"]);
  const [inside] = placesOf(inner.getNodeById(6));
  assert.equal(promptId(inside), "20:6");
  assert.deepEqual(files(conceptsOf(inside)), ["berry", "royal"]);
  assert.equal(checkpointOf(inside).node.id, 1);
  assert.equal(placeAt(root, "20:6").node, inner.getNodeById(6));
  assert.equal(placeAt(root, "20:99"), null);
  assert.equal(placeAt(root, "1:5"), null);
});

test("a field on a subgraph's frame has the value that is set, or connected, there", () => {
  const { tuning } = framed();
  assert.equal(conceptsOf(tuning)[0].sliders.bias, 0.3);
});

test("prompts are found inside a subgraph and outside of it", () => {
  const { root, inner } = framed();
  const prompts = promptsFor(inner, new Set(["20:6"]));
  assert.deepEqual(prompts, promptsFor(root, new Set(["20:6"])));
  assert.deepEqual(prompts.map((one) => [one.node.id, one.negative]), [[7, true], [4, false]]);
  assert.deepEqual(prompts[0].sources.map(promptId), ["20:6", "20:5"]);
  root.getNodeById(20).mode = 2;
  assert.deepEqual(promptsFor(root, new Set(["20:6"])), []);
});

test("a bypassed subgraph hands on what enters it", () => {
  const { root, tuning } = framed();
  root.getNodeById(20).mode = 4;
  assert.deepEqual(conceptsOf(tuning), []);
  assert.equal(checkpointOf(tuning).node.id, 1);
});

test("a subgraph that is used twice is two places", () => {
  const { inner, tuning } = framed(2);
  const found = conceptsOf(tuning);
  assert.deepEqual(found.map((one) => one.via), ["20:5", "20:6", "21:5", "21:6"]);
  assert.deepEqual(found.map((one) => one.sliders.bias), [0.3, 0.6, 1.3, 0.6]);
  assert.deepEqual(placesOf(inner.getNodeById(5)).map(promptId), ["20:5", "21:5"]);
});

test("a subgraph that no node stands for is no place", () => {
  const { root, inner } = framed();
  root.nodes.splice(1, 1);
  assert.deepEqual(placesOf(inner.getNodeById(5)), []);
});

test("a concept that comes from no file is told, with its placeholder", () => {
  const nodes = [checkpoint(1), train(2, "teddy*"), loader(3, "royal"), combine(4), apply(5)];
  const graph = graphOf(nodes, [
    [2, 0, 4, "concept_1"],
    [3, 2, 4, "concept_2"],
    [1, 0, 5, "model"],
    [4, 0, 5, "stack"],
  ]);
  const found = conceptsOf(place(graph.getNodeById(5)));
  assert.deepEqual(found.map(({ node, file, placeholder }) => [node.id, file, placeholder]), [
    [2, "", "teddy*"],
    [3, "royal", ""],
  ]);
  assert.deepEqual(found.map(referenceTo), [
    { node: "5", placeholder: "teddy*" },
    { file: "royal", placeholder: "" },
  ]);
  assert.equal(referenceTo({ ...found[0], placeholder: "" }), null);
  assert.equal(referenceTo({ ...found[1], file: "", placeholder: "pot*" }), null);
});

/** checkpoint 1 -> loader 2 -> set 3, 4 ... get 5 -> tune 6, get 7 -> prompt 8 -> set 9 ... get 10 -> sampler 11. */
function hidden() {
  const nodes = [
    checkpoint(1),
    loader(2, "berry"),
    setter(3, "model", "MODEL"),
    setter(4, "clip", "CLIP"),
    getter(5, "model"),
    tune(6),
    getter(7, "clip"),
    prompt(8, "a teddy*"),
    setter(9, "bad", "CONDITIONING"),
    getter(10, "bad"),
    sampler(11),
  ];
  const graph = graphOf(nodes, [
    [1, 0, 2, "model"],
    [1, 1, 2, "clip"],
    [2, 0, 3, "MODEL"],
    [2, 1, 4, "CLIP"],
    [5, 0, 6, "model"],
    [7, 0, 8, "clip"],
    [8, 0, 9, "CONDITIONING"],
    [10, 0, 11, "negative"],
  ]);
  return { graph, at: (id) => place(graph.getNodeById(id)) };
}

test("what is set and got by a name is followed as the frontend does when it queues", () => {
  const { graph, at } = hidden();
  assert.deepEqual(files(conceptsOf(at(6))), ["berry"]);
  assert.equal(checkpointOf(at(6)).node.id, 1);
  const prompts = promptsFor(graph, new Set(["2"]));
  assert.deepEqual(prompts.map((one) => [one.node.id, one.negative]), [[8, true]]);
  assert.equal(whereLost(at(6), "model"), null);
  assert.equal(whereAnyLost(graph), null);
  // The frontend asks a virtual node that is muted, too.
  graph.getNodeById(5).mode = 2;
  assert.deepEqual(files(conceptsOf(at(6))), ["berry"]);
});

test("a name that nothing sets is told, and is asked for again when something changed", () => {
  const { graph, at } = hidden();
  const [model, set] = [graph.getNodeById(5), graph.getNodeById(3)];
  model.widgets[0].value = "other";
  assert.deepEqual(conceptsOf(at(6)), []);
  assert.equal(whereLost(at(6), "model"), model);
  // Once: such a node may tell the user each time that it is asked.
  assert.equal(model.asked, 1);
  set.widgets[0].value = "other";
  assert.deepEqual(files(conceptsOf(at(6))), ["berry"]);
  graph.getNodeById(7).getInputLink = () => {
    throw new Error("there is none");
  };
  assert.deepEqual(promptsFor(graph, new Set(["2"])), []);
  assert.equal(whereAnyLost(graph), graph.getNodeById(7));
});

test("what is set outside of a subgraph and got inside of it is found where it is set", () => {
  const far = getter(5, "model");
  far.getInputLink = () => null;
  const inner = subgraphOf([far, tune(6)], [[5, 0, 6, "model"]]);
  const nodes = [checkpoint(1), loader(2, "berry"), setter(3, "model", "MODEL"), holder(20, inner, [], [])];
  const root = rooted(graphOf(nodes, [[1, 0, 2, "model"], [2, 0, 3, "MODEL"]]), inner);
  far.resolveVirtualOutput = () => ({ node: root.getNodeById(2), slot: 0 });
  const [inside] = placesOf(inner.getNodeById(6));
  assert.deepEqual(conceptsOf(inside).map(({ file, via }) => [file, via]), [["berry", "2"]]);
  assert.equal(checkpointOf(inside).node.id, 1);
});

test("a primitive's own value is that of the slider that it feeds, through a reroute as well", () => {
  const nodes = [loader(1, "berry"), tune(2), primitive(3, 0.9), reroute(4, "FLOAT"), tune(5)];
  const graph = graphOf(nodes, [
    [1, 0, 2, "model"],
    [3, 0, 2, "bias"],
    [2, 0, 5, "model"],
    [3, 0, 4, ""],
    [4, 0, 5, "bias"],
  ]);
  for (const id of [2, 5]) {
    assert.equal(conceptsOf(place(graph.getNodeById(id)))[0].sliders.bias, 0.9);
  }
});

test("what another node makes of others is known in a run only", () => {
  const joined = { ...number(3, "a teddy*"), widgets: [{ name: "a", value: "a" }, { name: "b", value: "teddy*" }] };
  for (const [source, text] of [[number(3, "a teddy*"), "a teddy*"], [joined, ""], [{ ...through(3, "STRING"), widgets: [{ name: "shown", value: "old" }] }, ""]]) {
    const nodes = [loader(1, "berry"), prompt(2, "stale"), source, number(4, "x")];
    const links = [[1, 1, 2, "clip"], [3, 0, 2, "text"], ...(source.inputs.length ? [[4, 0, 3, "any"]] : [])];
    const [found] = promptsFor(graphOf(nodes, links), new Set(["1"]));
    assert.equal(found.text, text);
  }
});

test("a bypassed node hands on what fits, whatever its types are called", () => {
  for (const [from, kind] of [["MODEL", "*"], ["*", "MODEL"], ["*", "*"], ["CLIP,MODEL", "MODEL"]]) {
    const nodes = [loader(1, "berry"), { ...through(2, kind, from), mode: 4 }, tune(3)];
    const graph = graphOf(nodes, [[1, 0, 2, "any"], [2, 0, 3, "model"]]);
    assert.deepEqual(files(conceptsOf(place(graph.getNodeById(3)))), ["berry"], `${from} ${kind}`);
  }
  const nodes = [loader(1, "berry"), { ...through(2, "MODEL", "CLIP"), mode: 4 }, tune(3)];
  const graph = graphOf(nodes, [[1, 1, 2, "any"], [2, 0, 3, "model"]]);
  assert.deepEqual(conceptsOf(place(graph.getNodeById(3))), []);
});

test("reroutes on a connection are nothing to follow: it names its origin", () => {
  const graph = graphOf([loader(1, "berry"), tune(2)], [[1, 0, 2, "model"]]);
  graph.getLink(0).parentId = 7;
  assert.deepEqual(files(conceptsOf(place(graph.getNodeById(2)))), ["berry"]);
});

test("a prompt that is bypassed or muted is not encoded", () => {
  const graph = graphOf([loader(1, "berry"), prompt(2, "a teddy*")], [[1, 1, 2, "clip"]]);
  for (const [mode, found] of [[0, 1], [2, 0], [4, 0]]) {
    graph.getNodeById(2).mode = mode;
    assert.equal(promptsFor(graph, new Set(["1"])).length, found, `mode ${mode}`);
  }
});

test("a prompt that goes to its sampler by a reroute or past a bypassed node is told by where it ends", () => {
  const nodes = [loader(1, "berry"), prompt(2, "no teddy*"), reroute(3, "CONDITIONING"), { ...through(4, "CONDITIONING"), mode: 4 }, sampler(5)];
  const graph = graphOf(nodes, [[1, 1, 2, "clip"], [2, 0, 3, ""], [3, 0, 4, "any"], [4, 0, 5, "negative"]]);
  assert.deepEqual(promptsFor(graph, new Set(["1"])).map((one) => one.negative), [true]);
});

test("the chain is seen up to a group node, which is named", () => {
  const group = { ...lora(2), type: "workflow>my group" };
  const graph = graphOf([checkpoint(1), group, tune(3)], [[1, 0, 2, "model"], [2, 0, 3, "model"]]);
  assert.deepEqual(conceptsOf(place(graph.getNodeById(3))), []);
  assert.equal(whereLost(place(graph.getNodeById(3)), "model"), group);
  assert.ok(isGroup(group));
});

test("ids that are strings are followed as those that are numbers", () => {
  const { root, inner, tuning } = framed(2);
  withStringIds(root, inner);
  const found = conceptsOf(tuning);
  assert.deepEqual(found.map((one) => one.via), ["20:5", "20:6", "21:5", "21:6"]);
  assert.deepEqual(found.map((one) => one.sliders.bias), [0.3, 0.6, 1.3, 0.6]);
  assert.equal(checkpointOf(tuning).node.id, "1");
  assert.equal(placeAt(root, "21:6").node, inner.getNodeById("6"));
  assert.equal(placeAt(root, "21:6").path[0], root.getNodeById("21"));
  assert.deepEqual(new Set(promptsFor(root, new Set(["20:6"])).map((one) => one.node.id)), new Set(["4", "7"]));
});

test("a subgraph's frame is what the subgraph says that it is", () => {
  const { inner, tuning } = framed();
  inner.inputNode = { id: "in" };
  for (const link of inner.links.values()) if (link.origin_id === FRAME_INPUT) link.origin_id = "in";
  assert.deepEqual(files(conceptsOf(tuning)), ["berry", "royal"]);
  assert.equal(checkpointOf(tuning).node.id, 1);
});
