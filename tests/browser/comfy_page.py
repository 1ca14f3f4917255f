"""ComfyUI's page as a user has it: real mouse and keyboard, and what the page has to say of itself.

The frontend's own `window.app` is read to know where a node lies on the canvas and when a run has
ended; what is tested is done with the mouse and the keyboard.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from playwright.sync_api import (
    BrowserContext,
    ConsoleMessage,
    Error,
    Locator,
    Page,
    Request,
    Response,
    TimeoutError,
)

NodeId: TypeAlias = int | str
"""What the page calls a node, a number or a string as its frontend has it: only handed back."""

# No test waits that long for what works: a slow machine may.
PATIENCE = 60_000  # milliseconds

EMPTY: dict[str, Any] = {
    "last_node_id": 0,
    "last_link_id": 0,
    "nodes": [],
    "links": [],
    "groups": [],
    "config": {},
    "extra": {},
    "version": 0.4,
}

# Settings that tests change; every page begins with these.
SETTINGS: dict[str, Any] = {
    "Comfy.TutorialCompleted": True,  # else the template browser opens by itself
    "Comfy.Locale": "en",
    "Comfy.ColorPalette": "dark",
    "Comfy.VueNodes.Enabled": False,
    "Comfy.Minimap.Visible": False,  # it lies over the canvas
    # The offer to download the checkpoint that a graph names, which lies over the whole page.
    "Comfy.Workflow.ShowMissingModelsWarning": False,
}

# What the frontend itself asks for and does without when it is not there: files of a user that has
# saved none, help pages in the page's language before those without one, indexes that the
# templates' package has got since the version that ComfyUI pins, and what ComfyUI has got since.
ABSENT_BY_DESIGN = re.compile(
    r"/user\.css$|/userdata[/?]|/docs/\w+/[\w-]+\.md$|/templates/(fuse_options|index_logo)\.json$"
    # The newest frontend asks for the jobs and for the blueprints of a ComfyUI that is older.
    r"|/api/jobs\?|/api/global_subgraphs$"
    # What the example graphs for Anima and Wan name, and the servers here have not.
    r"|/perfusion/concept\?file=(girl_anima|boy_anima|teddy_wan)\.safetensors$"
    r"|/perfusion/family\?folder=diffusion_models&name=(anima|wan)"
)

# Errors in the console that the frontends have without any pack. The servers here tell the browser
# to talk to nobody else (a part of --disable-api-nodes), so what the frontend asks its makers' site
# is refused, or how large the models are that a graph names; and so is a WebAssembly module of its
# 3D viewer, which it loads from a data URL.
OF_THE_FRONTEND = re.compile(
    r"Connecting to '(https://(api\.comfy\.org|huggingface\.co)/|data:application/wasm)"
    r"|Fetch API cannot load (https://huggingface\.co/|data:application/wasm)"
    # A ComfyUI without jobs, see above.
    r"|\[Jobs API\] Error fetching jobs: JobsApiError: Failed to fetch jobs: 404"
    r"|Failed to fetch queue: JobsApiError: Failed to fetch jobs: 404"
    # 1.49.6, at its own start.
    r"|ComfyApp graph accessed before initialization$"
    r"|Error loading fuse options: AxiosError"
    # The minimap, which is off here, when another graph comes on the screen: a subgraph is opened.
    r"|Attempted to cleanup event listeners for graph that was never set up"
    # 1.32.9: the list of settings is filled before there is a canvas.
    r"|TypeError: Cannot read properties of undefined \(reading 'id'\)\s+"
    r"at onChange \(\S+/assets/index-"
)

_RUN = re.compile(r"^Run( \(.+\))?$")

# Runs, as the page hears of them.
_RECORD = """() => {
  const runs = (window.testRuns = []);
  const api = window.app.api;
  const now = () => runs.at(-1) ?? {};
  api.addEventListener("execution_start", ({ detail }) =>
    runs.push({ id: detail.prompt_id, cached: [], ran: [], progress: [], previews: 0, end: null }));
  api.addEventListener("execution_cached", ({ detail }) => { now().cached = detail.nodes; });
  api.addEventListener("executing", ({ detail }) => detail && now().ran?.push(String(detail)));
  api.addEventListener("progress", ({ detail: { value, max } }) =>
    now().progress?.push([value, max]));
  api.addEventListener("b_preview", () => { now().previews += 1; });
  for (const end of ["execution_success", "execution_error", "execution_interrupted"])
    api.addEventListener(end, ({ detail }) => {
      const run = runs.find((one) => one.id === detail.prompt_id);
      if (run) Object.assign(run, { end, why: detail.exception_message ?? "" });
    });
}"""

_READY = """() => {
  const app = window.app;
  return Boolean(app?.extensionManager?.workflow?.activeWorkflow?.changeTracker)
    && !app.extensionManager.spinner;
}"""

# The graph on the screen: a subgraph, where one is open.
_WIDGET = (
    "const node = app.canvas.graph.getNodeById(id), w = node.widgets.find((x) => x.name === name);"
)

# Where a slider's value lies in the page. Litegraph leaves 15 pixels at either end.
_SLIDER_POINT = f"""([id, name, value]) => {{
  {_WIDGET}
  const {{ min, max }} = w.options, width = w.width || node.size[0];
  const x = 15 + ((width - 30) * (value - min)) / (max - min);
  const y = (w.y ?? w.last_y) + (w.computedHeight ?? 20) / 2;
  const [left, top] = app.canvas.ds.convertOffsetToCanvas([node.pos[0] + x, node.pos[1] + y]);
  const box = app.canvas.canvas.getBoundingClientRect();
  return [box.left + left, box.top + top];
}}"""

_IN_PLACE = """() => {
  const { ds, canvas } = app.canvas, { left } = canvas.getBoundingClientRect();
  return [...document.querySelectorAll("[data-node-id]")].every((element) => {
    const node = app.canvas.graph.getNodeById(element.dataset.nodeId);
    const x = node && left + ds.convertOffsetToCanvas(node.pos)[0];
    return !node || Math.abs(element.getBoundingClientRect().left - x) < 4;
  });
}"""

_TRACK = """(track) => {
  const { x, y, width, height } = track.getBoundingClientRect();
  const thumb = track.querySelector("[role=slider]");
  return [x, y, width, height, Number(thumb.ariaValueMin), Number(thumb.ariaValueMax)];
}"""


@dataclass
class ComfyPage:
    """One page. `problems` gathers what a developer would see in red in the console."""

    page: Page
    url: str
    nodes2: bool = False
    """Nodes are elements (the frontend's "Nodes 2.0"), not painted on the canvas."""
    picture: Path = Path("page")
    """Where pictures of the page are kept, without the ending."""
    problems: list[str] = field(default_factory=list)
    queued: list[dict[str, Any]] = field(default_factory=list)
    """The graphs that were sent to the server's queue, in order."""
    asked: list[str] = field(default_factory=list)
    """What the pack's own routes were asked, in order: method and path."""

    def __post_init__(self) -> None:
        self.page.set_default_timeout(PATIENCE)
        self.page.on("console", self._on_console)
        self.page.on("pageerror", self._on_error)
        self.page.on("response", self._on_response)
        self.page.on("request", self._on_request)

    def _on_console(self, message: ConsoleMessage) -> None:
        # What failed to load is told by its response, if it is of this server.
        if message.type == "error" and not (
            message.text.startswith("Failed to load resource")
            or OF_THE_FRONTEND.match(message.text)
        ):
            self.problems.append(f"console: {message.text[:2000]} ({message.location['url']})")

    def _on_error(self, error: Error) -> None:
        # The 3D viewer's module, see above.
        told = error.stack or error.message
        if not (error.message == "Failed to fetch" and "/assets/vendor-three-" in told):
            self.problems.append(f"uncaught: {told}")

    def _on_response(self, response: Response) -> None:
        if (
            response.status >= 400
            and response.url.startswith(self.url)
            and not ABSENT_BY_DESIGN.search(response.url)
        ):
            self.problems.append(f"{response.status} {response.request.method} {response.url}")

    def _on_request(self, request: Request) -> None:
        path = urlsplit(request.url).path
        if request.method == "POST" and path == "/api/prompt":
            self.queued.append(request.post_data_json)
        if path.startswith("/api/perfusion/"):
            self.asked.append(f"{request.method} {path}")

    # The page as a whole.

    def open(self) -> None:
        """Open the page as a browser that was never here."""
        # Any answer of the server will do to be at home in its storage.
        self.page.goto(f"{self.url}/api/system_stats")
        self.page.evaluate(
            """() => {
              localStorage.clear();
              sessionStorage.clear();
              localStorage.setItem("vueNodesBannerDismissed", "true");
            }"""
        )
        self.page.goto(self.url)
        self.wait_ready()

    def into_subgraph(self, *nodes: NodeId) -> NodeId:
        """Make a subgraph of nodes, as the menu of a selection does; return the node that it is."""
        made: NodeId = self.page.evaluate(
            """async (ids) => {
              const before = new Set(app.graph.nodes);
              app.canvas.selectItems(ids.map((id) => app.graph.getNodeById(id)));
              await app.extensionManager.command.execute("Comfy.Graph.ConvertToSubgraph");
              return app.graph.nodes.find((node) => !before.has(node)).id;
            }""",
            list(nodes),
        )
        self.settle()
        return made

    def enter(self, node: NodeId) -> dict[str, NodeId]:
        """Open a node's subgraph; return the ids of its nodes by their classes."""
        found: dict[str, NodeId] = self.page.evaluate(
            """(id) => {
              const node = app.graph.getNodeById(id);
              app.canvas.openSubgraph(node.subgraph, node);
              return Object.fromEntries(node.subgraph.nodes.map((one) => [one.type, one.id]));
            }""",
            node,
        )
        self.page.wait_for_function("() => app.canvas.graph !== app.graph")
        self.settle()
        return found

    def reload(self) -> None:
        self.page.reload()
        self.wait_ready()

    def wait_ready(self) -> None:
        self.page.wait_for_function(_READY)
        # It fades out, and takes the first clicks.
        self.page.locator(".p-blockui-mask").wait_for(state="hidden")
        # Else a test of the one design would pass on the other.
        shown = self.page.evaluate("() => Boolean(LiteGraph.vueNodesMode)")
        assert shown == self.nodes2, f"Nodes 2.0 is {shown} in the page, {self.nodes2} in the test"
        self.page.evaluate(_RECORD)

    def settle(self) -> None:
        """Two frames: what was to be drawn is drawn."""
        self.page.evaluate(
            "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
        )

    def keep(self, moment: str = "") -> None:
        """Keep a picture of the page as it is, under its name and that of the moment."""
        self.picture.parent.mkdir(parents=True, exist_ok=True)
        stem = f"{self.picture.name}-{moment}" if moment else self.picture.name
        self.page.screenshot(path=self.picture.with_name(f"{stem}.png"))

    # The graph.

    def load(self, workflow: dict[str, Any], name: str = "test") -> None:
        """Load a workflow in the UI's format, as dropping its file would."""
        self.page.evaluate(
            "async ([graph, name]) => { await app.loadGraphData(graph, true, true, name); }",
            [workflow, name],
        )
        self.settle()

    def clear(self) -> None:
        self.load(EMPTY)

    def search(self) -> None:
        """Open the search for nodes with a double click on the empty canvas, to be typed into."""
        for _ in range(10):
            self.page.mouse.dblclick(700, 500)
            # On a busy machine the two clicks may lie too far apart for the canvas.
            with suppress(TimeoutError):
                self.page.locator("input[role=combobox]:focus").wait_for(timeout=2000)
                return
        raise AssertionError("no double click on the canvas opened the search for nodes")

    def add(self, kind: str) -> NodeId:
        """Add a node to an empty graph, where how a user does it is not the point."""
        self.clear()
        node: NodeId = self.page.evaluate(
            "(kind) => { const n = LiteGraph.createNode(kind); app.graph.add(n); return n.id; }",
            kind,
        )
        self.settle()
        return node

    def graph(self) -> dict[str, Any]:
        """The graph on the screen, as it would be saved."""
        saved: dict[str, Any] = self.page.evaluate("() => app.graph.serialize()")
        return saved

    def nodes(self, kind: str) -> list[NodeId]:
        """Ids of the nodes of a class, in the order of the graph."""
        found: list[NodeId] = self.page.evaluate(
            "(kind) => app.graph.nodes.filter((n) => n.type === kind).map((n) => n.id)", kind
        )
        return found

    def node(self, kind: str) -> NodeId:
        """The id of the graph's one node of a class."""
        (found,) = self.nodes(kind)
        return found

    def kind(self, node: NodeId) -> str:
        found: str = self.page.evaluate("(id) => app.graph.getNodeById(id).type", node)
        return found

    def value(self, node: NodeId, widget: str) -> Any:
        return self.page.evaluate(
            f"([id, name]) => {{ {_WIDGET} return w.value; }}", [node, widget]
        )

    def set_value(self, node: NodeId, widget: str, value: Any) -> None:
        """Set a widget where how a user does it is not the point."""
        self.page.evaluate(
            f"([id, name, value]) => {{ {_WIDGET} w.value = value; w.callback?.(value);"
            " app.extensionManager.workflow.activeWorkflow.changeTracker.checkState(); }",
            [node, widget, value],
        )

    def show(self, *nodes: NodeId, scale: float = 1.0) -> None:
        """Bring nodes (none: all) to the middle of the canvas, without animation."""
        self.page.evaluate(
            """([ids, scale]) => {
              const asked = (n) => !ids.length || ids.includes(String(n.id));
              const nodes = app.canvas.graph.nodes.filter(asked);
              const title = 30;
              const left = Math.min(...nodes.map((n) => n.pos[0]));
              const top = Math.min(...nodes.map((n) => n.pos[1] - title));
              const right = Math.max(...nodes.map((n) => n.pos[0] + n.size[0]));
              const bottom = Math.max(...nodes.map((n) => n.pos[1] + n.size[1]));
              const { width, height } = app.canvas.canvas.getBoundingClientRect();
              const { ds } = app.canvas;
              // The sidebar and the menu lie over the canvas' edges.
              const room = { x: 80, y: 70 };
              ds.scale = Math.min(scale, (width - 2 * room.x) / (right - left),
                (height - 2 * room.y) / (bottom - top));
              ds.offset[0] = width / 2 / ds.scale - (left + right) / 2;
              ds.offset[1] = height / 2 / ds.scale - (top + bottom) / 2;
              app.canvas.setDirty(true, true);
            }""",
            [[str(node) for node in nodes], scale],
        )
        self.settle()
        if self.nodes2:
            # Some frontends bring the elements there some frames after the canvas.
            with suppress(TimeoutError):
                self.page.wait_for_function(_IN_PLACE, timeout=2000)
            self.settle()

    def box(self, *nodes: NodeId) -> dict[str, float]:
        """Where nodes with their titles lie in the page: x, y, width, height."""
        if self.nodes2:
            return self._box_of_elements([str(node) for node in nodes])
        found: dict[str, float] = self.page.evaluate(
            """(ids) => {
              const asked = (n) => !ids.length || ids.includes(String(n.id));
              const nodes = app.canvas.graph.nodes.filter(asked);
              const { ds, canvas } = app.canvas, at = canvas.getBoundingClientRect();
              const place = (x, y) => ds.convertOffsetToCanvas([x, y]);
              const low = nodes.map((n) => place(n.pos[0], n.pos[1] - 30));
              const high = nodes.map((n) => place(n.pos[0] + n.size[0], n.pos[1] + n.size[1]));
              const x = Math.min(...low.map((p) => p[0])), y = Math.min(...low.map((p) => p[1]));
              return { x: at.left + x, y: at.top + y,
                width: Math.max(...high.map((p) => p[0])) - x,
                height: Math.max(...high.map((p) => p[1])) - y };
            }""",
            [str(node) for node in nodes],
        )
        return found

    def _box_of_elements(self, nodes: list[str]) -> dict[str, float]:
        found: dict[str, float] = self.page.evaluate(
            """(ids) => {
              const all = [...document.querySelectorAll("[data-node-id]")];
              const wanted = all.filter((one) => !ids.length || ids.includes(one.dataset.nodeId));
              const boxes = wanted.map((one) => one.getBoundingClientRect());
              const x = Math.min(...boxes.map((b) => b.left));
              const y = Math.min(...boxes.map((b) => b.top));
              return { x, y, width: Math.max(...boxes.map((b) => b.right)) - x,
                height: Math.max(...boxes.map((b) => b.bottom)) - y };
            }""",
            nodes,
        )
        return found

    def element(self, node: NodeId) -> Locator:
        """A node's element (Nodes 2.0 alone)."""
        return self.page.locator(f'[data-node-id="{node}"]')

    # Sliders.

    def drag_slider(self, node: NodeId, name: str, to: float, steps: int = 8) -> None:
        """Take a slider with the mouse and move it to about a value."""
        begin, end = (
            self.slider_point(node, name, value) for value in (self.value(node, name), to)
        )
        mouse = self.page.mouse
        mouse.move(*begin)
        mouse.down()
        mouse.move(*end, steps=steps)
        mouse.up()
        self.settle()

    def slider_point(self, node: NodeId, name: str, value: float) -> tuple[float, float]:
        """Where a slider's value lies in the page."""
        if self.nodes2:
            track = self.slider(node, name).locator("xpath=..")
            x, y, width, height, low, high = track.evaluate(_TRACK)
            return (x + width * (value - low) / (high - low), y + height / 2)
        point = self.page.evaluate(_SLIDER_POINT, [node, name, value])
        return (point[0], point[1])

    # Connections.

    def slider(self, node: NodeId, name: str) -> Locator:
        """A slider's thumb (Nodes 2.0 alone). The frontend names its number field, beside it."""
        labelled = self.element(node).locator(f'[aria-label="{name}"]')
        return (
            labelled.locator("xpath=ancestor-or-self::*[.//*[@role='slider']][1]")
            .get_by_role("slider")
            .first
        )

    def slot(self, node: NodeId, side: str, number: int) -> tuple[float, float]:
        """Where a slot's dot lies in the page. `side`: "in" or "out"."""
        if self.nodes2:
            box = self.page.locator(f'[data-slot-key="{node}-{side}-{number}"]').bounding_box()
            assert box, f"no slot {side} {number} on node {node}"
            return (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        point = self.page.evaluate(
            """([id, side, number]) => {
              const node = app.graph.getNodeById(id), { ds, canvas } = app.canvas;
              const at = side === "in" ? node.getInputPos(number) : node.getOutputPos(number);
              const [x, y] = ds.convertOffsetToCanvas(at), box = canvas.getBoundingClientRect();
              return [box.left + x, box.top + y];
            }""",
            [node, side, number],
        )
        return (point[0], point[1])

    def connect(self, source: NodeId, output: int, target: NodeId, input: int) -> None:
        """Pull a connection from a node's output to another's input with the mouse."""
        mouse = self.page.mouse
        mouse.move(*self.slot(source, "out", output))
        mouse.down()
        mouse.move(*self.slot(target, "in", input), steps=6)
        mouse.up()
        self.page.wait_for_function(
            """([source, target, input]) => {
              const link = app.graph.getNodeById(target).inputs[input].link;
              return link != null && String(app.graph.links.get(link).origin_id) === String(source);
            }""",
            arg=[source, target, input],
        )

    # Plots of gates.

    def plot(self, node: NodeId) -> Locator:
        return self.page.locator(f'[data-perfusion="gate-plot"][data-node="{node}"]')

    def plot_picture(self, node: NodeId) -> str:
        """The plot's pixels as a data URL, to compare."""
        found: str = self.plot(node).locator("canvas").evaluate("(canvas) => canvas.toDataURL()")
        return found

    def tokens(self, node: NodeId) -> Locator:
        """The list of a plot's tokens, which the keyboard walks through."""
        return self.plot(node).get_by_role("listbox")

    def wait_plot(self, node: NodeId, status: str = "ok") -> None:
        """Wait until the plot shows the graph as it is: it has the answer, and has drawn it."""
        shown = f'[data-status="{status}"][data-draws]:has([aria-busy="false"])'
        self.plot(node).and_(self.page.locator(shown)).wait_for()
        self.settle()

    def wait_other_plot(self, node: NodeId, before: str) -> None:
        """Wait until the plot is another picture than `before`."""
        canvas = self.plot(node).locator("canvas").element_handle()
        self.page.wait_for_function(
            "([canvas, before]) => canvas.toDataURL() !== before", arg=[canvas, before]
        )

    # Running.

    def runs(self) -> list[dict[str, Any]]:
        """The runs since the page was loaded: id, cached, ran, progress, previews, end, why."""
        found: list[dict[str, Any]] = self.page.evaluate("() => window.testRuns")
        return found

    def run_button(self) -> Locator:
        """The button that queues the graph; it is called as the way to run that is chosen."""
        return self.page.get_by_role("button", name=_RUN).first

    def press_run(self) -> None:
        """Click the button that queues the graph."""
        self.run_button().click()

    def run_on_change(self) -> None:
        """Choose "Run (On Change)" in the menu of the button beside that one."""
        self.run_button().locator("xpath=following::button").first.click()
        name = "Run (On Change)"
        items = [self.page.get_by_role(role, name=name) for role in ("menuitem", "menuitemradio")]
        items[0].or_(items[1]).click()
        # The menu of some frontends stays open; below the nodes, see `show`, the canvas is empty.
        self.page.mouse.click(400, 985)
        items[0].or_(items[1]).wait_for(state="hidden")
        self.page.get_by_role("button", name=name).first.wait_for()

    @contextmanager
    def one_run(self, end: str = "execution_success") -> Iterator[dict[str, Any]]:
        """Wait at the block's end for the next run's end; what it yields is filled in then."""
        before = len(self.runs())
        run: dict[str, Any] = {}
        yield run
        self.page.wait_for_function("(n) => window.testRuns[n]?.end", arg=before)
        run.update(self.runs()[before])
        assert run["end"] == end, f"the run ended with {run['end']}: {run['why']}"

    def run(self) -> dict[str, Any]:
        """Queue the graph with the button, wait for its end."""
        with self.one_run() as run:
            self.press_run()
        return run

    def wait_preview(self, node: NodeId) -> None:
        """Wait until a node shows a picture of what is under way, inside its frame."""
        self.page.wait_for_function(
            """([id, nodes2]) => {
              const node = app.canvas.graph.getNodeById(id);
              const images = nodes2
                ? document.querySelectorAll(`[data-node-id="${id}"] img`)
                : (node.imgs ?? []);
              const last = node.widgets.at(-1);
              // The classic canvas makes the node higher one frame after the picture's first.
              const inside = last.name === "$$canvas-image-preview"
                && last.y + last.computedHeight <= node.size[1];
              return (nodes2 || inside)
                && [...images].some((image) =>
                  image.src.startsWith("blob:") && image.complete && image.naturalWidth > 0);
            }""",
            arg=[node, self.nodes2],
        )

    def wait_picture(self, node: NodeId) -> tuple[int, int]:
        """Wait until a node shows a picture, return its width and height in pixels."""
        if self.nodes2:
            image = self.element(node).locator('img[src*="/view"]').first
            size = image.evaluate(
                "async (img) => { await img.decode(); "
                "return [img.naturalWidth, img.naturalHeight]; }"
            )
        else:
            size = self.page.wait_for_function(
                """(id) => {
                  const image = app.graph.getNodeById(id).imgs?.[0];
                  return image?.complete && [image.naturalWidth, image.naturalHeight];
                }""",
                arg=node,
            ).json_value()
        self.settle()
        return (size[0], size[1])


def save_settings(context: BrowserContext, url: str, changed: Mapping[str, Any]) -> None:
    """Set the frontend's settings on the server, before a page is opened; the others begin anew."""
    change_settings(context, url, {**SETTINGS, **changed})


def change_settings(context: BrowserContext, url: str, changed: Mapping[str, Any]) -> None:
    """Set some of the frontend's settings on the server; the others stay."""
    answer = context.request.post(f"{url}/api/settings", data=dict(changed))
    assert answer.ok, f"{answer.status} {answer.text()}"
