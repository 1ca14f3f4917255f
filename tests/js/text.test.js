import assert from "node:assert/strict";
import { test } from "node:test";

import { entries, insertWord, readableSize, searched } from "../../js/lib/text.js";

test("a word goes in at the cursor, apart from its neighbours", () => {
  for (const [text, at, expected] of [
    ["", 0, "teddy*"],
    ["a photo of a", 12, "a photo of a teddy*"],
    ["a photo of a ", 13, "a photo of a teddy*"],
    ["a photo on a beach", 7, "a photo teddy* on a beach"],
    ["a , on a beach", 2, "a teddy*, on a beach"],
    ["(:1.2)", 1, "(teddy*:1.2)"],
    ["cat", 0, "teddy* cat"],
    ["cat", 99, "cat teddy*"],
    ["cat", -1, "teddy* cat"],
  ]) {
    assert.equal(insertWord(text, "teddy*", at).text, expected, text);
  }
});

test("the cursor is left behind the word", () => {
  const { text, cursor } = insertWord("a on a beach", "teddy*", 1);
  assert.equal(text.slice(0, cursor), "a teddy*");
});

test("sizes are read by people", () => {
  assert.deepEqual([12, 38_400, 2_500_000].map(readableSize), ["12 B", "38.4 kB", "2.5 MB"]);
});

test("a search finds cards with all its words, broken files by their name", () => {
  const cards = [
    { file: "a.safetensors", name: "Berry", placeholder: "teddy*", superclass: "teddy", family_title: "SD 1.x" },
    { file: "b.safetensors", name: "Royal", placeholder: "pot*", superclass: "teapot", family_title: "SDXL" },
    { file: "broken.safetensors", error: "damaged" },
  ];
  const names = (search) => searched(cards, search).map((card) => card.file[0]);
  assert.deepEqual(names(""), ["a", "b", "b"]);
  assert.deepEqual(names("TEDDY 1.x"), ["a"]);
  assert.deepEqual(names("teddy sdxl"), []);
  assert.deepEqual(names("broken"), ["b"]);
});

test("lines of entries are told from any other text", () => {
  assert.deepEqual(entries("name: Berry\nhash: a: b"), [["name", "Berry"], ["hash", "a: b"]]);
  for (const other of ["", "name: Berry", "2 steps\nloss: 1", "a\nb"]) assert.equal(entries(other), null);
});
