import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { mentions, sameWord, withoutComments } from "../../js/lib/placeholder.js";

const cases = JSON.parse(readFileSync(new URL("../placeholder_cases.json", import.meta.url), "utf8"));

test("a placeholder is found where the text encoder finds it", () => {
  for (const { text, word, mentions: count } of cases) {
    assert.equal(mentions(text, word), count > 0, `${JSON.stringify(word)} in ${JSON.stringify(text)}`);
  }
});

test("words are one whatever their case and however they are composed", () => {
  assert.ok(sameWord("Café*", "cafe\u0301*"));
  assert.ok(!sameWord("cafe*", "café*"));
});

test("comments are taken out as ComfyUI's page does", () => {
  for (const [text, expected] of [
    ["a //teddy* on\na beach", "a \na beach"],
    ["a /* teddy*\n */cat", "a cat"],
    ["teddy*/teddy*", "teddy*/teddy*"],
    ["https://x teddy*", "https:"],
  ]) {
    assert.equal(withoutComments(text), expected);
  }
});
