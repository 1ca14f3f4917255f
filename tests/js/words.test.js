import assert from "node:assert/strict";
import { readFileSync, readdirSync } from "node:fs";
import { test } from "node:test";

import { SENT, WORDS, inEnglish, inLanguage } from "../../js/lib/words.js";

const SOURCES = new URL("../../js/", import.meta.url);

/** The keys of all texts that the page's parts say: t`...` in their sources. */
function said() {
  const files = ["", "lib/"].flatMap((folder) =>
    readdirSync(new URL(folder, SOURCES)).filter((name) => name.endsWith(".js")).map((name) => folder + name));
  const keys = files.flatMap((file) => {
    const source = readFileSync(new URL(file, SOURCES), "utf8");
    // What is after a "//" is no code.
    const texts = source.replace(/^\s*\/\/.*$/gm, "").matchAll(/\bt`([^`]*)`/g);
    return [...texts].map(([, text]) => {
      let number = 0;
      return text.replace(/\$\{[^}]*\}/g, () => `{${number++}}`);
    });
  });
  return new Set(keys);
}

test("every text is there in each language, and no other", () => {
  const keys = said();
  assert.ok(keys.size > 30);
  for (const [language, words] of Object.entries(WORDS)) {
    assert.deepEqual([...Object.keys(words)].sort(), [...keys].sort(), language);
  }
});

test("what the server sends is there in each language", () => {
  const source = readFileSync(new URL("../../perfusion_core/families/emoji.py", import.meta.url), "utf8");
  assert.deepEqual(Object.keys(SENT), Object.keys(WORDS));
  for (const texts of Object.values(SENT)) {
    for (const text of Object.keys(texts)) assert.ok(source.includes(text), text);
  }
});

test("a translation puts in what the English puts in", () => {
  const places = (text) => [...text.matchAll(/\{\d\}/g)].map(([place]) => place).sort();
  for (const words of Object.values(WORDS)) {
    for (const [key, text] of Object.entries(words)) assert.deepEqual(places(text), places(key), key);
  }
});

test("values are put in where the language has them", () => {
  const t = (language) => (strings, ...values) => inLanguage(language, strings, values);
  assert.equal(t("en")`${2} of ${5} concepts`, "2 of 5 concepts");
  assert.equal(t("zh")`${2} of ${5} concepts`, "5 个概念中的 2 个");
  assert.equal(t("fr")`"${"$1 {0}"}" is in the prompt now.`, '"$1 {0}" is in the prompt now.');
  assert.equal(inEnglish`no such text ${1}`, "no such text 1");
});
