"""Which concepts made a picture, in the picture's own metadata.

ComfyUI writes what a request's `extra_pnginfo` holds into every picture that the request saves.
It is filled in when the request comes, not when a loader runs: a node whose result is cached does
not run, and its pictures should say it all the same. A concept that the graph itself trains is not
known by then; it is noted when it is applied, and remembered for the requests that find it cached.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from ..cache import BoundedCache
from ..concept.concept import Concept, ConceptError
from ..concept.concept_file import read_card
from ..concept.placeholder import fold
from .concept_folder import concept_path

ENTRY = "perfusion_concepts"
LOADER, APPLIER = "PerfusionConceptLoader", "PerfusionApplyConcepts"

# Of an applier and all that leads to it -> what it applied when it last ran. ComfyUI's cache of
# results goes by the same.
_applied: BoundedCache[str, list[dict[str, str]]] = BoundedCache(64)

_Graph = Mapping[str, Any]


def register_metadata() -> None:
    """Have ComfyUI's server fill in the concepts of every request. Safe to call again.

    A script that uses ComfyUI's modules without a server has no requests either.
    """
    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if server is not None and name_concepts not in server.on_prompt_handlers:
        server.add_on_prompt_handler(name_concepts)


def name_concepts(request: dict[str, Any]) -> dict[str, Any]:
    """ComfyUI's request to run a graph, with the files, placeholders and hashes of its concepts.

    A request without concepts comes back as it is.
    """
    graph = request.get("prompt") or {}
    late = [key for key, node in graph.items() if _known_late(node)]
    listed = _loaded(graph)
    for key in late:
        _add(listed, _applied.get(_origin(graph, key)) or [])
    if listed or late:
        extra = request["extra_data"] = {**(request.get("extra_data") or {})}
        # There in any case: a node that runs adds to it.
        extra["extra_pnginfo"] = {**(extra.get("extra_pnginfo") or {})}
        if listed:
            extra["extra_pnginfo"][ENTRY] = listed
    return request


def note_applied(
    concepts: Iterable[Concept],
    node: str | None,
    graph: _Graph | None,
    extra: Any,
    file: str = "",
) -> None:
    """Add the concepts that a node applies to what ComfyUI saves with the pictures of this run.

    Args:
        file: they come from; "" for none.
        node, graph, extra: ComfyUI's hidden inputs UNIQUE_ID, PROMPT and EXTRA_PNGINFO; None where
            there are none, and then nothing is noted.
    """
    if node is None or not graph or not isinstance(extra, dict):
        return
    made = [
        {"node": node, "file": file, "placeholder": concept.placeholder, "hash": concept.hash}
        for concept in concepts
    ]
    _add(extra.setdefault(ENTRY, []), made)
    # A node inside of what another one unfolds into is not in the graph that was sent.
    if _known_late(graph.get(node)):
        _applied.put(_origin(graph, node), made)


def _add(listed: list[dict[str, str]], more: Iterable[dict[str, str]]) -> None:
    """Those of `more` that are not listed yet: a concept of a loader may be applied further on."""
    known = {(fold(one["placeholder"]), one["hash"]) for one in listed}
    listed += [one for one in more if (fold(one["placeholder"]), one["hash"]) not in known]


def _loaded(graph: _Graph) -> list[dict[str, str]]:
    """What each concept loader of a graph in the API's format loads.

    Loaders whose file cannot be read are left out: ComfyUI refuses such a graph, or the loader
    fails and says why.
    """
    found = []
    for key, node in graph.items():
        if _kind(node) != LOADER or _known_late(node):
            continue
        inputs = node.get("inputs") or {}
        file, other = (str(inputs.get(name) or "") for name in ("file", "placeholder"))
        try:
            card = read_card(concept_path(file))
        except ConceptError:
            continue
        found.append(
            {
                "node": key,
                "file": file,
                "placeholder": other.strip() or card.placeholder,
                "hash": card.hash,
            }
        )
    return found


def _kind(node: Any) -> str:
    return str(node.get("class_type")) if isinstance(node, Mapping) else ""


def _known_late(node: Any) -> bool:
    """Whether only a run tells what a node applies: a concept of another node's, a file or a word
    that another node gives."""
    if _kind(node) != LOADER:
        return _kind(node) == APPLIER
    inputs = node.get("inputs") or {}
    return any(isinstance(inputs.get(name), list) for name in ("file", "placeholder"))


def _origin(graph: _Graph, key: str) -> str:
    """A node and all that leads to it, as one text."""
    found: dict[str, Any] = {}
    waiting = [key]
    while waiting:
        current = waiting.pop()
        node = graph.get(current)
        if current in found or not isinstance(node, Mapping):
            continue
        inputs = node.get("inputs") or {}
        found[current] = [node.get("class_type"), {k: _plain(v) for k, v in inputs.items()}]
        waiting += [str(v[0]) for v in inputs.values() if isinstance(v, list) and v]
    return json.dumps(found, sort_keys=True, default=str)


def _plain(value: Any) -> Any:
    # ComfyUI turns a 1 that was sent into the 1.0 that the input takes.
    return int(value) if isinstance(value, float) and value.is_integer() else value
