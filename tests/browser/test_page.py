"""The pack in ComfyUI's page: found, opened from the templates, run, kept over a reload."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Any

import pytest
from serving import example_graph, on_both_designs, on_every_frontend

from tools.workflows import UI_GRAPHS

if TYPE_CHECKING:
    from comfy_page import ComfyPage

_NODE_IDS = "() => app.graph.nodes.map((node) => node.id)"
NAMES = sorted(path.stem for path in UI_GRAPHS.glob("*.json"))


@on_every_frontend
def test_a_node_is_found_in_the_search_and_added_with_the_keyboard(comfy: ComfyPage) -> None:
    comfy.clear()
    comfy.search()
    comfy.page.keyboard.type("perfusion concept l")
    comfy.page.get_by_role("option", name="Perfusion Concept Loader").first.wait_for()
    comfy.page.keyboard.press("Enter")
    comfy.page.wait_for_function("() => app.graph.nodes.length === 1")
    loader = comfy.node("PerfusionConceptLoader")
    # The recommended settings of the file that is chosen by default are filled in.
    card = comfy.page.locator('[data-perfusion="card"]')
    card.and_(comfy.page.locator('[data-file="berry.safetensors"]')).wait_for()
    assert comfy.value(loader, "file") == "berry.safetensors"


@on_every_frontend
def test_the_example_graphs_open_from_the_template_browser(comfy: ComfyPage) -> None:
    for name in NAMES:
        comfy.page.get_by_role("button", name="Templates").first.click()
        dialog = comfy.page.get_by_role("dialog")
        dialog.get_by_role("button", name="comfyui-perfusion").click()
        title = dialog.get_by_role("heading", name=name, exact=True)
        title.scroll_into_view_if_needed()  # pictures below the edge are not loaded
        # Without its picture it would be a 404, and so a problem of the page.
        picture = dialog.get_by_role("img", name=name, exact=True).first
        width = picture.evaluate("async (img) => { await img.decode(); return img.naturalWidth; }")
        assert width > 100
        title.click()
        dialog.wait_for(state="detached")
        wanted = sorted(node["type"] for node in example_graph(name)["nodes"])
        comfy.page.wait_for_function(
            "(wanted) => JSON.stringify(app.graph.nodes.map((n) => n.type).sort()) === wanted",
            arg=_json(wanted),
        )
        # A node that the page does not know would be drawn in red.
        unknown = comfy.page.evaluate(
            "() => app.graph.nodes.map((n) => n.type)"
            ".filter((type) => !(type in LiteGraph.registered_node_types))"
        )
        assert not unknown, f"the page does not know {unknown} of {name}"


def _json(value: Any) -> str:
    import json

    return json.dumps(value, separators=(",", ":"))


@on_every_frontend
def test_the_quick_start_runs_and_shows_its_picture(comfy: ComfyPage) -> None:
    comfy.load(example_graph("use_concept"))
    comfy.set_value(comfy.node("KSampler"), "steps", 2)
    comfy.run()
    save = comfy.node("SaveImage")
    comfy.show(save)
    assert comfy.wait_picture(save) == (128, 128)


@on_both_designs
def test_no_node_covers_another_once_a_run_has_given_them_their_pictures(comfy: ComfyPage) -> None:
    comfy.load(example_graph("tune_and_sweep"))
    for kind in ("KSampler", "PerfusionSweep"):
        comfy.set_value(comfy.node(kind), "steps", 1)
    comfy.set_value(comfy.node("PerfusionSweep"), "biases", "0.4, 0.6")
    comfy.set_value(comfy.node("PerfusionSweep"), "temperatures", "0.15")
    comfy.run()
    for kind in ("PerfusionGateInspector", "PerfusionSweep", "PerfusionConceptInfo"):
        comfy.show(comfy.node(kind))
        comfy.wait_picture(comfy.node(kind))
    comfy.show()
    comfy.settle()
    boxes = {str(node): comfy.box(node) for node in comfy.page.evaluate(_NODE_IDS)}
    for (one, a), (other, b) in combinations(boxes.items(), 2):
        across = min(a["x"] + a["width"], b["x"] + b["width"]) - max(a["x"], b["x"])
        down = min(a["y"] + a["height"], b["y"] + b["height"]) - max(a["y"], b["y"])
        assert across <= 0 or down <= 0, f"nodes {one} and {other} cover each other"


@on_every_frontend
def test_the_graph_is_there_again_after_a_reload(comfy: ComfyPage) -> None:
    comfy.load(example_graph("tune_bias"))
    tune = comfy.node("PerfusionTune")
    comfy.show(tune)
    comfy.drag_slider(tune, "bias", 1.2)
    value = comfy.value(tune, "bias")
    assert value == pytest.approx(1.2, abs=0.1)
    before = comfy.graph()
    # Newer frontends keep what a user has open half a second after the last change.
    comfy.page.wait_for_function(
        """(value) => [localStorage, sessionStorage].some((kept) =>
            Object.values({ ...kept }).some((text) => text.includes(JSON.stringify(value))))""",
        arg=value,
    )
    comfy.reload()
    comfy.page.wait_for_function("() => app.graph.nodes.some((n) => n.type === 'PerfusionTune')")
    after = comfy.graph()
    assert _kept(after) == _kept(before)
    assert comfy.value(comfy.node("PerfusionTune"), "bias") == value


def _kept(graph: dict[str, Any]) -> Any:
    """What a user has set: nodes with their values and titles, connections."""
    nodes = {
        node["id"]: (node["type"], node.get("title"), node.get("widgets_values"))
        for node in graph["nodes"]
    }
    return nodes, sorted(map(str, graph["links"]))


@on_both_designs
def test_the_plots_and_the_dialog_follow_the_theme(comfy: ComfyPage) -> None:
    comfy.load(example_graph("tune_bias"))
    comfy.set_value(comfy.node("KSampler"), "steps", 1)
    comfy.run()
    loader, tune = comfy.node("PerfusionConceptLoader"), comfy.node("PerfusionTune")
    comfy.show(loader, tune)
    comfy.wait_plot(tune)
    contrasts = []
    for theme in ("dark", "light"):
        before = comfy.plot_picture(tune)
        comfy.keep(theme)
        contrasts.append(comfy.plot(tune).evaluate(_CONTRAST))
        comfy.page.get_by_role("button", name="Choose…").click()
        dialog = comfy.page.locator('dialog[data-perfusion="chooser"]')
        dialog.get_by_role("option").nth(1).wait_for()
        comfy.keep(f"{theme}-dialog")
        contrasts.append(dialog.evaluate(_CONTRAST))
        comfy.page.keyboard.press("Escape")
        dialog.wait_for(state="detached")
        comfy.page.evaluate("() => app.extensionManager.command.execute('Comfy.ToggleTheme')")
        comfy.wait_other_plot(tune, before)
    # Of text on its ground, as the Web Content Accessibility Guidelines ask.
    assert all(contrast >= 4.5 for contrast in contrasts), contrasts


_CONTRAST = """(element) => {
  const light = (colour) => {
    const parts = colour.match(/[\\d.]+/g).slice(0, 3).map((n) => n / 255);
    const [r, g, b] = parts.map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const style = getComputedStyle(element);
  const [low, high] = [light(style.color), light(style.backgroundColor)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
}"""
