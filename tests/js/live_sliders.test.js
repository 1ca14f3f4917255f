import assert from "node:assert/strict";
import { test } from "node:test";

import { Newest, Run } from "../../js/lib/live_sliders.js";

test("while one value is under way, only the newest of the next ones is sent", async () => {
  const sent = [];
  const ends = [];
  const newest = new Newest((value) => {
    sent.push(value);
    return new Promise((resolve) => ends.push(resolve));
  });
  const first = newest.offer(1);
  newest.offer(2);
  newest.offer(3);
  assert.deepEqual(sent, [1]);
  ends[0]();
  await new Promise(setImmediate);
  assert.deepEqual(sent, [1, 3]);
  ends[1]();
  await first;
  newest.offer(4);
  assert.deepEqual(sent, [1, 3, 4]);
});

test("a value that cannot be sent does not stop the next", async () => {
  const sent = [];
  const newest = new Newest(async (value) => {
    sent.push(value);
    if (value === 1) throw new Error("no");
  });
  await assert.rejects(newest.offer(1));
  await newest.offer(2);
  assert.deepEqual(sent, [1, 2]);
});

const used = (prompt, node, bias) => ({ prompt_id: prompt, node_id: node, bias, moves: "" });

test("a run gives what its live nodes used last, once", () => {
  const run = new Run();
  run.start("p");
  run.note(used("p", "3", 0.5));
  run.note(used("p", "3", 0.4));
  run.note(used("p", "4", 0.1));
  run.note(used("older", "3", 9));
  assert.deepEqual(run.end("older"), []);
  assert.deepEqual(run.end("p").map((one) => one.bias), [0.4, 0.1]);
  assert.deepEqual(run.end("p"), []);
  assert.equal(run.promptId, null);
});

test("a new run knows nothing of the last", () => {
  const run = new Run();
  run.start("p");
  run.note(used("p", "3", 0.5));
  run.start("q");
  assert.deepEqual(run.end("q"), []);
});
