"""Live sliders: the page moves them while the sampler runs, and the run's pictures record them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from threading import Lock
from typing import Any, NamedTuple

from ..method.slider_schedule import LiveSliders, RecordedSliders, Sliders
from .models import ComfyMismatch


class Run(NamedTuple):
    """One node in one run of ComfyUI."""

    prompt_id: str
    node_id: str


# The model that is being sampled holds the sliders, so nothing stays here after a run.
_runs: weakref.WeakValueDictionary[Run, LiveSliders] = weakref.WeakValueDictionary()
_lock = Lock()


def begin_live(start: Sliders, on_move: Callable[[Run, RecordedSliders], None]) -> LiveSliders:
    """The sliders of the node that is running now, open to `move_live` while its prompt runs.

    Raises ComfyMismatch outside a run of ComfyUI.
    """
    run = running_node()
    if run is None:
        raise ComfyMismatch(
            'Sliders can move only while ComfyUI runs a graph. Turn "live" off, or run the node in '
            "a graph."
        )
    live = LiveSliders(start, lambda recorded: on_move(run, recorded))
    with _lock:
        _runs[run] = live
    return live


def running_node() -> Run | None:
    """The node that this thread runs now; None outside a run of ComfyUI."""
    from comfy_execution.utils import get_executing_context

    context = get_executing_context()
    return None if context is None else Run(context.prompt_id, context.node_id)


def move_live(prompt_id: str, node_id: str, sliders: Sliders) -> None:
    """Give a running sampler other sliders from its next step on.

    Raises ComfyMismatch when that prompt is not the one that runs, or has no such sliders.
    """
    with _lock:
        live = _runs.get(Run(prompt_id, node_id))
    if live is None or prompt_id not in running_prompts():
        raise ComfyMismatch(
            f'No live sliders of the node "{node_id}" are in use in a prompt "{prompt_id}" that '
            "runs now: it is over, was not started yet, or the node is not live."
        )
    live.offer(sliders)


def running_prompts() -> set[str]:
    """Ids of the prompts that ComfyUI runs now."""
    from server import PromptServer

    running, _ = PromptServer.instance.prompt_queue.get_current_queue_volatile()
    return {item[1] for item in running}


def write_back(
    prompt: dict[str, Any] | None,
    pnginfo: dict[str, Any] | None,
    node_id: str,
    widgets: Sequence[str],
    values: Mapping[str, Any],
) -> None:
    """Write the values that a node used into the graph that ComfyUI saves with the run's pictures.

    ComfyUI hands the graph, in both its forms, to every node that asks for it (hidden inputs), the
    same objects to all; what saves a picture comes after the sampler and writes them down.

    Args:
        prompt: the graph as it runs (hidden input PROMPT).
        pnginfo: what the page has sent along (hidden input EXTRA_PNGINFO); its "workflow" is the
            graph as it is drawn. A node inside a subgraph that is used several times is not written
            there: it stands for several.
        widgets: the node's widgets in order.
        values: by name of the widget.
    """
    node = (prompt or {}).get(node_id)
    if node is not None:  # it is not there when the node is what another one unfolds into
        node["inputs"].update(values)
        # What ComfyUI thinks of the values as they were (fingerprint_inputs), and would go by.
        node.pop("is_changed", None)
    drawn = _drawn_node((pnginfo or {}).get("workflow") or {}, node_id)
    shown = drawn.get("widgets_values")
    if isinstance(shown, list):
        shown += [None] * (len(widgets) - len(shown))
        for name, value in values.items():
            shown[widgets.index(name)] = value


def _drawn_node(workflow: Mapping[str, Any], node_id: str) -> dict[str, Any]:
    """The node that an id of a prompt means in a graph as it is drawn; empty where it is not one.

    The ids of the subgraphs that a node lies in come before its own: "12:5".
    """
    subgraphs = (workflow.get("definitions") or {}).get("subgraphs") or ()
    graphs = [workflow, *subgraphs]
    graph, node = workflow, dict[str, Any]()
    for part in node_id.split(":"):
        if node:
            kind = node.get("type")
            used = [n for g in graphs for n in g.get("nodes", ()) if n.get("type") == kind]
            graph = next((one for one in subgraphs if one.get("id") == kind), {})
            if len(used) != 1:
                return {}
        node = next((n for n in graph.get("nodes", ()) if str(n.get("id")) == part), {})
        if not node:
            return {}
    return node


def tell_page(event: str, data: Mapping[str, Any]) -> None:
    """Send an event to the page whose graph runs now."""
    from server import PromptServer

    server = PromptServer.instance
    if server.client_id is not None:
        server.send_sync(event, dict(data), server.client_id)
