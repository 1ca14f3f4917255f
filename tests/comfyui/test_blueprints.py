"""The subgraph blueprints: listed by the server, and whole."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import pytest

from tools.blueprints import ALL, BLUEPRINTS, INPUTS, OUTPUTS, blueprint
from tools.client import ComfyClient


def _saved(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((BLUEPRINTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def test_the_server_lists_them_with_their_data(client: ComfyClient) -> None:
    listed = client._get("/global_subgraphs")
    ours = {
        one["name"]: key for key, one in listed.items() if "perfusion" in one["info"]["node_pack"]
    }
    assert set(ours) == set(ALL)
    for name, key in ours.items():
        found = client._get(f"/global_subgraphs/{quote(key)}")
        assert json.loads(found["data"]) == _saved(name)


@pytest.mark.parametrize("name", ALL)
def test_a_file_is_what_the_tool_makes_of_the_example(client: ComfyClient, name: str) -> None:
    """But for the sizes of nodes: they go by the inputs that a ComfyUI shows at first."""
    made = json.loads(json.dumps(blueprint(name, client.object_info())))
    found = _saved(name)
    for one in (made, found):
        for node in one["definitions"]["subgraphs"][0]["nodes"]:
            del node["size"], node["pos"]
            node["widgets_values"] = [v for v in node["widgets_values"] if v is not None]
        for end in ("inputNode", "outputNode"):
            del one["definitions"]["subgraphs"][0][end]["bounding"]
        for reroute in one["definitions"]["subgraphs"][0]["reroutes"]:
            del reroute["pos"]
    assert made == found


@pytest.mark.parametrize("name", ALL)
def test_its_links_and_slots_fit_together(client: ComfyClient, name: str) -> None:
    saved = _saved(name)
    (subgraph,) = saved["definitions"]["subgraphs"]
    (node,) = saved["nodes"]
    object_info = client.object_info()
    nodes = {one["id"]: one for one in subgraph["nodes"]}
    assert {one["type"] for one in nodes.values()} <= set(object_info)
    assert not [o for o in nodes.values() if object_info[o["type"]].get("deprecated")]
    for link in subgraph["links"]:
        if link["origin_id"] == int(INPUTS):
            assert link["id"] in subgraph["inputs"][link["origin_slot"]]["linkIds"]
        else:
            outputs = nodes[link["origin_id"]]["outputs"][link["origin_slot"]]
            assert link["id"] in outputs["links"]
            assert link["type"] == outputs["type"]
        if link["target_id"] == int(OUTPUTS):
            assert link["id"] in subgraph["outputs"][link["target_slot"]]["linkIds"]
        else:
            assert nodes[link["target_id"]]["inputs"][link["target_slot"]]["link"] == link["id"]
    assert [i["name"] for i in node["inputs"]] == [i["name"] for i in subgraph["inputs"]]
    assert [o["name"] for o in node["outputs"]] == [o["name"] for o in subgraph["outputs"]]
    assert set(ALL[name].fields) < {i["name"] for i in node["inputs"]}
    assert all(one["linkIds"] for one in subgraph["inputs"] + subgraph["outputs"])
