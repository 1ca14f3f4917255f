import assert from "node:assert/strict";
import { test } from "node:test";

import { Server } from "../../js/lib/server.js";

/** ComfyUI's api with answers of our own; what was asked is in `asked`. */
function apiOf(answers) {
  const asked = [];
  return {
    asked,
    apiURL: (path) => `/api${path}`,
    fetchApi: async (path, options) => {
      asked.push({ path, options });
      const [status, body] = answers(path, options);
      return { ok: status < 400, status, json: async () => JSON.parse(body) };
    },
  };
}

const question = { node: "2", text: "a teddy*", concepts: [{ file: "berry", placeholder: "" }] };

test("an answer is asked for once, until something ran", async () => {
  const api = apiOf(() => [200, '{"status": "ok", "own": true, "words": []}']);
  const server = new Server(api);
  await server.similarities(question);
  await server.similarities({ ...question });
  assert.equal(api.asked.length, 1);
  assert.equal(api.asked[0].options.method, "POST");
  assert.equal(api.asked[0].options.headers["Content-Type"], "application/json");
  server.ran();
  await server.similarities(question);
  assert.equal(api.asked.length, 2);
});

test("what may change at any time is asked for again: a busy server, another node's CLIP", async () => {
  for (const body of ['{"status": "busy", "reason": "x"}', '{"status": "ok", "own": false}']) {
    const api = apiOf(() => [200, body]);
    const server = new Server(api);
    await server.similarities(question);
    await server.similarities(question);
    assert.equal(api.asked.length, 2);
  }
});

test("a refusal is an error with the server's reason, or says that the routes are not there", async () => {
  const refused = new Server(apiOf(() => [404, '{"error": "There is no concept file"}']));
  await assert.rejects(refused.card("none"), /There is no concept file/);
  const strange = new Server(apiOf(() => [502, "<html>"]));
  await assert.rejects(strange.card("none"), /502.*Perfusion/);
});

test("a card is asked for once, wrong or right; after a run or a refresh, again", async () => {
  let status = 500;
  const api = apiOf(() => [status, '{"file": "berry", "hash": "0123456789abcdef9"}']);
  const server = new Server(api);
  await assert.rejects(server.card("berry"));
  status = 200;
  await assert.rejects(server.card("berry"));
  assert.equal(api.asked.length, 1);
  server.ran();
  await Promise.all([server.card("berry"), server.card("berry")]);
  assert.equal(api.asked.length, 2);
  assert.equal(server.cardNow("berry").file, "berry");
  server.forget();
  await server.card("berry");
  assert.equal(api.asked.length, 3);
});

test("names go into addresses encoded", async () => {
  const api = apiOf(() => [200, '{"file": "a&b/c", "hash": "0123456789abcdefghij"}']);
  const server = new Server(api);
  const card = await server.card("a&b/c");
  assert.equal(api.asked[0].path, "/perfusion/concept?file=a%26b%2Fc");
  assert.equal(server.preview(card), "/api/perfusion/preview?file=a%26b%2Fc&v=0123456789abcdef");
});
