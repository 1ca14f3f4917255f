"""Small graphs for pictures of nodes that are best seen beside those that they are connected to."""

from __future__ import annotations

from dataclasses import dataclass

from tools.workflows import Graph


@dataclass(frozen=True)
class Scene:
    """A graph in the API's format, and which of its nodes are seen, column by column."""

    graph: Graph
    columns: tuple[tuple[int, ...], ...]
    height: int | None = None
    """How much of it is seen from the top, in pixels of the page; None: all."""


def _loader(file: str) -> dict[str, object]:
    sliders = {"bias": 0.6, "temperature": 0.15, "strength": 1.0, "key_lock": "local"}
    return {"class_type": "PerfusionConceptLoader", "inputs": {"file": file, **sliders}}


_DEMO = {"class_type": "PerfusionDemoModel", "inputs": {"pictures_of": "berry"}}

_STACK: Graph = {
    "1": _DEMO,
    "2": _loader("berry.safetensors"),
    "3": _loader("royal.safetensors"),
    "4": {
        "class_type": "PerfusionCombineConcepts",
        "inputs": {"concept_1": ["2", 2], "concept_2": ["3", 2]},
    },
    "5": {
        "class_type": "PerfusionApplyConcepts",
        "inputs": {"model": ["1", 0], "clip": ["1", 1], "stack": ["4", 0]},
    },
}

_CAPTIONS: Graph = {
    "1": _DEMO,
    "2": {
        "class_type": "PerfusionCovariance",
        "inputs": {
            "clip": ["1", 1],
            "captions": "a photo of a frog on a red background\n"
            "a teapot next to a rocket\n"
            "a picture of a cat wearing a top hat\n"
            "a house beside two cactuses\n"
            "...",
        },
    },
}

# No result: the file is the user's.
_IMPORT: Graph = {
    "1": _DEMO,
    "2": {
        "class_type": "PerfusionImport",
        "inputs": {
            "model": ["1", 0],
            "clip": ["1", 1],
            "file": "anna.pt",
            "placeholder": "anna*",
            "superclass": "person",
        },
    },
}

# No result: the mask needs a CLIPSeg model, which is the user's to get.
_MASK: Graph = {
    "1": _DEMO,
    "2": {
        "class_type": "PerfusionZeroShotMask",
        "inputs": {"image": ["1", 3], "word": "teddy", "model": "clipseg-rd64-refined"},
    },
    "3": {
        "class_type": "PerfusionTrainConcept",
        "inputs": {
            "model": ["1", 0],
            "clip": ["1", 1],
            "vae": ["1", 2],
            "images": ["1", 3],
            "masks": ["2", 0],
        },
    },
}

SCENES = {
    "PerfusionApplyConcepts": Scene(_STACK, ((1, 4), (5,))),
    "PerfusionCombineConcepts": Scene(_STACK, ((2, 3), (4, 1), (5,))),
    "PerfusionImport": Scene(_IMPORT, ((1,), (2,))),
    "PerfusionCovariance": Scene(_CAPTIONS, ((1,), (2,))),
    "PerfusionZeroShotMask": Scene(_MASK, ((1,), (2,), (3,)), height=234),
}
