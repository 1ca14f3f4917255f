"""A textual inversion as a start for training: a concept that has learned no values yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..concept.concept import Concept, ConceptError
from ..concept.foreign import ForeignEmbedding
from ..families import ModelFamily
from ..method.templates import templates_for
from ..method.training_settings import MAX_VECTORS
from .clip_covariance import covariance_of
from .encoding import encode
from .models import layers_of
from .protocols import Clip, Model
from .training_checks import check_pair
from .training_words import superclass_vectors, with_training_word


def start_of(
    foreign: ForeignEmbedding,
    model: Model,
    clip: Clip,
    family: ModelFamily,
    word: str,
    kind: str,
) -> Concept:
    """A concept of an embedding's vectors whose values are the superclass's.

    Raises ConceptError for an embedding of other text encoders, ComfyMismatch for a CLIP that is
    not the model's.
    """
    from comfy import model_management

    check_pair(model, clip)
    vectors = _for_encoders(foreign.vectors, family)
    covariance = covariance_of(clip, model=model)
    patchers: list[Any] = [clip.patcher, model] if family.adapter else [clip.patcher]
    model_management.load_models_gpu(patchers)
    prompts = [template.format(word) for template in templates_for(kind)]
    with torch.inference_mode(False), torch.no_grad():
        i = _encoding(model, clip, family, prompts, word, vectors, kind).half()
        own = superclass_vectors(clip, family, kind)
        p = _encoding(model, clip, family, prompts, word, own, kind)
        return Concept(
            name=word.strip("*<>$_") or word,
            family=family.id,
            placeholder=word,
            superclass=kind,
            embeddings=vectors,
            target_input=i,
            whitened_target=covariance.whiten(i),
            superclass_encoding=p,
            values={path: torch.zeros(one.out) for path, one in layers_of(model, family).items()},
            covariance_fingerprint=covariance.fingerprint,
            training={"imported_from": "a textual inversion", "word": foreign.word[:100]},
        )


def _for_encoders(vectors: Mapping[str, Tensor], family: ModelFamily) -> dict[str, Tensor]:
    """Text encoder -> vectors [n, w]. Raises ConceptError for an embedding of other encoders."""
    wanted = dict(family.encoders)
    found = dict(vectors)
    if "" in found and len(wanted) == 1:
        found = {next(iter(wanted)): found[""]}
    told = ", ".join(f"{name or 'one encoder'} (width {t.shape[1]})" for name, t in vectors.items())
    if {name: t.shape[1] for name, t in found.items()} != wanted:
        listed = ", ".join(f"{name} (width {width})" for name, width in wanted.items())
        raise ConceptError(
            f"this embedding is for {told}; {family.title} has {listed}. Use an embedding that was "
            "made for this kind of model."
        )
    counts = {len(t) for t in found.values()}
    if len(counts) != 1 or max(counts) > MAX_VECTORS:
        raise ConceptError(
            f"this embedding has {' and '.join(map(str, sorted(counts)))} vectors; a concept has "
            f"the same number for each text encoder, and at most {MAX_VECTORS}. Use a smaller one."
        )
    return found


def _encoding(
    model: Model,
    clip: Clip,
    family: ModelFamily,
    prompts: Sequence[str],
    word: str,
    vectors: Mapping[str, Tensor],
    kind: str,
) -> Tensor:
    """The mean encoding [d] of the word's last vector over the prompts."""
    knowing = with_training_word(clip, word, vectors, kind)
    encoding = encode(knowing, prompts, base=model.model if family.adapter else None)
    last = encoding.vectors & ~encoding.vectors.roll(-1, dims=1)
    return encoding.context[last].double().mean(dim=0).cpu()
