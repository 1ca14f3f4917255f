"""Lays a graph out for the page: groups from left to right, and no wire across another's node.

Nodes stand in columns, and columns in groups that say what is done there. A wire to the next column
runs through the gap between the two. One that goes further is led by the page's own reroutes above
all the nodes between, in a lane of its own.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

Graph = Mapping[str, Mapping[str, Any]]

NODE_WIDTH, COLUMN_GAP, ROW_GAP, TITLE = 320, 110, 70, 30
GROUP_PADDING, GROUP_TITLE, GROUP_GAP = 24, 40, 60
LANE, LANE_ABOVE = 22, 34  # between two lanes, and from the lowest to the nodes' titles
SLOT = 20
HIGHEST = 1400  # of a column; what does not fit goes on in the next one

SUBGRAPH_INPUT, SUBGRAPH_OUTPUT = "subgraph input", "subgraph output"
# Group → the node classes that begin it. Other nodes stand in the group of what they show.
GROUPS: dict[str, tuple[str, ...]] = {
    "In": (SUBGRAPH_INPUT,),
    "Model and pictures": (
        "CheckpointLoaderSimple",
        "PerfusionDemoModel",
        "UNETLoader",
        "CLIPLoader",
        "VAELoader",
        "LoadImage",
        "PerfusionTrainingPictures",
    ),
    "Learn": ("PerfusionTrainConcept", "PerfusionSaveConcept"),
    "Concept": ("PerfusionConceptLoader", "PerfusionApplyConcepts", "PerfusionCombineConcepts"),
    "Prompt and sliders": (
        "PerfusionTune",
        "CLIPTextEncode",
        "EmptyLatentImage",
        "EmptyHunyuanLatentVideo",
    ),
    "Picture": ("KSampler", "VAEDecode"),
    "See why": (
        "PerfusionSweep",
        "PerfusionAttentionMap",
        "PerfusionGateInspector",
        "PerfusionConceptInfo",
    ),
    "Out": (SUBGRAPH_OUTPUT,),
}
COLOURS = ("#3f789e", "#b58b2a", "#8A8", "#88A", "#A88", "#8AA")


class Wire(NamedTuple):
    """From an output to an input: node, slot, node, slot."""

    source: str
    output: int
    target: str
    input: int


class Box(NamedTuple):
    """A node with its title: left, top, right, bottom."""

    left: float
    top: float
    right: float
    bottom: float


Point = tuple[float, float]


@dataclass
class Layout:
    """Where everything is.

    Attributes:
        places: each node's (x, y), below its title.
        routes: the points that a wire is led by, for wires that pass nodes; from left to right.
        groups: (title, (x, y, width, height)).
    """

    places: dict[str, Point]
    routes: dict[Wire, tuple[Point, ...]]
    groups: list[tuple[str, tuple[float, float, float, float]]]


def group_of(graph: Graph, key: str) -> str:
    """A node's group: that of its class, else that of the first node it takes something of."""
    kind = graph[key]["class_type"]
    for group, kinds in GROUPS.items():
        if kind in kinds:
            return group
    sources = _sources(graph, key)
    if not sources:
        raise ValueError(f"node {key} ({kind}) has no group: add its class to GROUPS")
    return group_of(graph, sources[0])


def _sources(graph: Graph, key: str) -> list[str]:
    return [str(value[0]) for value in graph[key]["inputs"].values() if isinstance(value, list)]


def columns(graph: Graph, heights: Mapping[str, float]) -> list[tuple[str, list[str]]]:
    """(group, nodes) of every column from left to right, each wire leading to the right.

    Raises ValueError for a graph whose groups have no such order.
    """
    groups = {key: group_of(graph, key) for key in graph}
    depths: dict[str, int] = {}

    def depth(key: str) -> int:
        if key not in depths:
            inside = [k for k in _sources(graph, key) if groups[k] == groups[key]]
            depths[key] = 1 + max((depth(source) for source in inside), default=-1)
        return depths[key]

    found: dict[tuple[int, int], list[str]] = {}
    order = list(GROUPS)
    for key in graph:
        found.setdefault((order.index(groups[key]), depth(key)), []).append(key)
    placed = [(order[n], part) for n, d in sorted(found) for part in _parts(found[n, d], heights)]
    at = {key: number for number, (_, keys) in enumerate(placed) for key in keys}
    for key in graph:
        for source in _sources(graph, key):
            if at[source] >= at[key]:
                raise ValueError(f"the wire from node {source} to node {key} leads to the left")
    return placed


def _parts(keys: Sequence[str], heights: Mapping[str, float]) -> Iterator[list[str]]:
    """Nodes one below the other, in columns that are not too high."""
    part: list[str] = []
    for key in keys:
        if part and sum(heights[k] + TITLE + ROW_GAP for k in part) + heights[key] > HIGHEST:
            yield part
            part = []
        part.append(key)
    yield part


def lay_out(graph: Graph, wires: Sequence[Wire], heights: Mapping[str, float]) -> Layout:
    """Places for nodes of these heights (without their titles), and for the wires between them."""
    placed = columns(graph, heights)
    at = {key: number for number, (_, keys) in enumerate(placed) for key in keys}
    lefts, x = [], 0.0
    for number, (group, _) in enumerate(placed):
        if number:
            same = placed[number - 1][0] == group
            x += NODE_WIDTH + COLUMN_GAP + (0 if same else GROUP_GAP)
        lefts.append(x)
    places = {}
    for left, (_, keys) in zip(lefts, placed, strict=True):
        y = 0.0
        for key in keys:
            places[key] = (left, y)
            y += heights[key] + TITLE + ROW_GAP
    layout = Layout(places, {}, [])
    long = [wire for wire in wires if at[wire.target] - at[wire.source] > 1]
    outputs = sorted(
        dict.fromkeys((wire.source, wire.output) for wire in long), key=lambda o: (at[o[0]], o[1])
    )
    for wire in long:
        lane = len(outputs) - 1 - outputs.index((wire.source, wire.output))
        y = -TITLE - LANE_ABOVE - LANE * lane
        # Each lane's wires rise and fall at a place of their own in the gap.
        aside = COLUMN_GAP * (0.2 + 0.6 * lane / max(1, len(outputs)))
        (x, from_y), (to_x, to_y) = ends(layout, wire)
        layout.routes[wire] = (
            (x + aside, from_y),
            (x + aside, y),
            (to_x - aside, y),
            (to_x - aside, to_y),
        )
    # A steep wire to the next column swings over a node; two points keep it in the gap.
    for wire, _ in crossings(layout, wires, heights):
        (_, from_y), (to_x, to_y) = ends(layout, wire)
        middle = to_x - COLUMN_GAP / 2
        layout.routes.setdefault(wire, ((middle, from_y), (middle, to_y)))
    top = -TITLE - LANE_ABOVE - LANE * len(outputs) - GROUP_TITLE
    for name in dict.fromkeys(group for group, _ in placed):
        mine = [n for n, (group, _) in enumerate(placed) if group == name]
        left = lefts[mine[0]] - GROUP_PADDING
        right = lefts[mine[-1]] + NODE_WIDTH + GROUP_PADDING
        low = max(places[key][1] + heights[key] for n in mine for key in placed[n][1])
        layout.groups.append((name, (left, top, right - left, low + GROUP_PADDING - top)))
    return layout


def boxes(layout: Layout, heights: Mapping[str, float]) -> dict[str, Box]:
    """Each node with its title."""
    return {
        key: Box(x, y - TITLE, x + NODE_WIDTH, y + heights[key])
        for key, (x, y) in layout.places.items()
    }


def ends(layout: Layout, wire: Wire) -> tuple[Point, Point]:
    """Where a wire's slots are."""
    (x, y), (to_x, to_y) = layout.places[wire.source], layout.places[wire.target]
    begin = (x + NODE_WIDTH, y + SLOT * (wire.output + 0.7))
    return begin, (to_x, to_y + SLOT * (wire.input + 0.7))


def curve(layout: Layout, wire: Wire, dots: int = 40) -> Iterator[Point]:
    """Points of a wire as the page draws it.

    From stop to stop one cubic curve. It leaves and reaches a slot level; it passes a reroute in
    the direction halfway between those to its two neighbours. Each end pulls by a quarter of the
    way, a reroute by no more than 80.
    """
    begin, end = ends(layout, wire)
    stops = [begin, *layout.routes.get(wire, ()), end]
    ways = [math.atan2(b[1] - a[1], b[0] - a[0]) for a, b in itertools.pairwise(stops)]
    turns = [0.0, *(_between(a, b) for a, b in itertools.pairwise(ways)), 0.0]
    for n, (a, b) in enumerate(itertools.pairwise(stops)):
        pull = math.dist(a, b) / 4
        leave = pull if n == 0 else min(80.0, pull)
        arrive = pull if n == len(ways) - 1 else min(80.0, pull)
        points = (
            a,
            (a[0] + leave * math.cos(turns[n]), a[1] + leave * math.sin(turns[n])),
            (b[0] - arrive * math.cos(turns[n + 1]), b[1] - arrive * math.sin(turns[n + 1])),
            b,
        )
        for dot in range(dots + 1):
            t = dot / dots
            u = 1 - t
            weights = (u**3, 3 * u * u * t, 3 * u * t * t, t**3)
            yield (
                sum(w * p[0] for w, p in zip(weights, points, strict=True)),
                sum(w * p[1] for w, p in zip(weights, points, strict=True)),
            )


def _between(one: float, other: float) -> float:
    """The direction halfway between two."""
    return math.atan2(math.sin(one) + math.sin(other), math.cos(one) + math.cos(other))


def crossings(
    layout: Layout, wires: Sequence[Wire], heights: Mapping[str, float]
) -> list[tuple[Wire, str]]:
    """Wires that run across a node other than their own two, with that node."""
    found = []
    for wire in wires:
        for key, box in boxes(layout, heights).items():
            if key in (wire.source, wire.target):
                continue
            if any(
                box.left < x < box.right and box.top < y < box.bottom
                for x, y in curve(layout, wire)
            ):
                found.append((wire, key))
    return found
