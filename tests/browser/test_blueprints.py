"""The subgraph blueprints in the page: each opens, with its fields on the node and all inside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from serving import on_every_frontend

from tools.blueprints import ALL

if TYPE_CHECKING:
    from comfy_page import ComfyPage

# As the page gets them: from the server's list.
_DATA = """async (name) => {
  const listed = await (await app.api.fetchApi("/global_subgraphs")).json();
  const [id] = Object.entries(listed).find(([, one]) => one.name === name);
  return JSON.parse((await (await app.api.fetchApi(`/global_subgraphs/${id}`)).json()).data);
}"""

_SHOWN = """() => {
  const [node] = app.graph.nodes;
  return {
    fields: Object.fromEntries(node.widgets.map((one) => [one.name, one.value])),
    inside: node.subgraph.nodes.map((one) => one.type).sort(),
    unknown: node.subgraph.nodes.map((one) => one.type)
      .filter((type) => !(type in LiteGraph.registered_node_types)),
    loose: node.subgraph.inputs.filter((one) => !one.linkIds.length).map((one) => one.name),
  };
}"""


@on_every_frontend
@pytest.mark.parametrize("name", ALL)
def test_a_blueprint_opens_with_its_fields(comfy: ComfyPage, name: str) -> None:
    data: dict[str, Any] = comfy.page.evaluate(_DATA, name)
    comfy.load(data, name)
    shown = comfy.page.evaluate(_SHOWN)
    assert set(shown["fields"]) == set(ALL[name].fields)
    assert shown["fields"]["bias 1" if "bias 1" in shown["fields"] else "bias"] == 0.6
    assert "teddy*" in shown["fields"]["prompt"]
    (subgraph,) = data["definitions"]["subgraphs"]
    assert shown["inside"] == sorted(node["type"] for node in subgraph["nodes"])
    assert not shown["unknown"]
    assert not shown["loose"]
    comfy.keep()
