"""The pictures beside the example graphs and in help pages: what the graphs give in a real ComfyUI.

python -m lab.thumbnails [NAME ...]    runs the emoji world's graphs; writes workflows/<name>.jpg,
                                        and js/docs/<NodeId>.jpg of nodes whose result is a picture

ComfyUI's template browser shows workflows/<name>.jpg for workflows/<name>.json. Graphs that load a
checkpoint of the user's are left out: `make pictures ARGS=graphs` shows their page.
"""

from __future__ import annotations

import argparse
import io
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from demo.examples import FOLDER
from tools.client import ComfyClient, Result
from tools.locate import ROOT
from tools.ready import ready_comfyui
from tools.server import running_server
from tools.workflows import UI_GRAPHS, Graph, graph_names, load_api

# Graph -> the node whose pictures are shown.
SHOWN = {
    "quick_start": "SaveImage",
    "train_concept": "PreviewImage",
    "use_concept": "SaveImage",
    "compose_two": "SaveImage",
    "tune_bias": "SaveImage",
    "tune_and_sweep": "PerfusionSweep",
    "attention_map": "PerfusionAttentionMap",
}
# Graph -> help pages that show what a node gives in it: page, the node whose picture it is.
PAGES = {
    "train_concept": {"PerfusionTrainConcept": "PreviewImage"},
    "tune_and_sweep": {
        "PerfusionConceptInfo": "PerfusionConceptInfo",
        "PerfusionGateInspector": "PerfusionGateInspector",
        "PerfusionSweep": "PerfusionSweep",
    },
    "attention_map": {"PerfusionAttentionMap": "PerfusionAttentionMap"},
}
DOCS = ROOT / "js" / "docs"
# What the graphs load, by the file's name: made by the quick start, as its note says.
CONCEPTS = {"berry": "teddy", "royal": "teapot"}
PICTURES, SIDE, QUALITY = 4, 960, 90


def quick_start(concept: str, word: str) -> Graph:
    """The quick start for one of the world's concepts."""
    graph = load_api("quick_start")
    changes = {
        "PerfusionDemoModel": {"pictures_of": concept},
        "PerfusionTrainConcept": {"placeholder": f"{word}*", "superclass": word},
        "PerfusionSaveConcept": {"name": concept},
    }
    for node in graph.values():
        node["inputs"].update(changes.get(node["class_type"], {}))
    return graph


def sheet(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one size side by side, as nearly a square as they make; never above SIDE."""
    width, height = pictures[0].size
    count = len(pictures)

    def apart(across: int) -> float:
        return abs(math.log(across * width / (math.ceil(count / across) * height)))

    across = min(range(1, count + 1), key=apart)
    down = math.ceil(count / across)
    made = Image.new("RGB", (across * width, down * height), "white")
    for n, picture in enumerate(pictures):
        made.paste(picture.convert("RGB"), (n % across * width, n // across * height))
    made.thumbnail((SIDE, SIDE))
    return made


def given(client: ComfyClient, graph: Graph, result: Result, kind: str) -> list[Image.Image]:
    """The first pictures that the graph's first node of that class gave."""
    node = next(key for key, one in graph.items() if one["class_type"] == kind)
    images = result.images(node)[:PICTURES]
    return [Image.open(io.BytesIO(client.view(image))) for image in images]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m lab.thumbnails", description=__doc__)
    shown = graph_names(checkpoint=False)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(shown)}")
    names = parser.parse_args().names or shown
    if unknown := set(names) - set(shown):
        parser.error(
            f"not a graph of the emoji world: {', '.join(sorted(unknown))}; there are "
            f"{', '.join(shown)}"
        )
    with (
        tempfile.TemporaryDirectory() as base,
        running_server(ready_comfyui(), Path(base)) as server,
    ):
        for path in FOLDER.glob("*/*.png"):
            server.client.upload_image(path)
        for concept, word in CONCEPTS.items():
            server.client.run(quick_start(concept, word))
        for name in names:
            graph = load_api(name)
            result = server.client.run(graph)
            wanted = {UI_GRAPHS / f"{name}.jpg": SHOWN[name]}
            wanted |= {DOCS / f"{page}.jpg": kind for page, kind in PAGES.get(name, {}).items()}
            for path, kind in wanted.items():
                picture = sheet(given(server.client, graph, result, kind))
                picture.save(path, quality=QUALITY, optimize=True)
                print(f"wrote {path.relative_to(ROOT)}", flush=True)


if __name__ == "__main__":
    main()
