"""Live while sampling: a slider that moves reaches the sampler, and what it used is kept."""

from __future__ import annotations

import io
import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image
from serving import example_graph, on_both_designs, on_every_frontend

from tools.server import RunningServer

if TYPE_CHECKING:
    from comfy_page import ComfyPage, NodeId

STEPS = 150  # long enough for a hand on a slider


@on_every_frontend
def test_the_running_sampler_takes_the_slider_and_what_it_used_is_saved(
    comfy: ComfyPage, server: RunningServer
) -> None:
    comfy.load(example_graph("tune_bias"))
    tune = comfy.node("PerfusionTune")
    _slow_and_live(comfy, tune)
    run, used = _run_with_a_hand_on_the_slider(comfy, tune)
    # And into the picture, as the graph that ran and as it is drawn.
    ran, drawn = _saved_graphs(server, run["id"])
    saved = ran[str(tune)]["inputs"]
    assert {name: saved[name] for name in used} == used
    assert saved["live"] is False
    assert _values(drawn["nodes"], tune)[:3] == [
        used["bias"],
        used["temperature"],
        used["strength"],
    ]
    assert _values(drawn["nodes"], tune)[-2:] == [False, used["moves"]]
    if comfy.nodes2:
        thumb = comfy.slider(tune, "bias")
        assert float(thumb.get_attribute("aria-valuenow") or "nan") == used["bias"]


@on_both_designs
def test_it_does_so_inside_a_subgraph(comfy: ComfyPage, server: RunningServer) -> None:
    comfy.load(example_graph("tune_bias"))
    _slow_and_live(comfy, comfy.node("PerfusionTune"))
    holder = comfy.into_subgraph(comfy.node("PerfusionTune"))
    tune = comfy.enter(holder)["PerfusionTune"]
    run, used = _run_with_a_hand_on_the_slider(comfy, tune)
    ran, drawn = _saved_graphs(server, run["id"])
    saved = ran[f"{holder}:{tune}"]["inputs"]
    assert {name: saved[name] for name in used} == used
    (inside,) = drawn["definitions"]["subgraphs"]
    assert _values(inside["nodes"], tune)[-2:] == [False, used["moves"]]


@on_both_designs
def test_a_slider_in_a_subgraph_that_is_used_twice_is_refused_with_the_reason(
    comfy: ComfyPage,
) -> None:
    comfy.load(example_graph("tune_bias"))
    _slow_and_live(comfy, comfy.node("PerfusionTune"))
    holder = comfy.into_subgraph(comfy.node("PerfusionTune"))
    comfy.page.evaluate(
        "(id) => { app.graph.add(LiteGraph.createNode(app.graph.getNodeById(id).type)); }", holder
    )
    tune = comfy.enter(holder)["PerfusionTune"]
    began = comfy.value(tune, "bias")
    comfy.show(tune)
    # The newest frontend has a second one, after its title, for screen readers.
    reason = re.compile(r"^The sampler did not take the slider: its subgraph is used 2 times")
    toast = comfy.page.get_by_text(reason)
    with comfy.one_run():
        comfy.press_run()
        comfy.page.wait_for_function("() => window.testRuns.at(-1)?.progress.length >= 2")
        for bias in (0.2, 0.9):
            comfy.drag_slider(tune, "bias", bias)
        toast.wait_for()
        # Once a run, however often a slider moves.
        assert toast.count() == 1
        assert comfy.runs()[-1]["end"] is None, "the run was over before the slider was let go"
    assert "POST /api/perfusion/live" not in comfy.asked
    # Nothing was taken, so nothing is written back: what the hand has set stays.
    assert comfy.value(tune, "moves") == ""
    assert comfy.value(tune, "live") is True
    assert comfy.value(tune, "bias") == pytest.approx(0.9, abs=0.1)
    assert comfy.queued[-1]["prompt"][f"{holder}:{tune}"]["inputs"]["bias"] == began


def _slow_and_live(comfy: ComfyPage, tune: NodeId) -> None:
    comfy.set_value(comfy.node("KSampler"), "steps", STEPS)
    comfy.set_value(comfy.node("EmptyLatentImage"), "batch_size", 1)
    comfy.set_value(tune, "live", True)


def _run_with_a_hand_on_the_slider(
    comfy: ComfyPage, tune: NodeId
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The run, and what is in the node's fields after it."""
    began = comfy.value(tune, "bias")
    comfy.show(tune)
    with comfy.one_run() as run:
        comfy.press_run()
        comfy.page.wait_for_function("() => window.testRuns.at(-1)?.progress.length >= 2")
        comfy.drag_slider(tune, "bias", 0.2)
        assert comfy.runs()[-1]["end"] is None, "the run was over before the slider was let go"
    assert "POST /api/perfusion/live" in comfy.asked
    # Written back into the graph: the last value, and what there was before it.
    comfy.page.wait_for_function(
        "(id) => app.canvas.graph.getNodeById(id).widgets.find((w) => w.name === 'moves').value",
        arg=tune,
    )
    used = {name: comfy.value(tune, name) for name in ("bias", "temperature", "strength", "moves")}
    assert used["bias"] == pytest.approx(0.2, abs=0.1)
    assert f": {began}, " in used["moves"]
    return run, used


def _saved_graphs(server: RunningServer, prompt_id: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the run's picture carries: the graph as it ran, and as it is drawn."""
    outputs = server.client.history(prompt_id)["outputs"]
    (image,) = (image for output in outputs.values() for image in output.get("images", []))
    info = Image.open(io.BytesIO(server.client.view(image))).info
    return json.loads(info["prompt"]), json.loads(info["workflow"])


def _values(nodes: list[dict[str, Any]], node: NodeId) -> list[Any]:
    """What the fields of a drawn node hold; the pack's last fields on Tune are live and moves."""
    (values,) = (one["widgets_values"] for one in nodes if str(one["id"]) == str(node))
    found: list[Any] = values
    return found
