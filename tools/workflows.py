"""Turns a graph from ComfyUI's API format into its UI format, and back.

`workflows/` holds the graphs that people open, in the UI's format; `demo/graphs/` holds the same
graphs in the API's format, which the demo and the tests queue, and beside each a text that becomes
a note on its canvas. One is made from the other, and a test checks that they still are the same.

    python -m tools.workflows        rewrites workflows/ from demo/graphs/ (starts the host)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tools.locate import ROOT

API_GRAPHS = ROOT / "demo" / "graphs"
UI_GRAPHS = ROOT / "workflows"
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
COLUMN, ROW_GAP = 380, 60
# What the pack's page puts onto nodes below their fields (js/lib/part.js).
PARTS = {"PerfusionConceptLoader": 290, "PerfusionTune": 205}

Graph = dict[str, dict[str, Any]]
ObjectInfo = Mapping[str, Any]


def _inputs(info: Mapping[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """(name, type, options) of a node's inputs, in the order in which the UI shows them."""
    found = []
    for part in ("required", "optional"):
        for name, spec in info["input"].get(part, {}).items():
            kind = "COMBO" if isinstance(spec[0], list) else spec[0]
            options = spec[1] if len(spec) > 1 and isinstance(spec[1], dict) else {}
            found.append((name, kind, options))
    return found


def _is_widget(kind: str, options: Mapping[str, Any]) -> bool:
    return kind in WIDGET_TYPES and not options.get("forceInput")


def _extra_widget(name: str, kind: str, options: Mapping[str, Any]) -> Any | None:
    """The UI adds a widget of its own after some inputs; its value, or None."""
    if kind == "INT" and options.get("control_after_generate", name in ("seed", "noise_seed")):
        return "fixed"
    if options.get("image_upload"):
        return "image"
    return None


def _depths(graph: Graph) -> dict[str, int]:
    """Each node's column: after its sources; one that has none stands before its first taker."""
    depths: dict[str, int] = {}
    sources = {
        key: [value[0] for value in node["inputs"].values() if isinstance(value, list)]
        for key, node in graph.items()
    }

    def depth(key: str) -> int:
        if key not in depths:
            depths[key] = 1 + max((depth(source) for source in sources[key]), default=-1)
        return depths[key]

    for key in graph:
        depth(key)
    for key in graph:
        takers = [depths[other] for other in graph if key in sources[other]]
        if takers and not sources[key]:
            depths[key] = min(takers) - 1
    return depths


def to_ui(graph: Graph, object_info: ObjectInfo, note: str = "") -> dict[str, Any]:
    """The graph as the UI saves one. Node ids must be numbers in strings; columns follow the links.

    Args:
        graph: a node's `_meta` may hold a `title`.
        note: in Markdown; stands above the graph.
    """
    links: list[list[Any]] = []
    nodes: dict[str, dict[str, Any]] = {}
    heights: dict[int, int] = {}
    depths = _depths(graph)
    for key in sorted(graph, key=lambda k: (depths[k], int(k))):
        node, info = graph[key], object_info[graph[key]["class_type"]]
        sockets: list[dict[str, Any]] = []
        values: list[Any] = []
        for name, kind, options in _inputs(info):
            value = node["inputs"].get(name, options.get("default"))
            if _is_widget(kind, options):
                choices = options.get("options")
                if value is None and choices:
                    value = choices[0]
                values.append(None if isinstance(value, list) else value)
                extra = _extra_widget(name, kind, options)
                if extra is not None:
                    values.append(extra)
                if not isinstance(value, list):
                    continue
            socket: dict[str, Any] = {"name": name, "type": kind, "link": None}
            if _is_widget(kind, options):
                socket["widget"] = {"name": name}
            if isinstance(value, list):
                links.append(
                    [len(links) + 1, int(value[0]), value[1], int(key), len(sockets), kind]
                )
                socket["link"] = len(links)
            sockets.append(socket)
        outputs = [
            {"name": name, "type": kind, "links": []}
            for name, kind in zip(info["output_name"], info["output"], strict=True)
        ]
        long_text = any(o.get("multiline") for _, _, o in _inputs(info))
        height = 60 + 24 * (max(len(sockets), len(outputs)) + len(values)) + 70 * long_text
        height += PARTS.get(node["class_type"], 0)
        height += 220 if info["output_node"] or "image_upload" in str(info["input"]) else 0
        top = heights.get(depths[key], 80)
        heights[depths[key]] = top + height + ROW_GAP
        nodes[key] = {
            "id": int(key),
            "type": node["class_type"],
            "pos": [60 + COLUMN * depths[key], top],
            "size": [310, height],
            "flags": {},
            "order": len(nodes),
            "mode": 0,
            "inputs": sockets,
            "outputs": outputs,
            "properties": {"Node name for S&R": node["class_type"]},
            "widgets_values": values,
        }
        title = node.get("_meta", {}).get("title")
        if title:
            nodes[key]["title"] = title
    for number, source, slot, *_ in links:
        nodes[str(source)]["outputs"][slot]["links"].append(number)
    last = max(int(k) for k in graph)
    if note:
        last += 1
        nodes[str(last)] = _note(last, note, len(nodes))
    return {
        "last_node_id": last,
        "last_link_id": len(links),
        "nodes": list(nodes.values()),
        "links": links,
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def _note(number: int, text: str, order: int) -> dict[str, Any]:
    """A note of the UI's own, wide enough to read and above everything else."""
    wide = 2 * COLUMN - 70
    lines = sum(1 + len(line) * 7 // wide for line in text.splitlines())
    height = 60 + 22 * lines
    return {
        "id": number,
        "type": "MarkdownNote",
        "pos": [60, 80 - height - ROW_GAP],
        "size": [wide, height],
        "flags": {},
        "order": order,
        "mode": 0,
        "inputs": [],
        "outputs": [],
        "title": "Read me",
        "properties": {},
        "widgets_values": [text],
        "color": "#432",
        "bgcolor": "#653",
    }


def to_api(workflow: Mapping[str, Any], object_info: ObjectInfo) -> Graph:
    """The graph that the UI would queue for a saved workflow.

    Notes and muted nodes are left out.
    """
    origins = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    graph: Graph = {}
    for node in workflow["nodes"]:
        if node["type"] not in object_info or node.get("mode") in (2, 4):
            continue
        linked = {s["name"]: origins[s["link"]] for s in node["inputs"] if s.get("link")}
        values = iter(node.get("widgets_values", []))
        inputs: dict[str, Any] = {}
        for name, kind, options in _inputs(object_info[node["type"]]):
            if _is_widget(kind, options):
                value = next(values, options.get("default"))
                if _extra_widget(name, kind, options) is not None:
                    next(values, None)
                inputs[name] = linked.get(name, value)
            elif name in linked:
                inputs[name] = linked[name]
        graph[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
        if node.get("title"):
            graph[str(node["id"])]["_meta"] = {"title": node["title"]}
    return graph


def load_api(name: str) -> Graph:
    """One of the demo's graphs by its file's name without `.json`."""
    graph: Graph = json.loads((API_GRAPHS / f"{name}.json").read_text(encoding="utf-8"))
    return graph


def graph_names(*, checkpoint: bool) -> list[str]:
    """The graphs that load a checkpoint of the user's, or those that need the built-in world alone.

    It decides where a graph's picture, workflows/<name>.jpg, comes from: those that run here are
    shown by what they make (`python -m demo.thumbnails`), the others by their page (`make pictures
    ARGS=graphs`). Neither makes the other's.
    """
    names = sorted(path.stem for path in API_GRAPHS.glob("*.json"))
    return [name for name in names if _loads_checkpoint(load_api(name)) == checkpoint]


def _loads_checkpoint(graph: Graph) -> bool:
    return any("ckpt_name" in node["inputs"] for node in graph.values())


def load_note(name: str) -> str:
    """What its note says of one of the demo's graphs."""
    return (API_GRAPHS / f"{name}.md").read_text(encoding="utf-8")


def main() -> None:
    from tools.host import ready_host
    from tools.server import running_host

    with running_host(ready_host()) as host:
        object_info = host.client.object_info()
    for path in sorted(API_GRAPHS.glob("*.json")):
        made = to_ui(load_api(path.stem), object_info, load_note(path.stem))
        text = json.dumps(made, indent=1, ensure_ascii=False)
        (UI_GRAPHS / path.name).write_text(text + "\n", encoding="utf-8")
        print(f"wrote workflows/{path.name}")


if __name__ == "__main__":
    main()
