"""Turns a graph from ComfyUI's API format into its UI format, and back.

`workflows/` holds the graphs that people open, in the UI's format; `demo/graphs/` holds the same
graphs in the API's format, which the demo and the tests queue, and beside each a text that becomes
a note on its canvas. One is made from the other, and a test checks that they still are the same.

    python -m tools.workflows              rewrites workflows/ and subgraphs/ from demo/graphs/
    python -m tools.workflows NAME ...     rewrites those graphs alone

It starts ComfyUI. The graphs here were laid out by 0.33.0, which makes room for only those inputs
that its page shows; 0.3.75 makes room for all, and so moves nodes in every graph.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from tools.layout import COLOURS, GROUP_PADDING, NODE_WIDTH, Wire, columns, lay_out
from tools.locate import ROOT

API_GRAPHS = ROOT / "demo" / "graphs"
UI_GRAPHS = ROOT / "workflows"
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
NOTE_WIDTH, NOTE_GAP = 900, 50
# What the pack's page puts onto nodes below their fields (js/lib/dom_widget.js).
PARTS = {"PerfusionConceptLoader": 290, "PerfusionTune": 205}
# How high a node gets when a run has given it its picture and its text, in the design that makes
# it higher: measured on the page, since nothing in its schema tells it.
AFTER_RUN = {
    "PerfusionGateInspector": 640,
    "PerfusionSweep": 590,
    "PerfusionConceptInfo": 610,
}

_ANIMA = "https://huggingface.co/circlestone-labs/Anima/resolve/main/split_files"
_WAN = "https://huggingface.co/Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files"

# What graphs load and nobody has at first. The page offers the download, from the addresses that
# ComfyUI's own templates have.
MODELS = {
    model["name"]: model
    for model in (
        {
            "name": "v1-5-pruned-emaonly-fp16.safetensors",
            "url": "https://huggingface.co/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/"
            "v1-5-pruned-emaonly-fp16.safetensors?download=true",
            "directory": "checkpoints",
        },
        {
            "name": "sd_xl_base_1.0.safetensors",
            "url": "https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0/resolve/main/"
            "sd_xl_base_1.0.safetensors?download=true",
            "directory": "checkpoints",
        },
        {
            "name": "anima-base-v1.0.safetensors",
            "url": f"{_ANIMA}/diffusion_models/anima-base-v1.0.safetensors",
            "directory": "diffusion_models",
        },
        {
            "name": "qwen_3_06b_base.safetensors",
            "url": f"{_ANIMA}/text_encoders/qwen_3_06b_base.safetensors",
            "directory": "text_encoders",
        },
        {
            "name": "qwen_image_vae.safetensors",
            "url": f"{_ANIMA}/vae/qwen_image_vae.safetensors",
            "directory": "vae",
        },
        {
            "name": "wan2.1_t2v_1.3B_fp16.safetensors",
            "url": f"{_WAN}/diffusion_models/wan2.1_t2v_1.3B_fp16.safetensors?download=true",
            "directory": "diffusion_models",
        },
        {
            "name": "umt5_xxl_fp8_e4m3fn_scaled.safetensors",
            "url": f"{_WAN}/text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors?download=true",
            "directory": "text_encoders",
        },
        {
            "name": "wan_2.1_vae.safetensors",
            "url": f"{_WAN}/vae/wan_2.1_vae.safetensors?download=true",
            "directory": "vae",
        },
    )
}

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


def _height(node: Mapping[str, Any], info: Mapping[str, Any], *, whole: bool) -> int:
    """How high the page makes a node: with all its inputs, or without those that few touch."""
    inputs = [i for i in _inputs(info) if whole or not i[2].get("advanced")]
    sockets = sum(not _is_widget(kind, options) for _, kind, options in inputs)
    fields = sum(1 + (_extra_widget(*each) is not None) for each in inputs if _is_widget(*each[1:]))
    long_texts = sum(bool(options.get("multiline")) for _, _, options in inputs)
    height = 46 + 20 * max(sockets, len(info["output"])) + 24 * fields + 70 * long_texts
    height += PARTS.get(node["class_type"], 0)
    shows_picture = info["output_node"] or "image_upload" in str(info["input"])
    height += 220 if shows_picture else 0
    return max(height, AFTER_RUN.get(node["class_type"], 0)) if whole else height


def _slots(info: Mapping[str, Any]) -> list[tuple[str, str, bool]]:
    """(name, type, whether a field) of a node's inputs as the page numbers them: sockets first.

    A field has a slot too, whether something is connected to it or not.
    """
    found = [(name, kind, _is_widget(kind, options)) for name, kind, options in _inputs(info)]
    return sorted(found, key=lambda slot: slot[2])


def wires(graph: Graph, object_info: ObjectInfo) -> list[Wire]:
    """Every wire of a graph, by the places that its ends have on their nodes."""
    found = []
    for key, node in graph.items():
        linked = {k for k, value in node["inputs"].items() if isinstance(value, list)}
        slots = [name for name, _, _ in _slots(object_info[node["class_type"]])]
        found += [
            Wire(str(node["inputs"][name][0]), node["inputs"][name][1], key, slot)
            for slot, name in enumerate(slots)
            if name in linked
        ]
    return found


def heights(graph: Graph, object_info: ObjectInfo) -> dict[str, float]:
    """How high each node can get: where the page shows all of its inputs."""
    return {
        key: _height(node, object_info[node["class_type"]], whole=True)
        for key, node in graph.items()
    }


def to_ui(graph: Graph, object_info: ObjectInfo, note: str = "") -> dict[str, Any]:
    """The graph as the UI saves one, laid out by tools/layout.py.

    Args:
        graph: node ids are numbers in strings; a node's `_meta` may hold a `title`.
        note: in Markdown; stands above the graph.
    """
    high = heights(graph, object_info)
    layout = lay_out(graph, wires(graph, object_info), high)
    numbers = {wire: n for n, wire in enumerate(wires(graph, object_info), start=1)}
    links = [
        [n, int(w.source), w.output, int(w.target), w.input, kind]
        for w, n in numbers.items()
        for kind in (object_info[graph[w.source]["class_type"]]["output"][w.output],)
    ]
    order = [key for _, keys in columns(graph, high) for key in keys]
    nodes = {key: ui_node(key, graph, object_info, numbers) for key in order}
    for n, (key, node) in enumerate(nodes.items()):
        node |= {"pos": list(layout.places[key]), "order": n}
    last = max(int(k) for k in graph)
    if note:
        last += 1
        top = min(box[1] for _, box in layout.groups)
        nodes[str(last)] = _note(last, note, len(nodes), top)
    return {
        "last_node_id": last,
        "last_link_id": len(links),
        "nodes": list(nodes.values()),
        "links": links,
        "groups": [
            {
                "id": n,
                "title": f"{n}. {title}",
                "bounding": list(box),
                "color": COLOURS[(n - 1) % len(COLOURS)],
                "font_size": 24,
                "flags": {},
            }
            for n, (title, box) in enumerate(layout.groups, start=1)
        ],
        "config": {},
        "extra": reroutes({numbers[wire]: route for wire, route in layout.routes.items()}, links),
        "version": 0.4,
    }


def ui_node(
    key: str,
    graph: Graph,
    object_info: ObjectInfo,
    numbers: Mapping[Wire, int],
    typed: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """One node as the UI saves it, at no place yet.

    Args:
        numbers: of the graph's links.
        typed: what stands in fields that are linked, by their inputs' names.
    """
    node, info = graph[key], object_info[graph[key]["class_type"]]
    incoming = {wire.input: n for wire, n in numbers.items() if wire.target == key}
    sockets: list[dict[str, Any]] = []
    for slot, (name, kind, field) in enumerate(_slots(info)):
        socket: dict[str, Any] = {"name": name, "type": kind, "link": incoming.get(slot)}
        sockets.append({**socket, "widget": {"name": name}} if field else socket)
    values: list[Any] = []
    for name, kind, options in _inputs(info):
        if not _is_widget(kind, options):
            continue
        value = node["inputs"].get(name, options.get("default"))
        choices = options.get("options")
        if value is None and choices:
            value = choices[0]
        values.append((typed or {}).get(name) if isinstance(value, list) else value)
        extra = _extra_widget(name, kind, options)
        if extra is not None:
            values.append(extra)
    outgoing: dict[int, list[int]] = {}
    for wire, n in numbers.items():
        if wire.source == key:
            outgoing.setdefault(wire.output, []).append(n)
    properties: dict[str, Any] = {"Node name for S&R": node["class_type"]}
    models = [MODELS[value] for value in node["inputs"].values() if _names_model(value)]
    if models:
        properties["models"] = models
    made = {
        "id": int(key),
        "type": node["class_type"],
        "pos": [0, 0],
        "size": [NODE_WIDTH, _height(node, info, whole=False)],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": sockets,
        "outputs": [
            {"name": name, "type": kind, "links": outgoing.get(n, [])}
            for n, (name, kind) in enumerate(zip(info["output_name"], info["output"], strict=True))
        ],
        "properties": properties,
        "widgets_values": values,
    }
    title = node.get("_meta", {}).get("title")
    return {**made, "title": title} if title else made


def _names_model(value: Any) -> bool:
    return isinstance(value, str) and value in MODELS


def reroutes(
    routes: Mapping[int, Sequence[tuple[float, float]]], links: Sequence[Sequence[Any]]
) -> dict[str, Any]:
    """The page's own reroutes, by links; links of one output share those that they have in common.

    Args:
        routes: a link's number → the points that it is led by, from its source on.
    """
    outputs = {link[0]: (link[1], link[2]) for link in links}
    made: dict[Any, dict[str, Any]] = {}
    ends = []
    for number, points in routes.items():
        before: dict[str, Any] | None = None
        for n in range(len(points)):
            key = (outputs[number], points[: n + 1])
            if key not in made:
                made[key] = {"id": len(made) + 1, "pos": list(points[n]), "linkIds": []}
                if before is not None:
                    made[key]["parentId"] = before["id"]
            before = made[key]
            before["linkIds"].append(number)
        if before is not None:
            ends.append({"id": number, "parentId": before["id"]})
    return {"reroutes": list(made.values()), "linkExtensions": ends} if made else {}


def _note(number: int, text: str, order: int, above: float) -> dict[str, Any]:
    """A note of the UI's own, wide enough to read and above everything else."""
    lines = sum(1 + len(line) * 7 // NOTE_WIDTH for line in text.splitlines() if line)
    height = 70 + 19 * lines
    return {
        "id": number,
        "type": "MarkdownNote",
        "pos": [-GROUP_PADDING, above - height - NOTE_GAP],
        "size": [NOTE_WIDTH, height],
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
    shown by what they make (`python -m lab.thumbnails`), the others by their page (`make pictures
    ARGS=graphs`). Neither makes the other's.
    """
    names = sorted(path.stem for path in API_GRAPHS.glob("*.json"))
    return [name for name in names if _loads_checkpoint(load_api(name)) == checkpoint]


def _loads_checkpoint(graph: Graph) -> bool:
    return any({"ckpt_name", "unet_name"} & node["inputs"].keys() for node in graph.values())


def load_note(name: str) -> str:
    """What its note says of one of the demo's graphs."""
    return (API_GRAPHS / f"{name}.md").read_text(encoding="utf-8")


def main(names: Sequence[str]) -> None:
    from tools.blueprints import write_blueprints
    from tools.ready import ready_comfyui
    from tools.server import running_server

    known = sorted(path.stem for path in API_GRAPHS.glob("*.json"))
    if unknown := set(names) - set(known):
        sys.exit(f"no graph {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    with running_server(ready_comfyui()) as server:
        object_info = server.client.object_info()
    for name in names or known:
        made = to_ui(load_api(name), object_info, load_note(name))
        text = json.dumps(made, indent=1, ensure_ascii=False)
        (UI_GRAPHS / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        print(f"wrote workflows/{name}.json")
    if not names:
        write_blueprints(object_info)


if __name__ == "__main__":
    main(sys.argv[1:])
