"""Makes the pictures of the page: help pages, template browser, README. `make pictures` calls it.

    nodes [ID ...]      js/docs/<NodeId>.png: each node as it looks on the canvas, after a run where
                        an example graph has it, or beside its neighbours (scenes.py)
    graphs [NAME ...]   workflows/<name>.jpg of the example graphs that load a checkpoint of the
                        user's: pictures of themselves (of the others: python -m lab.thumbnails)
    sliders             docs/sliders.png: the bias moved on Perfusion Tune, with what it does
                        to the plot and the picture
    graph FILE PICTURE  a picture of any workflow's JSON

`--frontend newest`, `--nodes2` and `--theme light` show the same on PyPI's newest frontend, with
nodes as elements of the page ("Nodes 2.0"), and in the light theme: to be looked at, in the folder
that `--out` names, where they are not to take the place of the repository's own.

The concepts that the graphs name are trained as workflows/train_concept.json says, which takes
some minutes; `--concepts FOLDER` takes files that are there instead. All of it is the real page of
a real ComfyUI, in a folder of its own.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from tests.browser.comfy_page import ComfyPage, NodeId, save_settings
from tests.browser.driving import browser_context
from tests.browser.scenes import SCENES, Scene
from tests.browser.serving import example_concepts, example_graph, give_pictures
from tools.browser import HOW_TO_GET_ONE, find_browser, frontend_folder
from tools.locate import ROOT, home
from tools.ready import ready_comfyui
from tools.server import RunningServer, running_server
from tools.steps import Steps
from tools.workflows import UI_GRAPHS, graph_names, to_api

HELP = ROOT / "js" / "docs"
PATIENCE = 1_800_000  # milliseconds: a graph that trains, on two cores
MARGIN = 14  # pixels around what is cut out
THUMBNAIL = 512
SETTINGS = {
    "LiteGraph.Canvas.MinFontSizeForLOD": 0,  # however small: words are written, not hinted at
    "Comfy.NodeBadge.NodeSourceBadgeMode": "None",
}
BIASES = (0.2, 0.6, 0.9, 1.2)
_GAVE_PICTURES = "(id) => Boolean(app.nodeOutputs[id]?.images?.length)"


@dataclass(frozen=True)
class Look:
    """How the page looks in the pictures."""

    newest: bool = False
    """PyPI's newest frontend, not the one that ComfyUI pins."""
    nodes2: bool = False
    theme: str = "dark"
    scale: float = 1.5
    """Pixels of a picture per pixel of the page."""


@dataclass
class PicturePage:
    """A page, its server, and what the server knows of nodes."""

    comfy: ComfyPage
    server: RunningServer
    object_info: Mapping[str, Any]
    steps: int | None = None
    """Training steps, where not those of the example graph."""
    out: Path | None = None
    """Where pictures go instead of beside what they show."""

    def write(self, picture: Image.Image, target: Path, **options: Any) -> None:
        _write(picture, self.out / target.name if self.out else target, **options)

    def load(self, graph: dict[str, Any], name: str) -> bool:
        """Load a graph and run it if it can run here; return whether it did."""
        self.comfy.load(graph, name)
        if not self.can_run(graph):
            return False
        for train in self.comfy.nodes("PerfusionTrainConcept") if self.steps else []:
            self.comfy.set_value(train, "steps", self.steps)
        self.comfy.run()
        self.comfy.settle()
        return True

    def can_run(self, graph: dict[str, Any]) -> bool:
        """False if a list in the graph names what is not there, such as a checkpoint."""
        for node in to_api(graph, self.object_info).values():
            given = self.object_info[node["class_type"]]["input"]
            for name, spec in {**given.get("required", {}), **given.get("optional", {})}.items():
                options = spec[0] if isinstance(spec[0], list) else _options(spec)
                value = node["inputs"].get(name)
                if options is not None and not isinstance(value, list) and value not in options:
                    print(f"  not run: there is no {name} {value!r}", file=sys.stderr)
                    return False
        return True

    def apart(self, *nodes: NodeId) -> None:
        """Move nodes, one below the other, to where nothing is, nor was moved before."""
        self.arrange([nodes])

    def arrange(self, columns: Sequence[Sequence[NodeId]]) -> None:
        """Move nodes to where nothing is, side by side in columns."""
        self.comfy.page.evaluate(
            """(columns) => {
              const gap = 60, far = 4000, readable = 290; // wide enough for a title
              const top = Math.min(...app.graph.nodes.map((n) => n.pos[1])) - far;
              let x = 0;
              for (const ids of columns) {
                const nodes = ids.map((id) => app.graph.getNodeById(id));
                let y = top;
                for (const node of nodes) {
                  node.setSize([Math.max(node.size[0], readable), node.size[1]]);
                  node.pos = [x, y];
                  y += node.size[1] + gap;
                }
                x += Math.max(...nodes.map((n) => n.size[0])) + gap;
              }
            }""",
            [list(column) for column in columns],
        )

    def cut(self, *nodes: NodeId, ran: bool = False, height: int | None = None) -> Image.Image:
        """What the page shows of nodes (none: all of them), without the menus.

        `height`: pixels of the page from the top, where not all.
        """
        comfy = self.comfy
        comfy.page.evaluate(
            "() => { app.canvas.deselectAll(); app.extensionManager.focusMode = true; }"
        )
        comfy.page.get_by_role("button", name="Templates").first.wait_for(state="hidden")
        comfy.show(*nodes)
        comfy.page.mouse.move(5, 5)
        if ran:
            for node in nodes:
                if comfy.plot(node).count():
                    comfy.wait_plot(node)
                if comfy.page.evaluate(_GAVE_PICTURES, str(node)):
                    comfy.wait_picture(node)
        comfy.settle()
        box = comfy.box(*nodes)
        if height is not None:
            box["height"] = height
        clip = {
            "x": box["x"] - MARGIN,
            "y": box["y"] - MARGIN,
            "width": box["width"] + 2 * MARGIN,
            "height": box["height"] + 2 * MARGIN,
        }
        picture = Image.open(io.BytesIO(comfy.page.screenshot(clip=clip))).convert("RGB")
        comfy.page.evaluate("() => { app.extensionManager.focusMode = false; }")
        return picture


def _options(spec: Sequence[Any]) -> list[Any] | None:
    options = spec[1] if len(spec) > 1 and isinstance(spec[1], dict) else {}
    return options.get("options") if spec[0] == "COMBO" else None


@contextmanager
def open_page(
    concepts: Path | None, steps: int | None, look: Look, out: Path | None
) -> Iterator[PicturePage]:
    """A server with the example graphs' concepts, and its page."""
    program = find_browser()
    if program is None:
        sys.exit(f"no browser was found; {HOW_TO_GET_ONE}")
    args: list[str] = []
    if look.newest:
        frontend = frontend_folder(Steps(home()))
        if frontend is None:
            sys.exit("PyPI's newest frontend is not there; `make pictures` gets it")
        args = ["--front-end-root", str(frontend)]
    if out:
        out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="perfusion-pictures-") as name:
        folder = Path(name)
        with (
            running_server(ready_comfyui(), folder / "base", extra_args=args) as server,
            browser_context(program, folder / "profile", 1800, 1300, look.scale) as context,
        ):
            give_pictures(server)
            if concepts:
                (server.models / "perfusion").mkdir(exist_ok=True)
                for file in concepts.glob("*.safetensors"):
                    shutil.copy(file, server.models / "perfusion")
            example_concepts(server, steps)
            shown = {"Comfy.VueNodes.Enabled": look.nodes2, "Comfy.ColorPalette": look.theme}
            save_settings(context, server.url, {**SETTINGS, **shown})
            comfy = ComfyPage(context.new_page(), server.url, look.nodes2)
            comfy.page.set_default_timeout(PATIENCE)
            comfy.open()
            yield PicturePage(comfy, server, server.client.object_info(), steps, out)


def picture_nodes(picture_page: PicturePage, wanted: Sequence[str]) -> None:
    kinds = [kind for kind in picture_page.object_info if kind.startswith("Perfusion")]
    todo = {kind for kind in kinds if not wanted or kind in wanted}
    for kind in sorted(todo & SCENES.keys()):
        picture_page.write(_scene(picture_page, SCENES[kind]), HELP / f"{kind}.png")
    todo -= SCENES.keys()
    for name in _names():
        graph = example_graph(name)
        here = todo & {node["type"] for node in graph["nodes"]}
        if here and picture_page.load(graph, name):
            for kind in sorted(here):
                node = picture_page.comfy.nodes(kind)[0]
                picture_page.apart(node)
                picture_page.write(picture_page.cut(node, ran=True), HELP / f"{kind}.png")
            todo -= here
    for kind in sorted(todo):
        picture_page.write(picture_page.cut(picture_page.comfy.add(kind)), HELP / f"{kind}.png")


def _scene(picture_page: PicturePage, scene: Scene) -> Image.Image:
    page = picture_page.comfy.page
    page.evaluate("(graph) => app.loadApiJson(graph, 'scene')", scene.graph)
    picture_page.comfy.settle()
    # Their plots have nothing to show: no prompt is written here.
    page.evaluate("() => app.graph.nodes.forEach((node) => node.perfusionPlot?.toggle())")
    picture_page.arrange(scene.columns)
    return picture_page.cut(
        *(node for column in scene.columns for node in column), height=scene.height
    )


def picture_graphs(picture_page: PicturePage, wanted: Sequence[str]) -> None:
    for name in wanted:
        picture_page.comfy.load(example_graph(name), name)
        picture = picture_page.cut()
        picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
        picture_page.write(picture, UI_GRAPHS / f"{name}.jpg", quality=90)


def picture_graph(picture_page: PicturePage, file: Path, target: Path) -> None:
    picture_page.load(json.loads(file.read_text(encoding="utf-8")), file.stem)
    _write(picture_page.cut(), target)


def picture_sliders(picture_page: PicturePage) -> None:
    comfy = picture_page.comfy
    picture_page.load(example_graph("tune_bias"), "tune_bias")
    tune, save = comfy.node("PerfusionTune"), comfy.node("SaveImage")
    # The two things to look at, one above the other and away from the rest.
    comfy.page.evaluate(
        """([tune, save]) => {
          const [width] = app.graph.getNodeById(tune).size;
          app.graph.getNodeById(save).setSize([width, width + 40]);
        }""",
        [tune, save],
    )
    picture_page.apart(tune, save)
    comfy.show(tune, save)
    comfy.wait_plot(tune)
    comfy.run_on_change()
    shots = []
    for bias in BIASES:
        comfy.show(tune, save)
        with comfy.one_run():
            comfy.drag_slider(tune, "bias", bias)
        comfy.wait_picture(save)
        shots.append(picture_page.cut(tune, save, ran=True))
    strip = Image.new("RGB", (sum(shot.width for shot in shots), shots[0].height))
    for number, shot in enumerate(shots):
        strip.paste(shot, (sum(one.width for one in shots[:number]), 0))
    picture_page.write(strip, ROOT / "docs" / "sliders.png")


def _names() -> list[str]:
    return sorted(path.stem for path in UI_GRAPHS.glob("*.json"))


def _write(picture: Image.Image, target: Path, **options: Any) -> None:
    if target.suffix == ".png":
        # A page has few colours; its pictures are a third as large with a palette.
        picture = picture.quantize(256, dither=Image.Dither.NONE)
        options = {"optimize": True}
    picture.save(target, **options)
    print(f"wrote {target} ({picture.width} x {picture.height})")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--concepts", type=Path, help="a folder of trained concept files")
    parser.add_argument("--steps", type=int, help="training steps, for a first look")
    parser.add_argument("--scale", type=float, default=1.5, help="pixels of a picture per page's")
    parser.add_argument("--frontend", choices=["pinned", "newest"], default="pinned")
    parser.add_argument("--nodes2", action="store_true", help="nodes as elements of the page")
    parser.add_argument("--theme", choices=["dark", "light"], default="dark")
    parser.add_argument("--out", type=Path, help="a folder for the pictures")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("nodes").add_argument("ids", nargs="*")
    commands.add_parser("graphs").add_argument("names", nargs="*")
    commands.add_parser("sliders")
    one = commands.add_parser("graph")
    one.add_argument("file", type=Path)
    one.add_argument("picture", type=Path)
    options = parser.parse_args(arguments)
    graphs = graph_names(checkpoint=True)
    if options.command == "graphs" and options.names:
        if others := set(options.names) - set(graphs):
            parser.error(
                f"not a graph that loads a checkpoint: {', '.join(sorted(others))}; there are "
                f"{', '.join(graphs)} (the pictures of others: python -m lab.thumbnails)"
            )
        graphs = options.names
    look = Look(options.frontend == "newest", options.nodes2, options.theme, options.scale)
    with open_page(options.concepts, options.steps, look, options.out) as made:
        if options.command == "nodes":
            picture_nodes(made, options.ids)
        elif options.command == "graphs":
            picture_graphs(made, graphs)
        elif options.command == "sliders":
            picture_sliders(made)
        else:
            picture_graph(made, options.file, options.picture)


if __name__ == "__main__":
    main()
