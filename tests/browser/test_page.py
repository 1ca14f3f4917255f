"""The pack in ComfyUI's page: found, opened from the templates, kept over a reload."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from serving import Frontend

from tools.client import ComfyClient
from tools.workflows import UI_GRAPHS

if TYPE_CHECKING:
    from comfy_page import ComfyPage

on_every_frontend = pytest.mark.parametrize(
    "frontend", list(Frontend), indirect=True, ids=lambda frontend: frontend.value
)
NAMES = sorted(path.stem for path in UI_GRAPHS.glob("*.json"))


@on_every_frontend
def test_a_node_is_found_in_the_search_and_added_with_the_keyboard(comfy: ComfyPage) -> None:
    comfy.load({"nodes": [], "links": [], "version": 0.4})
    comfy.page.mouse.dblclick(700, 500)
    field = comfy.page.locator(".comfy-vue-node-search-container input")
    field.fill("perfusion concept loader")
    comfy.page.locator(".comfy-vue-node-search-container").get_by_text("Perfusion Concept Loader").first.wait_for()
    comfy.page.keyboard.press("Enter")
    comfy.page.wait_for_function("() => app.graph.nodes.length === 1")
    assert comfy.node("PerfusionConceptLoader")


@on_every_frontend
def test_the_example_graphs_open_from_the_template_browser(comfy: ComfyPage) -> None:
    for name in NAMES:
        comfy.page.locator(".templates-tab-button").click()
        comfy.page.get_by_text("comfyui-perfusion", exact=True).first.click()
        comfy.page.get_by_test_id(f"template-workflow-{name}").click()
        comfy.page.wait_for_function(
            "() => app.graph.nodes.some((n) => n.type.startsWith('Perfusion'))"
        )
        assert not [n for n in comfy.graph()["nodes"] if n.get("has_errors")]


@on_every_frontend
def test_the_graph_is_there_again_after_a_reload(comfy: ComfyPage) -> None:
    import json

    comfy.load(json.loads((UI_GRAPHS / "tune_bias.json").read_text(encoding="utf-8")))
    tune = comfy.node("PerfusionTune")
    comfy.show(tune)
    comfy.drag_slider(tune, "bias", 1.2)
    value = comfy.value(tune, "bias")
    assert value == pytest.approx(1.2, abs=0.05)
    comfy.reload()
    comfy.page.wait_for_function("() => app.graph.nodes.some((n) => n.type === 'PerfusionTune')")
    assert comfy.value(comfy.node("PerfusionTune"), "bias") == value


@on_every_frontend
def test_the_quick_start_runs_and_shows_its_picture(comfy: ComfyPage) -> None:
    import json

    comfy.load(json.loads((UI_GRAPHS / "use_concept.json").read_text(encoding="utf-8")))
    comfy.set_value(comfy.node("KSampler"), "steps", 2)
    comfy.run()
    save = comfy.node("SaveImage")
    comfy.show(save)
    assert comfy.wait_picture(save) == (128, 128)
