"""How example graphs are laid out: groups from left to right, no wire across another's node."""

from __future__ import annotations

import itertools

import pytest

from tools.layout import NODE_WIDTH, Layout, Wire, boxes, crossings, ends, lay_out


def _node(kind: str, **inputs: object) -> dict[str, object]:
    return {"class_type": kind, "inputs": inputs}


GRAPH = {
    "1": _node("PerfusionDemoModel"),
    "2": _node("PerfusionConceptLoader", model=["1", 0]),
    "3": _node("CLIPTextEncode", clip=["2", 1]),
    "4": _node("KSampler", positive=["3", 0]),
    "5": _node("VAEDecode", samples=["4", 0], vae=["1", 2]),
    "6": _node("SaveImage", images=["5", 0]),
}
WIRES = [
    Wire("1", 0, "2", 0),
    Wire("2", 1, "3", 0),
    Wire("3", 0, "4", 1),
    Wire("4", 0, "5", 0),
    Wire("1", 2, "5", 1),
    Wire("5", 0, "6", 0),
]
HEIGHTS = dict.fromkeys(GRAPH, 300.0)


def test_every_wire_leads_to_the_right() -> None:
    layout = lay_out(GRAPH, WIRES, HEIGHTS)
    for wire in WIRES:
        begin, end = ends(layout, wire)
        assert begin[0] < end[0]


def test_a_wire_that_passes_nodes_is_led_around_them() -> None:
    layout = lay_out(GRAPH, WIRES, HEIGHTS)
    assert set(layout.routes) == {WIRES[4]}
    assert not crossings(layout, WIRES, HEIGHTS)
    straight = Layout(layout.places, {}, layout.groups)
    assert {node for _, node in crossings(straight, WIRES, HEIGHTS)} >= {"2", "4"}


def test_a_steep_wire_to_the_next_column_stays_off_the_nodes_above(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tools.layout.HIGHEST", 5000)
    graph = {str(n): _node("LoadImage") for n in range(1, 4)}
    graph["9"] = _node(
        "PerfusionTrainingPictures", **{f"picture_{n}": [str(n), 0] for n in range(1, 4)}
    )
    wires = [Wire(str(n), 0, "9", n) for n in range(1, 4)]
    heights = dict.fromkeys(graph, 700.0)
    layout = lay_out(graph, wires, heights)
    assert not crossings(layout, wires, heights)
    assert crossings(Layout(layout.places, {}, layout.groups), wires, heights)


def test_groups_hold_their_nodes_and_lie_apart() -> None:
    layout = lay_out(GRAPH, WIRES, HEIGHTS)
    assert [title for title, _ in layout.groups] == [
        "Model and pictures",
        "Concept",
        "Prompt and sliders",
        "Picture",
    ]
    edges = [(x, x + width) for _, (x, _, width, _) in layout.groups]
    assert all(right < left for (_, right), (left, _) in itertools.pairwise(edges))
    for box in boxes(layout, HEIGHTS).values():
        assert any(left < box.left and box.right < right for left, right in edges)


def test_many_nodes_of_one_column_go_on_in_the_next() -> None:
    graph = {str(n): _node("LoadImage") for n in range(6)}
    layout = lay_out(graph, [], dict.fromkeys(graph, 300.0))
    assert {x for x, _ in layout.places.values()} == {0.0, NODE_WIDTH + 110}


def test_a_graph_that_leads_back_to_the_left_is_refused() -> None:
    graph = {
        "1": _node("KSampler"),
        "2": _node("PerfusionTrainConcept", images=["1", 0]),
    }
    with pytest.raises(ValueError, match="wire from node 1 to node 2 leads to the left"):
        lay_out(graph, [], dict.fromkeys(graph, 300.0))
