// Live while sampling, on Perfusion Tune: where its switch is on, a slider that moves goes to the
// sampler that is running. When the run is over, what it used is written into the node, so that the
// graph on the screen is that of the picture.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { after } from "./lib/callbacks.js";
import { TUNE, slidersOf } from "./lib/graph.js";
import { t } from "./lib/language.js";
import { Newest, Run } from "./lib/live_sliders.js";
import { isConnected, placeAt, placesOf, promptId, rootOf, widgetOf } from "./lib/node_paths.js";
import { server } from "./lib/shared.js";
import { setWidget } from "./lib/widgets.js";

const SLIDERS = ["bias", "temperature", "strength"];
const run = new Run();
const queue = { remaining: 0 };
let writing = false;
/** The run in which it was said that a node cannot be live. */
let warned = null;

/** Sends a node's sliders to the running sampler. */
async function send(node) {
  const places = placesOf(node);
  if (!run.promptId || !places.length) return;
  if (places.length > 1) {
    if (warned !== run.promptId) {
      warn(t`its subgraph is used ${places.length} times, so what one of them used could not be kept.`);
    }
    warned = run.promptId;
    return;
  }
  const [place] = places;
  try {
    await server.live({ prompt_id: run.promptId, node_id: promptId(place), ...slidersOf(place) });
  } catch (error) {
    warn(error.message);
  }
}

function warn(reason) {
  app.extensionManager?.toast?.add?.({
    severity: "warn",
    summary: t`Perfusion Tune`,
    detail: t`The sampler did not take the slider: ${reason}`,
    life: 5000,
  });
}

function onSlider(node, newest) {
  if (writing) return;
  const live = Boolean(widgetOf(node, "live")?.value);
  // What an earlier live run did belongs to the sliders as they were.
  if (!live && widgetOf(node, "moves")?.value) setWidget(node, "moves", "");
  if (live && run.promptId && !SLIDERS.some((name) => isConnected(node, name))) newest.offer(node);
}

/** Writes what a run used into its nodes, unless another run has been asked for already. */
function writeBack(promptIdOver) {
  const used = run.end(promptIdOver);
  // The run that has just ended is counted still.
  if (queue.remaining > 1) return;
  writing = true;
  try {
    for (const { node_id: id, moves, ...values } of used) {
      const node = placeAt(rootOf(app.graph), id)?.node;
      if (node?.comfyClass !== TUNE) continue;
      for (const name of SLIDERS) {
        if (widgetOf(node, name).value !== values[name]) setWidget(node, name, values[name]);
      }
      setWidget(node, "moves", moves);
    }
  } finally {
    writing = false;
  }
}

app.registerExtension({
  name: "perfusion.live",

  setup() {
    api.addEventListener("execution_start", ({ detail }) => run.start(detail.prompt_id));
    api.addEventListener("perfusion.live", ({ detail }) => run.note(detail));
    api.addEventListener("status", ({ detail }) => {
      queue.remaining = detail?.exec_info?.queue_remaining ?? 0;
    });
    for (const event of ["execution_success", "execution_error", "execution_interrupted"]) {
      api.addEventListener(event, ({ detail }) => writeBack(detail.prompt_id));
    }
  },

  nodeCreated(node) {
    if (node.comfyClass !== TUNE) return;
    const newest = new Newest(send);
    for (const name of SLIDERS) after(widgetOf(node, name), "callback", () => onSlider(node, newest));
  },
});
