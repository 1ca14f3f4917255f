"""What the page of a newer ComfyUI is told of the nodes: which inputs few people touch, and words.

ComfyUI 0.3.75 knows neither, and shows all inputs.
"""

from __future__ import annotations

from typing import Any

import pytest

from tools.server import RunningServer

# Node -> the inputs that its page shows at once, sockets and fields.
SHOWN = {
    "PerfusionTrainConcept": [
        "model",
        "clip",
        "vae",
        "images",
        "placeholder",
        "superclass",
        "steps",
        "batch_size",
        "seed",
        "masks",
        "captions",
    ],
    "PerfusionConceptLoader": ["model", "clip", "file", "bias", "temperature", "strength"],
    "PerfusionTune": ["model", "bias", "temperature", "strength", "live"],
}


@pytest.fixture(scope="module")
def nodes(server: RunningServer) -> dict[str, Any]:
    return {k: v for k, v in server.client.object_info().items() if k.startswith("Perfusion")}


def _inputs(node: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every input's options, in the order of the page."""
    parts = (node["input"].get(part, {}) for part in ("required", "optional"))
    return {name: spec[1] if len(spec) > 1 else {} for part in parts for name, spec in part.items()}


def _knows(mark: str) -> bool:
    from comfy_api.latest import io

    known = {
        "advanced": hasattr(io.Int.Input("any"), "advanced"),
        "search_aliases": hasattr(io.Schema("any"), "search_aliases"),
    }
    return known[mark]


@pytest.mark.parametrize("kind", SHOWN)
def test_inputs_that_few_people_touch_are_marked(nodes: dict[str, Any], kind: str) -> None:
    shown = {name for name, options in _inputs(nodes[kind]).items() if not options.get("advanced")}
    assert shown == set(SHOWN[kind] if _knows("advanced") else _inputs(nodes[kind]))


def test_an_input_that_a_node_cannot_run_without_is_shown(nodes: dict[str, Any]) -> None:
    for kind, node in nodes.items():
        for name, spec in node["input"].get("required", {}).items():
            options = spec[1] if len(spec) > 1 else {}
            if options.get("advanced"):
                assert "default" in options, f"{kind}.{name} is hidden and has no default"


def test_every_node_is_found_by_other_words_than_its_name(nodes: dict[str, Any]) -> None:
    for kind, node in nodes.items():
        words = node.get("search_aliases") or []
        assert bool(words) == _knows("search_aliases"), kind
        assert not [word for word in words if word in node["display_name"].lower()], kind


def test_every_node_is_in_the_library_under_one_category_with_a_description(
    nodes: dict[str, Any],
) -> None:
    for kind, node in nodes.items():
        assert node["category"] == "Perfusion", kind
        assert node["display_name"].startswith("Perfusion "), kind
        assert len(node["description"]) > 20, kind
        assert not node.get("deprecated"), kind
