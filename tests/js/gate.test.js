import assert from "node:assert/strict";
import { test } from "node:test";

import { describe, layOut, nearest, prospects, step } from "../../js/lib/chart.js";
import { curve, finite, gate, weight } from "../../js/lib/gate.js";

const SLIDERS = { bias: 0.6, temperature: 0.15, strength: 1 };
const close = (a, b, by = 1e-9) => assert.ok(Math.abs(a - b) <= by, `${a} is not ${b}`);

test("the gate is half open at the bias, and the sigmoid elsewhere", () => {
  close(gate(0.6, SLIDERS), 0.5);
  close(gate(1, SLIDERS), 1 / (1 + Math.exp(-0.4 / 0.15)));
  close(gate(0.2, SLIDERS) + gate(1, SLIDERS), 1);
});

test("the gate holds at the ends of the sliders", () => {
  for (const bias of [-1, 2]) {
    for (const temperature of [0.01, 1]) {
      for (const similarity of [-5, 0, 1, 5]) {
        const open = gate(similarity, { bias, temperature, strength: 1 });
        assert.ok(open >= 0 && open <= 1 && !Number.isNaN(open));
      }
    }
  }
});

test("strength multiplies the gate", () => {
  close(weight(1, { ...SLIDERS, strength: 2 }), 2 * gate(1, SLIDERS));
  assert.equal(weight(1, { ...SLIDERS, strength: 0 }), 0);
});

test("a curve goes from end to end and rises", () => {
  const points = curve(SLIDERS, -0.25, 1.25, 50);
  assert.equal(points.length, 100);
  assert.equal(points[0], -0.25);
  assert.equal(points[98], 1.25);
  for (let i = 3; i < 100; i += 2) assert.ok(points[i] > points[i - 2]);
});

test("a slider's number, or the default where there is none", () => {
  assert.equal(finite("0.5", 1), 0.5);
  for (const none of [undefined, null, NaN, "", "wide", Infinity]) {
    if (none === null) continue;
    assert.equal(finite(none, 0.6), 0.6, String(none));
  }
});

const WORDS = ["<start>", "a", "teddy*", "on", "<end>"];
const TEDDY = { name: "teddy*", sliders: SLIDERS, similarities: [0, 0.1, 1, 0.05, 0.02] };

test("a point lies on its concept's curve, at its similarity", () => {
  const chart = layOut(300, 150, [TEDDY], WORDS);
  assert.equal(chart.points.length, 5);
  const word = chart.points[2];
  close(word.x, chart.columns[2].x, 1e-6);
  const [zero, , one] = chart.rows;
  close(word.y, zero.y + (one.y - zero.y) * gate(1, SLIDERS), 1e-6);
  for (const point of chart.points) {
    assert.ok(point.x >= chart.left && point.x <= chart.right);
    assert.ok(point.y >= chart.top && point.y <= chart.bottom);
  }
});

test("the chart makes room for a strength above 1 and for unusual similarities, within bounds", () => {
  const strong = layOut(300, 150, [{ ...TEDDY, sliders: { ...SLIDERS, strength: 2 } }], WORDS);
  assert.equal(strong.rows.at(-1).value, 2);
  const wide = layOut(300, 150, [{ ...TEDDY, similarities: [-90, 90, 1, 0, 0] }], WORDS);
  close(wide.points[0].x, wide.left, 1e-6);
  close(wide.points[1].x, wide.right, 1e-6);
});

test("a chart without numbers yet has its curve, and one without room does not fail", () => {
  const chart = layOut(300, 150, [{ ...TEDDY, similarities: [] }], []);
  assert.deepEqual([chart.points.length, chart.labels.length, chart.curves.length], [0, 0, 1]);
  assert.equal(layOut(0, 0, [TEDDY], WORDS).points.length, 5);
  assert.equal(layOut(300, 150, [], []).curves.length, 0);
});

test("the words that a concept answers to are written, and never across each other", () => {
  const chart = layOut(300, 150, [TEDDY], WORDS);
  assert.equal(chart.labels[0].text, "teddy*");
  const crowd = Array(77).fill(1);
  const full = layOut(300, 150, [{ ...TEDDY, similarities: crowd }], crowd.map((_, i) => `word${i}`));
  assert.equal(full.labels.length, 1);
});

test("the nearest point within reach is found", () => {
  const chart = layOut(300, 150, [TEDDY], WORDS);
  const { x, y } = chart.points[2];
  assert.equal(nearest(chart, x + 3, y + 3).token, 2);
  assert.equal(nearest(chart, x - 100, y + 60, 5), null);
});

test("the arrow keys walk through the tokens and stop at the ends", () => {
  assert.equal(step(null, 5, "ArrowRight"), 0);
  assert.equal(step(null, 5, "ArrowLeft"), 4);
  assert.equal(step(4, 5, "ArrowRight"), 4);
  assert.equal(step(0, 5, "ArrowLeft"), 0);
  assert.equal(step(2, 5, "Home"), 0);
  assert.equal(step(2, 5, "End"), 4);
  assert.equal(step(2, 5, "Escape"), null);
  assert.equal(step(null, 0, "ArrowRight"), null);
});

test("a token is described to each concept", () => {
  const other = { name: "pot*", sliders: SLIDERS, similarities: [] };
  assert.equal(describe([TEDDY, other], WORDS, 2), '"teddy*": teddy* similarity 1.00, gate 0.94');
});

test("it is told what each slider would do to a token", () => {
  const other = { name: "pot*", sliders: SLIDERS, similarities: TEDDY.similarities.map(() => 0) };
  const lines = prospects([other, TEDDY], 2);
  assert.deepEqual(lines, [
    "now 0.94 of teddy*",
    `bias 0.70 → ${gate(1, { ...SLIDERS, bias: 0.7 }).toFixed(2)}`,
    `temperature 0.25 → ${gate(1, { ...SLIDERS, temperature: 0.25 }).toFixed(2)}`,
    `strength 0.50 → ${(gate(1, SLIDERS) / 2).toFixed(2)}`,
  ]);
  assert.deepEqual(prospects([{ ...other, similarities: [] }], 2), []);
});

