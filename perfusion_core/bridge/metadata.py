"""Which concepts made a picture, in the picture's own metadata.

The host writes what a request's `extra_pnginfo` holds into every picture that the request saves.
It is filled in when the request comes, not when a loader runs: a loader whose result is cached does
not run, and its pictures should say it all the same.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from ..concept import ConceptError
from ..concept_file import read_card
from .folder import concept_path

ENTRY = "perfusion_concepts"
LOADER = "PerfusionConceptLoader"


def register_metadata() -> None:
    """Have the host's server fill in the concepts of every request. Safe to call again.

    A script that uses the host's modules without a server has no requests either.
    """
    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if server is not None and name_concepts not in server.on_prompt_handlers:
        server.add_on_prompt_handler(name_concepts)


def name_concepts(request: dict[str, Any]) -> dict[str, Any]:
    """The host's request to run a graph, with the files, placeholders and hashes of its concepts.

    A request without a concept loader comes back as it is.
    """
    concepts = concepts_of(request.get("prompt") or {})
    if concepts:
        extra = request["extra_data"] = {**(request.get("extra_data") or {})}
        extra["extra_pnginfo"] = {**(extra.get("extra_pnginfo") or {}), ENTRY: concepts}
    return request


def concepts_of(graph: Mapping[str, Any]) -> list[dict[str, str]]:
    """What each concept loader of a graph in the API's format loads.

    Loaders whose file cannot be read are left out: the host refuses such a graph, or the loader
    fails and says why.
    """
    found = []
    for key, node in graph.items():
        if not isinstance(node, Mapping) or node.get("class_type") != LOADER:
            continue
        inputs = node.get("inputs") or {}
        file, other = inputs.get("file"), inputs.get("placeholder")
        try:
            card = read_card(concept_path(file if isinstance(file, str) else ""))
        except ConceptError:
            continue
        own = other.strip() if isinstance(other, str) else ""
        found.append(
            {
                "node": key,
                "file": file,
                "placeholder": own or card.placeholder,
                "hash": card.hash,
            }
        )
    return found
