import assert from "node:assert/strict";
import { test } from "node:test";

import { checkpointOf, choosePrompt, conceptsOf, familySource, isNegative, promptId, promptsFor, sourceOf } from "../../js/lib/graph.js";
import { apply, checkpoint, combine, graphOf, loader, lora, number, prompt, reroute, sampler, tune } from "./graphs.js";

const files = (concepts) => concepts.map((concept) => concept.file);

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
  return { graph, at: (id) => graph.getNodeById(id) };
}

test("a loader has its own concept last, after those above it", () => {
  const { at } = chain();
  assert.deepEqual(files(conceptsOf(at(2))), ["berry"]);
  assert.deepEqual(files(conceptsOf(at(3))), ["berry", "royal"]);
  assert.equal(conceptsOf(at(3))[0].sliders.bias, 0.7);
  assert.equal(conceptsOf(at(3))[1].placeholder, "pot*");
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
  const last = graph.getNodeById(6);
  assert.deepEqual(files(conceptsOf(last)), ["berry", "royal"]);
  graph.getNodeById(5).mode = 4;
  assert.deepEqual(files(conceptsOf(last)), ["berry"]);
  graph.getNodeById(5).mode = 2;
  assert.deepEqual(files(conceptsOf(last)), []);
});

test("a graph that goes round in a circle ends", () => {
  const graph = graphOf([lora(1), lora(2)], [[1, 0, 2, "model"], [2, 0, 1, "model"]]);
  assert.deepEqual(conceptsOf(graph.getNodeById(1)), []);
  const round = graphOf([reroute(1, "MODEL"), reroute(2, "MODEL")], [[1, 0, 2, ""], [2, 0, 1, ""]]);
  assert.equal(sourceOf(round.getNodeById(1), ""), null);
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
  const found = conceptsOf(graph.getNodeById(5));
  assert.deepEqual(files(found), ["berry", "royal"]);
  const nodesOf = new Set(found.map((concept) => concept.via));
  assert.deepEqual([...nodesOf], [graph.getNodeById(5)]);
  assert.deepEqual(promptsFor(graph, nodesOf).map((one) => one.node.id), [6]);
});

test("a slider that is connected has the value of what it is connected to", () => {
  const nodes = [loader(1, "berry"), tune(2), number(3, 0.9)];
  const graph = graphOf(nodes, [[1, 0, 2, "model"], [3, 0, 2, "bias"]]);
  assert.equal(conceptsOf(graph.getNodeById(2))[0].sliders.bias, 0.9);
});

test("prompts belong to the concepts that their CLIP goes through", () => {
  const { graph, at } = chain();
  const all = promptsFor(graph, new Set([at(2)]));
  assert.deepEqual(all.map((one) => one.node.id), [6, 7]);
  assert.deepEqual(all[0].sources.map((one) => one.id), [3, 2]);
  assert.deepEqual(promptsFor(graph, new Set([at(1)])), []);
});

test("the prompt with most of the placeholders is chosen, whatever their case", () => {
  const prompts = ["", "a photo", "A TEDDY* here", "a teddy* and a pot*"].map((text) => ({ text }));
  assert.equal(choosePrompt(prompts, ["teddy*", "pot*"]).text, "a teddy* and a pot*");
  assert.equal(choosePrompt(prompts, ["none*", ""]).text, "a photo");
  assert.equal(choosePrompt(prompts.slice(0, 1), ["teddy*"]), null);
});

test("a prompt that only negative inputs take comes last", () => {
  const nodes = [loader(1, "berry"), prompt(2, "no teddy*"), prompt(3, "a photo"), sampler(4)];
  const graph = graphOf(nodes, [
    [1, 1, 2, "clip"],
    [1, 1, 3, "clip"],
    [2, 0, 4, "negative"],
    [3, 0, 4, "positive"],
  ]);
  const prompts = promptsFor(graph, new Set([graph.getNodeById(1)]));
  assert.deepEqual(prompts.map(isNegative), [true, false]);
  assert.equal(choosePrompt(prompts, []).node.id, 3);
  // A placeholder in it tells more.
  assert.equal(choosePrompt(prompts, ["teddy*"]).node.id, 2);
});

test("where a checkpoint's family can be had", () => {
  assert.deepEqual(familySource(checkpoint(1, "x.safetensors")), { folder: "checkpoints", name: "x.safetensors" });
  assert.deepEqual(familySource({ type: "PerfusionDemoModel" }), {
    family: "emoji",
    title: "the emoji world of the demo",
  });
  assert.equal(familySource(sampler(1)), null);
  assert.equal(familySource(null), null);
});

test("the checkpoint is found behind everything that only changes it", () => {
  const { at } = chain();
  assert.equal(checkpointOf(at(5)).id, 1);
  assert.equal(checkpointOf(loader(9, "berry")), null);
});

test("a node inside a subgraph has no single id", () => {
  const { at } = chain();
  assert.equal(promptId(at(2)), "2");
  assert.equal(promptId({ id: 2, graph: { isRootGraph: false } }), "");
});
