"""Makes `subgraphs/`: parts of the example graphs that ComfyUI's page offers as one node.

ComfyUI lists `subgraphs/*.json` of every pack, and its page shows them among the nodes as subgraph
blueprints. Each is cut out of an example graph: a wire that led in becomes an input, one that led
out an output, and a few fields are shown on the node itself.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tools.layout import NODE_WIDTH, SUBGRAPH_INPUT, SUBGRAPH_OUTPUT, Wire, columns, lay_out
from tools.locate import ROOT
from tools.workflows import Graph, ObjectInfo, heights, load_api, reroutes, ui_node, wires

BLUEPRINTS = ROOT / "subgraphs"
INPUTS, OUTPUTS = "-10", "-20"  # ids that the page gives to a subgraph's two ends
SLOT_HEIGHT, END_WIDTH = 20, 128
_NAMES = uuid.UUID("6f1d4c1e-3f0b-4a7e-9a55-0d6f7a3c2b11")  # so that ids stay as they are


@dataclass(frozen=True)
class Blueprint:
    """A part of an example graph.

    Attributes:
        graph: the example graph's name.
        outside: node classes that stay outside.
        fields: what the node shows of the fields inside: its name there → (class, how manieth node
            of that class, input).
        changes: inputs that are other than in the example: class → input → value.
    """

    graph: str
    outside: tuple[str, ...]
    fields: Mapping[str, tuple[str, int, str]]
    changes: Mapping[str, Mapping[str, Any]]


ALL: dict[str, Blueprint] = {
    "Perfusion train and use": Blueprint(
        "sd15_train_and_use",
        (
            "CheckpointLoaderSimple",
            "LoadImage",
            "PerfusionTrainingPictures",
            "SaveImage",
            "PreviewImage",
        ),
        {
            "placeholder": ("PerfusionTrainConcept", 0, "placeholder"),
            "superclass": ("PerfusionTrainConcept", 0, "superclass"),
            "steps": ("PerfusionTrainConcept", 0, "steps"),
            "file": ("PerfusionSaveConcept", 0, "name"),
            "bias": ("PerfusionTune", 0, "bias"),
            "prompt": ("CLIPTextEncode", 0, "text"),
            "width": ("EmptyLatentImage", 0, "width"),
            "height": ("EmptyLatentImage", 0, "height"),
            "seed": ("KSampler", 0, "seed"),
        },
        # At the size that fits the model; and no file of an earlier run is replaced.
        {
            "PerfusionTrainConcept": {"resolution": 0},
            "PerfusionSaveConcept": {"name": "", "overwrite": False},
        },
    ),
    "Perfusion two characters": Blueprint(
        "compose_two",
        ("PerfusionDemoModel", "SaveImage"),
        {
            "concept 1": ("PerfusionConceptLoader", 0, "file"),
            "bias 1": ("PerfusionConceptLoader", 0, "bias"),
            "concept 2": ("PerfusionConceptLoader", 1, "file"),
            "bias 2": ("PerfusionConceptLoader", 1, "bias"),
            "prompt": ("CLIPTextEncode", 0, "text"),
            "width": ("EmptyLatentImage", 0, "width"),
            "height": ("EmptyLatentImage", 0, "height"),
            "seed": ("KSampler", 0, "seed"),
        },
        {
            "EmptyLatentImage": {"width": 512, "height": 512, "batch_size": 1},
            "KSampler": {"steps": 30, "cfg": 7.0, "scheduler": "normal"},
        },
    ),
}


def blueprint(name: str, object_info: ObjectInfo) -> dict[str, Any]:
    """A blueprint as the page reads it: a workflow of one node, whose subgraph it defines."""
    made, typed, slots_in, slots_out = _cut(ALL[name], object_info)
    ends: ObjectInfo = {
        **object_info,
        SUBGRAPH_INPUT: _end([], [kind for _, kind, _ in slots_in]),
        SUBGRAPH_OUTPUT: _end([kind for _, kind in slots_out], []),
    }
    drawn = wires(made, ends)
    numbers = {wire: n for n, wire in enumerate(drawn, start=1)}
    high = heights(made, ends)
    layout = lay_out(made, drawn, high)
    inside = [k for _, keys in columns(made, high) for k in keys if k not in (INPUTS, OUTPUTS)]
    nodes = []
    for n, key in enumerate(inside):
        node = ui_node(key, made, ends, numbers, typed.get(key))
        nodes.append({**node, "pos": list(layout.places[key]), "order": n})
    links = [
        [n, int(w.source), w.output, int(w.target), w.input, _kind(w, made, ends)]
        for w, n in numbers.items()
    ]
    led = reroutes({numbers[wire]: route for wire, route in layout.routes.items()}, links)
    parents = {one["id"]: one["parentId"] for one in led.get("linkExtensions", [])}
    inputs = [
        {
            "id": _id(name, "input", label),
            "name": label,
            "type": kind,
            "linkIds": [n for w, n in numbers.items() if (w.source, w.output) == (INPUTS, slot)],
        }
        for slot, (label, kind, _) in enumerate(slots_in)
    ]
    outputs = [
        {
            "id": _id(name, "output", label),
            "name": label,
            "type": kind,
            "linkIds": [n for w, n in numbers.items() if (w.target, w.input) == (OUTPUTS, slot)],
        }
        for slot, (label, kind) in enumerate(slots_out)
    ]
    (left, top), (right, _) = layout.places[INPUTS], layout.places[OUTPUTS]
    subgraph = {
        "id": _id(name),
        "version": 1,
        "state": {
            "lastGroupId": len(layout.groups),
            "lastNodeId": max(int(key) for key in inside),
            "lastLinkId": len(links),
            "lastRerouteId": len(led.get("reroutes", [])),
        },
        "revision": 0,
        "config": {},
        "name": name,
        "inputNode": {
            "id": int(INPUTS),
            "bounding": [
                left + NODE_WIDTH - END_WIDTH,
                top,
                END_WIDTH,
                SLOT_HEIGHT * (len(inputs) + 2),
            ],
        },
        "outputNode": {
            "id": int(OUTPUTS),
            "bounding": [right, top, END_WIDTH, SLOT_HEIGHT * (len(outputs) + 2)],
        },
        "inputs": inputs,
        "outputs": outputs,
        "widgets": [],
        "nodes": nodes,
        "groups": [],
        "links": [
            {
                "id": n,
                "origin_id": source,
                "origin_slot": output,
                "target_id": target,
                "target_slot": slot,
                "type": kind,
                **({"parentId": parents[n]} if n in parents else {}),
            }
            for n, source, output, target, slot, kind in links
        ],
        "reroutes": led.get("reroutes", []),
        "extra": {},
    }
    node = {
        "id": 1,
        "type": subgraph["id"],
        "pos": [0, 0],
        "size": [NODE_WIDTH, 60 + 24 * len(inputs)],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": [
            {"name": label, "type": kind, "link": None}
            | ({"widget": {"name": label}} if field else {})
            for label, kind, field in slots_in
        ],
        "outputs": [{"name": label, "type": kind, "links": []} for label, kind in slots_out],
        "title": name,
        "properties": {},
        "widgets_values": [],
    }
    return {
        "id": _id(name, "workflow"),
        "revision": 0,
        "last_node_id": 1,
        "last_link_id": 0,
        "nodes": [node],
        "links": [],
        "groups": [],
        "definitions": {"subgraphs": [subgraph]},
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def _cut(
    part: Blueprint, object_info: ObjectInfo
) -> tuple[Graph, dict[str, dict[str, Any]], list[tuple[str, str, bool]], list[tuple[str, str]]]:
    """The part with its two ends, what its linked fields say, its inputs and its outputs."""
    graph = load_api(part.graph)
    for node in graph.values():
        node["inputs"].update(part.changes.get(node["class_type"], {}))
    inside = {k: v for k, v in graph.items() if v["class_type"] not in part.outside}
    slots_in: list[tuple[str, str, bool]] = []
    slots_out: list[tuple[str, str]] = []
    led_in: dict[tuple[str, int], int] = {}
    leaving: dict[str, list[Any]] = {}
    for key, node in graph.items():
        for name, value in node["inputs"].items():
            if not isinstance(value, list):
                continue
            source = value[0], value[1]
            output = object_info[graph[value[0]]["class_type"]]
            kind = output["output"][value[1]]
            if key in inside and value[0] not in inside:
                if source not in led_in:
                    led_in[source] = len(slots_in)
                    slots_in.append((name, kind, False))
                node["inputs"][name] = [INPUTS, led_in[source]]
            elif (
                node not in inside.values() and value[0] in inside and value not in leaving.values()
            ):
                label = output["output_name"][value[1]].lower()
                leaving[label] = value
                slots_out.append((label, kind))
    typed: dict[str, dict[str, Any]] = {}
    for label, (kind, number, name) in part.fields.items():
        key = [k for k, node in inside.items() if node["class_type"] == kind][number]
        typed.setdefault(key, {})[name] = inside[key]["inputs"][name]
        inside[key]["inputs"][name] = [INPUTS, len(slots_in)]
        slots_in.append((label, _input_kind(object_info[kind], name), True))
    made = {
        INPUTS: {"class_type": SUBGRAPH_INPUT, "inputs": {}},
        **inside,
        OUTPUTS: {
            "class_type": SUBGRAPH_OUTPUT,
            "inputs": {f"{n}": value for n, value in enumerate(leaving.values())},
        },
    }
    return made, typed, slots_in, slots_out


def _input_kind(info: Mapping[str, Any], name: str) -> str:
    spec = {**info["input"].get("required", {}), **info["input"].get("optional", {})}[name]
    return "COMBO" if isinstance(spec[0], list) else str(spec[0])


def _kind(wire: Wire, graph: Graph, object_info: ObjectInfo) -> str:
    return str(object_info[graph[wire.source]["class_type"]]["output"][wire.output])


def _end(inputs: list[str], outputs: list[str]) -> dict[str, Any]:
    """One end of a subgraph, described as a node."""
    return {
        "input": {"required": {f"{n}": [kind, {}] for n, kind in enumerate(inputs)}},
        "output": outputs,
        "output_name": outputs,
        "output_node": False,
    }


def _id(*parts: str) -> str:
    return str(uuid.uuid5(_NAMES, "/".join(parts)))


def write_blueprints(object_info: ObjectInfo) -> None:
    """Rewrites subgraphs/ with the nodes as the running ComfyUI describes them."""
    BLUEPRINTS.mkdir(exist_ok=True)
    for name in ALL:
        made = json.dumps(blueprint(name, object_info), indent=1, ensure_ascii=False)
        (BLUEPRINTS / f"{name}.json").write_text(made + "\n", encoding="utf-8")
        print(f"wrote subgraphs/{name}.json")
