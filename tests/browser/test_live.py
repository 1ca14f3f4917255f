"""Live while sampling: a slider that moves reaches the sampler, and what it used is kept."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image
from serving import example_graph, on_both_designs

from tools.server import RunningHost

if TYPE_CHECKING:
    from comfy_page import ComfyPage

STEPS = 150  # long enough for a hand on a slider


@on_both_designs
def test_the_running_sampler_takes_the_slider_and_what_it_used_is_saved(
    comfy: ComfyPage, host: RunningHost
) -> None:
    comfy.load(example_graph("tune_bias"))
    sampler, tune = comfy.node("KSampler"), comfy.node("PerfusionTune")
    comfy.set_value(sampler, "steps", STEPS)
    comfy.set_value(comfy.node("EmptyLatentImage"), "batch_size", 1)
    comfy.set_value(tune, "live", True)
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
        "(id) => app.graph.getNodeById(id).widgets.find((w) => w.name === 'moves').value", arg=tune
    )
    used = {name: comfy.value(tune, name) for name in ("bias", "temperature", "strength", "moves")}
    assert used["bias"] == pytest.approx(0.2, abs=0.1)
    assert f": {began}, " in used["moves"]
    # And into the picture.
    saved = _saved_graph(host, run["id"])[str(tune)]["inputs"]
    assert {name: saved[name] for name in used} == used
    assert saved["live"] is False


def _saved_graph(host: RunningHost, prompt_id: str) -> dict[str, Any]:
    outputs = host.client.history(prompt_id)["outputs"]
    (image,) = (image for output in outputs.values() for image in output.get("images", []))
    picture = Image.open(io.BytesIO(host.client.view(image)))
    graph: dict[str, Any] = json.loads(picture.info["prompt"])
    return graph
