"""Concepts of other programs on ComfyUI's models: what carries over, exactly, and what does not.

Of the two public implementations of the paper the gate carries over as it is: our file has i and
C^-1 i, theirs have i and C^-1. So do the word's vectors. Their locked keys are W_K p of a p that
they do not keep; it is the p that solves W_K p = o_K in all layers at once, and what is left over
tells whether the model is the one that they were learned on. Their values o_V become ours,
D = o_V - W_V p. What ours does otherwise: the gate is on the whole of the edit, and a layer has one
value for all positions of a prompt, where ChenDarYen's has one for each; the position that was
learned the most is taken, and said.

A textual inversion has vectors alone, and becomes a start for training (`embedding_start`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..concept.concept import Concept, ConceptError, check_words
from ..concept.foreign import Foreign, ForeignConcept, ForeignEmbedding
from ..families import ModelFamily
from .embedding_start import start_of
from .models import Layer, compute_dtype, detect_family, layers_of
from .protocols import Clip, Model

# |W_K p - o_K| / |o_K| over all layers: half precision leaves 0.002, another checkpoint's keys more
# than this.
MOST_LEFT = 0.05


def concept_of(
    foreign: Foreign, model: Model, clip: Clip | None, placeholder: str = "", superclass: str = ""
) -> tuple[Concept, list[str]]:
    """A concept of what another program has learned, and what is to be said of it.

    Args:
        model: what it was learned on; for an embedding, what it is to be trained on.
        clip: the model's; needed for an embedding.
        placeholder: the word for prompts; "" for the superclass with a star, such as "teddy*".
        superclass: the ordinary word for what it is; "" for that of the file.

    Raises ConceptError or ComfyMismatch with what does not fit and what to do.
    """
    named = foreign.superclass if isinstance(foreign, ForeignConcept) else ""
    kind = superclass.strip() or named.strip()
    if not kind:
        raise ConceptError(
            "the file does not say which word it started from: give the superclass, the ordinary "
            'word for what it is, such as "teddy"'
        )
    word = placeholder.strip() or f"{kind.split()[-1]}*"
    check_words(word, kind)
    family = detect_family(model)
    if isinstance(foreign, ForeignEmbedding):
        if clip is None:
            raise ConceptError("an embedding needs the model's CLIP as well: connect it.")
        return start_of(foreign, model, clip, family, word, kind), [
            "This is a textual inversion, which has learned its word alone and no values: connect "
            "it to resume of Perfusion Train Concept, with the same superclass, to learn them."
        ]
    return _carried(foreign, model, family, word, kind)


def _carried(
    foreign: ForeignConcept, model: Model, family: ModelFamily, word: str, kind: str
) -> tuple[Concept, list[str]]:
    """A concept of another implementation of the paper, on the model that it was learned on."""
    encoders = list(family.encoders)
    width = family.context_width
    if len(foreign.target_input) != width or len(encoders) != 1:
        raise ConceptError(
            f"it was learned for text encodings of width {len(foreign.target_input)}, and this "
            f"model is {family.title} (text width {width}). {foreign.program} knows SD 1.x (768) "
            "and SD 2.x (1024): load the checkpoint that it was learned on."
        )
    layers = layers_of(model, family)
    with torch.inference_mode(False), torch.no_grad():
        weights = {side: _weights(model, layers, side) for side in ("key", "value")}
        keys, values = _by_layer(foreign, weights)
        locked, left = _locked(weights["key"], keys)
        if left > MOST_LEFT:
            raise ConceptError(
                f"its locked keys are not this model's: the best that its key projections can "
                f"give differs by {100 * left:.0f} % (at most {100 * MOST_LEFT:.0f} % are taken). "
                "It was learned on another checkpoint: load that one, and import it there. The "
                "concept then fits fine-tunes of it."
            )
        position = _most_learned(weights["value"], values, locked)
        p = locked[position]
        learned = {
            path: (rows[position].double() - weights["value"][path] @ p).float()
            for path, rows in values.items()
        }
    i = foreign.target_input
    concept = Concept(
        name=word.strip("*<>$_") or word,
        family=family.id,
        placeholder=word,
        superclass=kind,
        embeddings={encoders[0]: foreign.embedding},
        target_input=i,
        whitened_target=(foreign.inverse.double() @ i.half().double()).float(),
        superclass_encoding=p.float(),
        values=learned,
        training={"imported_from": foreign.program, "position": position},
    )
    notes = [f"Imported from {foreign.program}; its locked keys fit within {100 * left:.2g} %."]
    count = len(locked)
    if count > 1:
        notes.append(
            f"It has values for each of {count} positions of a prompt, ours one for all: those of "
            f"position {position} were learned the most and are taken."
        )
    notes.append(
        "Its edit takes the concept's direction off every word of a prompt; ours does so only "
        "where the gate is open. Look at the bias once more: Perfusion Sweep."
    )
    return concept, notes


def _weights(model: Model, layers: Mapping[str, Layer], side: str) -> dict[str, Tensor]:
    """Layer path -> W [out, d] in float64, with what is patched on the model."""
    from comfy import model_management

    model_management.load_models_gpu([model])
    device, dtype = torch.device(model.load_device), compute_dtype(model.model)
    found = {}
    for path, layer in layers.items():
        units = torch.eye(layer.text_width, dtype=dtype, device=device)
        found[path] = layer.project(side, units[None])[0].T.double().cpu()
    return found


def _by_layer(
    foreign: ForeignConcept, weights: Mapping[str, Mapping[str, Tensor]]
) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    """Layer path -> outputs [T, out] of keys and of values. Raises ConceptError."""
    widths = {path: len(weight) for path, weight in weights["key"].items()}
    if not foreign.pairs:
        found = {path: rows.shape[1] for path, rows in foreign.values.items()}
        if found != widths or {len(r) for r in foreign.keys.values()} != {
            len(r) for r in foreign.values.values()
        }:
            missing = sorted(widths.keys() ^ found.keys())[:3]
            raise ConceptError(
                f"it has values for {len(found)} layers and this model has {len(widths)}; not in "
                f"both: {', '.join(missing) or 'none, but of other widths'}. Load the checkpoint "
                "that it was learned on."
            )
        return foreign.keys, foreign.values
    best: tuple[float, Mapping[str, Tensor], Mapping[str, Tensor]] | None = None
    for order in _orders(list(widths)):
        shapes = [(keys.shape[1], values.shape[1]) for keys, values in foreign.pairs]
        if shapes != [(widths[path], widths[path]) for path in order]:
            continue
        for first, second in ((0, 1), (1, 0)):
            keys = {path: pair[first] for path, pair in zip(order, foreign.pairs, strict=True)}
            values = {path: pair[second] for path, pair in zip(order, foreign.pairs, strict=True)}
            left = _locked(weights["key"], keys)[1]
            if best is None or left < best[0]:
                best = left, keys, values
    if best is None:
        found_widths = [rows.shape[1] for rows, _ in foreign.pairs]
        raise ConceptError(
            f"its layers have no names, and their widths {found_widths} are not those of this "
            f"model's {len(widths)} layers in an order that is known. Load the checkpoint that it "
            "was learned on."
        )
    return best[1], best[2]


def _orders(paths: Sequence[str]) -> list[list[str]]:
    """The orders in which a network's modules may have been gone through: as in this one, and with
    the middle last, as in diffusers."""
    middle = [path for path in paths if path.startswith("middle_block")]
    others = [path for path in paths if path not in middle]
    return [list(paths)] + ([[*others, *middle]] if middle else [])


def _locked(weights: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> tuple[Tensor, float]:
    """p [T, d] for which W p is nearest to the outputs of all layers, and what is left over,
    relative to the outputs."""
    stacked = torch.cat([weights[path] for path in outputs])
    wanted = torch.cat([rows.double().T for rows in outputs.values()])
    found = torch.linalg.lstsq(stacked, wanted).solution
    left = (stacked @ found - wanted).norm() / wanted.norm().clamp_min(1e-12)
    return found.T, float(left)


def _most_learned(
    weights: Mapping[str, Tensor], values: Mapping[str, Tensor], locked: Tensor
) -> int:
    """The position at which the values are farthest from what they started at."""
    apart = torch.zeros(len(locked), dtype=torch.float64)
    for path, rows in values.items():
        begun = locked @ weights[path].T
        apart += (rows.double() - begun).square().sum(dim=1) / begun.square().mean()
    return int(apart.argmax())
