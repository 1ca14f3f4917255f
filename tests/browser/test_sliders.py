"""The sliders: they redraw the plot at once, and what they run is no more than what they change."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from serving import example_graph, on_both_designs, on_every_frontend

if TYPE_CHECKING:
    from comfy_page import ComfyPage
    from playwright.sync_api import Route

SLIDERS = {"bias": 0.2, "temperature": 0.5, "strength": 1.6}


@pytest.fixture
def tuned(comfy: ComfyPage) -> ComfyPage:
    """The page with the graph that tunes one concept, run once with one step."""
    comfy.load(example_graph("tune_bias"))
    comfy.set_value(comfy.node("KSampler"), "steps", 1)
    comfy.run()
    return comfy


@on_every_frontend
@pytest.mark.parametrize("kind", ["PerfusionConceptLoader", "PerfusionTune"])
def test_each_slider_redraws_the_plot_with_nothing_queued(tuned: ComfyPage, kind: str) -> None:
    node = tuned.node(kind)
    tuned.show(node)
    tuned.wait_plot(node)
    queued, asked = len(tuned.queued), len(tuned.asked)
    for name, to in SLIDERS.items():
        before = tuned.plot_picture(node)
        tuned.drag_slider(node, name, to)
        assert tuned.value(node, name) == pytest.approx(to, abs=0.1)
        tuned.wait_other_plot(node, before)
    assert len(tuned.queued) == queued
    # The curve is the browser's: the server was asked nothing.
    assert tuned.asked[asked:] == []


@on_both_designs
def test_a_closed_plot_asks_and_draws_nothing(tuned: ComfyPage) -> None:
    kinds = ("PerfusionConceptLoader", "PerfusionTune")
    loader, tune = (tuned.node(kind) for kind in kinds)
    for node in (loader, tune):
        tuned.show(node)
        tuned.wait_plot(node)
        tuned.plot(node).get_by_role("button", name="Gates").click()
        tuned.plot(node).and_(tuned.page.locator('[data-open="false"]')).wait_for()
    drawn = [tuned.plot(node).get_attribute("data-draws") for node in (loader, tune)]
    asked = len(tuned.asked)
    tuned.show(tune)
    tuned.drag_slider(tune, "bias", SLIDERS["bias"])
    tuned.set_value(tuned.nodes("CLIPTextEncode")[0], "text", "a photo of a teddy* in the snow")
    tuned.run()
    assert [tuned.plot(node).get_attribute("data-draws") for node in (loader, tune)] == drawn
    assert not [path for path in tuned.asked[asked:] if path.endswith("/similarities")]
    # Opened again it is at what the graph has become.
    tuned.show(tune)
    tuned.plot(tune).get_by_role("button", name="Gates").click()
    tuned.plot(tune).get_by_text("a photo of a teddy* in the snow").wait_for()


@on_both_designs
def test_four_concepts_and_a_prompt_of_77_tokens_or_more_are_drawn(comfy: ComfyPage) -> None:
    words = [f"thing{number}*" for number in range(4)]
    comfy.page.evaluate("(graph) => app.loadApiJson(graph, 'four')", _four_concepts(words))
    comfy.run()
    tune = comfy.node("PerfusionTune")
    comfy.show(tune)
    comfy.plot(tune).and_(comfy.page.locator('[data-concepts="4"][data-status="ok"]')).wait_for()
    comfy.wait_plot(tune)
    assert int(comfy.plot(tune).get_attribute("data-tokens") or 0) >= 77
    # The legend names all four, whole and inside the plot.
    plot, names = comfy.plot(tune), comfy.plot(tune).locator(".perfusion-swatch")
    assert names.all_inner_texts() == words
    assert names.evaluate_all(_CUT) == 0
    comfy.keep("legend")
    opened = plot.evaluate("(plot) => plot.offsetWidth")
    plot.get_by_role("button", name="Gates").click()
    plot.and_(comfy.page.locator('[data-open="false"]')).wait_for()
    comfy.keep("legend-closed")
    assert names.evaluate_all(_OUTSIDE) == 0
    # As wide as its node, as it was: also where the side panel shows what is selected.
    wide = plot.evaluate("(plot) => plot.offsetWidth")
    assert wide == pytest.approx(opened, abs=2)
    plot.get_by_role("button", name="Gates").click()
    comfy.wait_plot(tune)
    # For who asks how fast it is: of the machine, so nothing that a test could hold on to.
    figures = comfy.page.evaluate(_SPEED, tune)
    comfy.picture.parent.mkdir(parents=True, exist_ok=True)
    comfy.picture.with_suffix(".json").write_text(json.dumps(figures), encoding="utf-8")


_OUTSIDE = """(names) => names.filter((name) => {
  const own = name.getBoundingClientRect();
  const plot = name.closest("[data-perfusion]").getBoundingClientRect();
  return own.right > plot.right + 1 || own.bottom > plot.bottom + 1;
}).length"""
_CUT = f"""(names) => ({_OUTSIDE})(names)
  + names.filter((name) => name.scrollWidth > name.clientWidth + 1).length"""


def _four_concepts(words: list[str]) -> dict[str, Any]:
    """A graph in the API's format: four loaders in a row, and a prompt of 75 words."""
    graph: dict[str, Any] = {
        "1": {"class_type": "PerfusionDemoModel", "inputs": {"pictures_of": "berry"}}
    }
    above = "1"
    for number, word in enumerate(words):
        graph[str(10 + number)] = {
            "class_type": "PerfusionConceptLoader",
            "inputs": {
                "file": ("berry.safetensors", "royal.safetensors")[number % 2],
                "bias": 0.5 + 0.1 * number,
                "temperature": 0.15,
                "strength": 1.0,
                "key_lock": "local",
                "placeholder": word,
                "model": [above, 0],
                "clip": [above, 1],
            },
        }
        above = str(10 + number)
    text = " ".join([*words, *["cat"] * (75 - len(words))])
    return graph | {
        "20": {"class_type": "PerfusionTune", "inputs": {"model": [above, 0], "concept": words[0]}},
        "21": {"class_type": "CLIPTextEncode", "inputs": {"clip": [above, 1], "text": text}},
        "22": {
            "class_type": "EmptyLatentImage",
            "inputs": {"width": 128, "height": 128, "batch_size": 1},
        },
        "23": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["20", 0],
                "positive": ["21", 0],
                "negative": ["21", 0],
                "latent_image": ["22", 0],
                "seed": 1,
                "steps": 1,
                "cfg": 1.0,
                "sampler_name": "euler",
                "scheduler": "simple",
                "denoise": 1.0,
            },
        },
        "24": {"class_type": "VAEDecode", "inputs": {"samples": ["23", 0], "vae": ["1", 2]}},
        "25": {"class_type": "SaveImage", "inputs": {"images": ["24", 0], "filename_prefix": "x"}},
    }


# Milliseconds: the median of drawing the plot, and of asking the server what it knows.
_SPEED = """async (id) => {
  const plot = app.graph.getNodeById(id).perfusionPlot;
  const median = (times) => times.sort((a, b) => a - b)[times.length >> 1];
  const draws = [], asks = [];
  for (let i = 0; i < 50; i++) { plot.draw(); draws.push(plot.took); }
  const request = {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(plot.question(plot.concepts)),
  };
  for (let i = 0; i < 20; i++) {
    const begun = performance.now();
    await (await app.api.fetchApi("/perfusion/similarities", request)).json();
    asks.push(performance.now() - begun);
  }
  return { draw_ms: median(draws), ask_ms: median(asks) };
}"""


def test_before_the_first_run_the_plot_says_what_to_do(comfy: ComfyPage) -> None:
    comfy.load(example_graph("tune_bias"))
    # It may have run another graph with this text encoder: then the plot says whose words it shows.
    tune = comfy.node("PerfusionTune")
    comfy.show(tune)
    comfy.plot(tune).and_(comfy.page.locator("[data-status]")).wait_for()
    assert comfy.plot(tune).locator(".perfusion-readout").inner_text()


@on_every_frontend
def test_a_second_loader_is_chained_and_joins_the_plot(tuned: ComfyPage) -> None:
    first, tune = tuned.node("PerfusionConceptLoader"), tuned.node("PerfusionTune")
    second = tuned.page.evaluate(
        """(first) => {
          const old = app.graph.getNodeById(first);
          const node = LiteGraph.createNode("PerfusionConceptLoader");
          node.pos = [old.pos[0] + 100, old.pos[1] - 900];
          app.graph.add(node);
          node.widgets.find((w) => w.name === "file").value = "royal.safetensors";
          return node.id;
        }""",
        first,
    )
    encoders = tuned.nodes("CLIPTextEncode")
    tuned.show(first, second, tune, *encoders)
    tuned.connect(first, 0, second, 0)
    tuned.connect(first, 1, second, 1)
    tuned.connect(second, 0, tune, 0)
    for encoder in encoders:
        tuned.connect(second, 1, encoder, 0)
    tuned.run()
    tuned.show(tune)
    tuned.wait_plot(tune)
    names = tuned.plot(tune).locator(".perfusion-swatch")
    assert names.all_inner_texts() == ["teddy*", "teapot*"]
    # Told apart by more than colour.
    shapes = names.evaluate_all("(all) => all.map((one) => one.dataset.glyph)")
    assert len(set(shapes)) == 2
    tuned.keep("two concepts")
    # Each loader shows its own, beside the other, as it is sampled.
    beside = _similarities(tuned, tune)
    for number, loader in enumerate((first, second)):
        tuned.show(loader)
        tuned.wait_plot(loader)
        assert _similarities(tuned, loader) == [beside[number]]


def _similarities(comfy: ComfyPage, node: Any) -> list[list[float]]:
    """What a plot draws, one list of numbers a concept."""
    found: list[list[float]] = comfy.page.evaluate(
        "(id) => app.graph.getNodeById(id).perfusionPlot.series.map((one) => one.similarities)",
        node,
    )
    return found


@on_both_designs
def test_the_plots_see_into_subgraphs_and_out_of_them(tuned: ComfyPage) -> None:
    tune = tuned.node("PerfusionTune")
    inside = [tuned.node("PerfusionConceptLoader"), tuned.nodes("CLIPTextEncode")[0]]
    holder = tuned.into_subgraph(*inside)
    tuned.run()
    tuned.show(tune)
    tuned.plot(tune).and_(tuned.page.locator('[data-concepts="1"][data-status="ok"]')).wait_for()
    assert tuned.plot(tune).locator(".perfusion-swatch").all_inner_texts() == ["teddy*"]
    loader = tuned.enter(holder)["PerfusionConceptLoader"]
    tuned.show(loader)
    tuned.wait_plot(loader)
    before = tuned.plot_picture(loader)
    tuned.drag_slider(loader, "bias", SLIDERS["bias"])
    tuned.wait_other_plot(loader, before)
    # A node that stands for two has no one prompt.
    tuned.page.evaluate(
        """(id) => {
          app.graph.add(LiteGraph.createNode(app.graph.getNodeById(id).type));
          app.extensionManager.workflow.activeWorkflow.changeTracker.checkState();
        }""",
        holder,
    )
    tuned.wait_plot(loader, status="none")
    told = tuned.plot(loader).locator(".perfusion-readout").inner_text()
    assert told.startswith("This subgraph is used 2 times")


# Nodes as packs have them that hide connections: page's alone, what goes into the one comes out of
# the other. The frontend asks them for the way when it queues (`getInputLink`).
_HIDE_CONNECTIONS = """([from, to, fromSlot, toSlot, name]) => {
  const kind = class extends LiteGraph.LGraphNode {
    constructor(title) {
      super(title);
      this.isVirtualNode = true;
      this.serialize_widgets = true;
      this.addWidget("text", "name", "");
    }
  };
  class HiddenSet extends kind { constructor() { super("Set"); this.addInput("in", "*"); } }
  class HiddenGet extends kind {
    constructor() { super("Get"); this.addOutput("out", "*"); }
    getInputLink(slot) {
      const set = this.graph.nodes.find((one) => one.type === "test/HiddenSet"
        && one.widgets[0].value === this.widgets[0].value);
      return set && this.graph.getLink(set.inputs[slot].link);
    }
  }
  if (!LiteGraph.registered_node_types["test/HiddenSet"]) {
    LiteGraph.registerNodeType("test/HiddenSet", HiddenSet);
    LiteGraph.registerNodeType("test/HiddenGet", HiddenGet);
  }
  const [source, target] = [from, to].map((id) => app.graph.getNodeById(id));
  const [set, get] = ["test/HiddenSet", "test/HiddenGet"].map((type) => LiteGraph.createNode(type));
  for (const node of [set, get]) { app.graph.add(node); node.widgets[0].value = name; }
  source.connect(fromSlot, set, 0);
  get.connect(0, target, toSlot);
  app.extensionManager.workflow.activeWorkflow.changeTracker.checkState();
  return get.id;
}"""


@on_both_designs
def test_the_plots_follow_hidden_connections_as_a_run_does(tuned: ComfyPage) -> None:
    loader, tune = tuned.node("PerfusionConceptLoader"), tuned.node("PerfusionTune")
    get = tuned.page.evaluate(_HIDE_CONNECTIONS, [loader, tune, 0, 0, "model"])
    for encoder in tuned.nodes("CLIPTextEncode"):
        tuned.page.evaluate(_HIDE_CONNECTIONS, [loader, encoder, 1, 0, "clip"])
    tuned.show(tune)
    tuned.wait_plot(tune)
    assert tuned.plot(tune).locator(".perfusion-swatch").all_inner_texts() == ["teddy*"]
    tuned.run()
    sent = tuned.queued[-1]["prompt"]
    assert sent[str(tune)]["inputs"]["model"] == [str(loader), 0]
    assert all(
        sent[str(one)]["inputs"]["clip"] == [str(loader), 1]
        for one in tuned.nodes("CLIPTextEncode")
    )
    tuned.wait_plot(tune)
    # A name that nothing sets: the plot has nothing to show, and says where it ends.
    tuned.set_value(get, "name", "nobody")
    tuned.wait_plot(tune, status="none")
    told = tuned.plot(tune).locator(".perfusion-readout").inner_text()
    assert told.startswith('No concept reaches this node. "Get" leads nowhere')


@on_both_designs
def test_an_answer_that_comes_late_does_not_take_the_place_of_a_newer_one(tuned: ComfyPage) -> None:
    tune, encoder = tuned.node("PerfusionTune"), tuned.nodes("CLIPTextEncode")[0]
    tuned.show(tune)
    tuned.wait_plot(tune)
    held: list[Route] = []

    def hold_the_first(route: Route) -> None:
        if "slow" in (route.request.post_data or ""):
            held.append(route)
        else:
            route.continue_()

    tuned.page.route("**/perfusion/similarities", hold_the_first)
    with tuned.page.expect_request("**/perfusion/similarities"):
        tuned.set_value(encoder, "text", "a photo of a slow teddy*")
    tuned.set_value(encoder, "text", "a photo of a quick teddy*")
    tuned.plot(tune).get_by_text("a photo of a quick teddy*").wait_for()
    with tuned.page.expect_response("**/perfusion/similarities"):
        held[0].continue_()
    tuned.settle()
    tuned.wait_plot(tune)
    told = tuned.plot(tune).locator(".perfusion-readout").inner_text()
    assert told == "a photo of a quick teddy*"


@on_both_designs
def test_a_concept_straight_from_training_has_its_plot_after_a_run(comfy: ComfyPage) -> None:
    comfy.load(example_graph("quick_start"))
    train, tune = comfy.node("PerfusionTrainConcept"), comfy.node("PerfusionTune")
    for name, value in (("steps", 2), ("batch_size", 1), ("preview_every", 0)):
        comfy.set_value(train, name, value)
    comfy.set_value(train, "placeholder", "puppet*")  # which no other test trains
    for encoder in comfy.nodes("CLIPTextEncode"):
        comfy.set_value(encoder, "text", "a photo of a puppet*")
    comfy.set_value(comfy.node("PerfusionSaveConcept"), "name", "unseen")
    comfy.set_value(comfy.node("KSampler"), "steps", 1)
    comfy.show(tune)
    comfy.wait_plot(tune, status="no_concept")
    told = comfy.plot(tune).locator(".perfusion-readout").inner_text()
    assert told.startswith("Run the graph once: a concept is made in it")
    comfy.run()
    comfy.wait_plot(tune)
    assert comfy.plot(tune).locator(".perfusion-swatch").all_inner_texts() == ["puppet*"]
    before = comfy.plot_picture(tune)
    comfy.drag_slider(tune, "bias", SLIDERS["bias"])
    comfy.wait_other_plot(tune, before)


@on_both_designs
def test_with_run_on_change_the_picture_follows_and_the_sampler_alone_runs(
    tuned: ComfyPage,
) -> None:
    tune, save = tuned.node("PerfusionTune"), tuned.node("SaveImage")
    encoders = {str(node) for node in tuned.nodes("CLIPTextEncode")}
    tuned.show(tune)
    tuned.run_on_change()
    queued = len(tuned.queued)
    with tuned.one_run() as run:
        tuned.drag_slider(tune, "bias", 0.1, steps=30)
    # Thirty moves of the mouse, one run: of the value at which it was let go.
    sent = tuned.queued[queued:]
    assert len(sent) == 1
    assert sent[0]["prompt"][str(tune)]["inputs"]["bias"] == tuned.value(tune, "bias")
    assert encoders <= set(run["cached"])
    kinds = {tuned.kind(node) for node in run["ran"]}
    assert kinds == {"PerfusionTune", "KSampler", "VAEDecode", "SaveImage"}
    tuned.show(save)
    assert tuned.wait_picture(save) == (128, 128)
