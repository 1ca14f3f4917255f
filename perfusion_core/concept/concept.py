"""A learned concept: a few vectors that turn a placeholder in a prompt into one thing."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ..families import FAMILIES, ModelFamily
from ..method.settings import ConceptSettings
from .word_choice import unreadable, unwise

# What no training comes near: encodings of CLIP are below 100, and so is what layers make of them.
MAX_NUMBER = 1000.0
# u = C^-1 i is as much larger as the smallest direction of the encodings is smaller than one.
MAX_WHITENED = 1e9
# |i| |u| / i^T u: at most the square root of the condition of C, and that in fp32.
MAX_CONDITION = 1e7
MAX_RECOMMENDED = 1000.0  # bias, temperature; sliders end at 2


class ConceptError(ValueError):
    """A concept or its file is not usable here. The message says what is wrong and what to do."""


@dataclass(frozen=True, eq=False)
class Concept:
    """What training learns and a concept file holds. Valid by construction, never changed.

    Dimensions: n vectors of the placeholder, w width of an encoder's token embeddings, d width of
    the context, out width of a layer's values. Tensors are kept on the CPU at the file's precision
    (fp16; fp32 for `whitened_target`), so that a concept is the same before and after saving.

    Attributes:
        name: what a user calls it.
        family: id of a `ModelFamily`.
        placeholder: the word in a prompt that stands for the concept, such as "teddy*".
        superclass: the ordinary word for what the concept is, such as "teddy".
        embeddings: text encoder -> the placeholder's learned vectors [n, w].
        target_input: i [d].
        whitened_target: u = C^-1 i [d], of exactly the i above.
        superclass_encoding: p [d]; the locked key of a layer is W_K p.
        values: layer path -> D [out], the learned value less W_V p, such as
            "input_blocks.1.1.transformer_blocks.0.attn2".
        keys: layer path -> D^K [out], the learned key less W_K p, for a concept of trained keys;
            empty for locked ones, as published.
        bias, temperature: recommended settings.
        covariance_fingerprint: `Covariance.fingerprint` of the C in u.
        training: how it was trained; anything JSON can hold.
        author, licence: "" when not given.
        preview: a small encoded picture (PNG, JPEG or WebP), or None.

    Raises ConceptError when a part is missing, has a wrong shape or holds NaN or infinity.
    """

    name: str
    family: str
    placeholder: str
    superclass: str
    embeddings: Mapping[str, Tensor]
    target_input: Tensor
    whitened_target: Tensor
    superclass_encoding: Tensor
    values: Mapping[str, Tensor]
    keys: Mapping[str, Tensor] = field(default_factory=dict)
    bias: float = ConceptSettings.bias
    temperature: float = ConceptSettings.temperature
    covariance_fingerprint: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    author: str = ""
    licence: str = ""
    preview: bytes | None = None

    def __post_init__(self) -> None:
        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        half, single = torch.float16, torch.float32
        put("embeddings", _stored_mapping(self.embeddings, half))
        put("values", _stored_mapping(self.values, half))
        put("keys", _stored_mapping(self.keys, half))
        put("target_input", _stored(self.target_input, half))
        put("superclass_encoding", _stored(self.superclass_encoding, half))
        # Not rounded further: u . e cancels, so an error here would be magnified in the similarity.
        put("whitened_target", _stored(self.whitened_target, single))
        put("training", MappingProxyType(dict(self.training)))
        check_readable_words(self.placeholder, self.superclass)
        if self.family not in FAMILIES:
            raise ConceptError(
                f'the model family "{self.family}" is not known; this version knows '
                f"{', '.join(FAMILIES)}. Update Perfusion, or use a concept of one of these."
            )
        self._check_shapes()
        self._check_numbers()

    @property
    def width(self) -> int:
        """d: the width of the text encodings that the concept was made for."""
        return self.target_input.shape[0]

    @property
    def vectors(self) -> int:
        """n: how many vectors the placeholder takes in a prompt."""
        return next(iter(self.embeddings.values())).shape[0]

    @property
    def layers(self) -> dict[str, int]:
        """Layer path -> out, the width of that layer's values."""
        return {path: value.shape[0] for path, value in self.values.items()}

    @property
    def settings(self) -> ConceptSettings:
        """The recommended bias and temperature, at strength 1."""
        return ConceptSettings(self.bias, self.temperature)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by the name it has in a file."""
        return {
            "target_input": self.target_input,
            "whitened_target": self.whitened_target,
            "superclass_encoding": self.superclass_encoding,
            **{f"embedding.{encoder}": t for encoder, t in self.embeddings.items()},
            **{f"value.{path}": t for path, t in self.values.items()},
            **{f"key.{path}": t for path, t in self.keys.items()},
        }

    @cached_property
    def hash(self) -> str:
        """sha256 (hex) of the names, dtypes, shapes and bytes of all tensors, in order of names."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.tensors().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()

    def _check_shapes(self) -> None:
        family = FAMILIES[self.family]
        for name in ("target_input", "whitened_target", "superclass_encoding"):
            _expect_shape(name, getattr(self, name), (family.context_width,), family)
        if set(self.embeddings) != set(family.encoders):
            raise ConceptError(
                f"there are embeddings for the text encoders {_listed(self.embeddings)}, but "
                f"{family.title} has {_listed(family.encoders)}"
            )
        for encoder, width in family.encoders.items():
            _expect_shape(
                f"embedding.{encoder}", self.embeddings[encoder], (self.vectors, width), family
            )
        if not self.vectors:
            raise ConceptError("the placeholder has no vectors; at least one is needed")
        if not self.values:
            raise ConceptError("there are no learned values for any layer")
        for path, value in self.values.items():
            if value.dim() != 1:
                raise ConceptError(f"value.{path} has the shape {_shape(value)}; expected [out]")
        odd = [path for path in self.values if not family.may_have(path)]
        if odd:
            raise ConceptError(
                f"there are values for {_listed(odd)}, but no cross-attention layer of "
                f"{family.title} can have such a name. Get another copy, or train it again."
            )
        if self.keys and self.keys.keys() != self.values.keys():
            odd = sorted(self.keys.keys() ^ self.values.keys())
            raise ConceptError(
                f"there are keys for {len(self.keys)} layers and values for {len(self.values)}; "
                f"only one of the two for {_listed(odd)}. Get another copy, or train it again."
            )
        for path, key in self.keys.items():
            _expect_shape(f"key.{path}", key, tuple(self.values[path].shape), family)

    def _check_numbers(self) -> None:
        for name, tensor in self.tensors().items():
            if not bool(tensor.isfinite().all()):
                raise ConceptError(
                    f"{name} holds NaN or infinity: the concept is broken, most likely because its "
                    "training diverged. Train it again with lower rates, or get another copy."
                )
        norm = float(self.target_input.double() @ self.whitened_target.double())
        if norm <= 0:
            raise ConceptError(
                "target_input and whitened_target do not belong together: their product is "
                f"{norm:.3g} and must be above 0. Train the concept again, or get another copy."
            )
        self._check_sizes(norm)
        check_recommended(self.bias, self.temperature)

    def _check_sizes(self, norm: float) -> None:
        """Raise ConceptError for numbers that are finite and useless: sampling would overflow.

        Args:
            norm: i^T C^-1 i.
        """
        for name, tensor in self.tensors().items():
            largest = float(tensor.abs().max()) if tensor.numel() else 0.0
            if largest > (MAX_WHITENED if name == "whitened_target" else MAX_NUMBER):
                raise ConceptError(
                    f"{name} holds the number {largest:.3g}, far from any that training gives: the "
                    "concept would make black pictures. Train it again with lower rates, or get "
                    "another copy."
                )
        lengths = float(self.target_input.double().norm() * self.whitened_target.double().norm())
        if lengths > MAX_CONDITION * norm:
            raise ConceptError(
                "target_input and whitened_target do not belong together: they are nearly at right "
                "angles, so that any word would open the gate. Train the concept again, or get "
                "another copy."
            )


def check_recommended(bias: float, temperature: float) -> None:
    """Raise ConceptError unless a concept can recommend these."""
    for name, number in (("bias", bias), ("temperature", temperature)):
        if not (math.isfinite(number) and abs(number) <= MAX_RECOMMENDED):
            raise ConceptError(
                f"the recommended {name} is {number}; it must be a number of at most "
                f"{MAX_RECOMMENDED}"
            )
    if temperature <= 0:
        raise ConceptError(f"the recommended temperature is {temperature}; it must be above 0")


def check_readable_words(placeholder: str, superclass: str) -> None:
    """Raise ConceptError unless a prompt can hold the two words; for words that are in a file."""
    if problem := unreadable(placeholder, superclass):
        raise ConceptError(problem)


def check_words(placeholder: str, superclass: str) -> None:
    """Raise ConceptError unless the two words can name a concept; for words that are chosen."""
    if problem := unreadable(placeholder, superclass) or unwise(placeholder):
        raise ConceptError(problem)


def check_fits(concept: Concept, family: ModelFamily, layers: Mapping[str, int]) -> None:
    """Raise ConceptError unless the concept can be applied to a model.

    Args:
        family: the model's.
        layers: path -> width of the values, of all the model's cross-attention layers.
    """
    if concept.family != family.id:
        made_for = FAMILIES[concept.family]
        raise ConceptError(
            f'the concept "{concept.name}" was trained for {made_for.title} (text width '
            f"{concept.width}), but this model is {family.title} (text width "
            f"{family.context_width}). Load a model of the concept's family, or train the concept "
            "for this one."
        )
    if concept.layers != dict(layers):
        missing = sorted(layers.keys() - concept.layers.keys())
        unknown = sorted(concept.layers.keys() - layers.keys())
        shared = layers.keys() & concept.layers.keys()
        wider = sorted(path for path in shared if layers[path] != concept.layers[path])
        raise ConceptError(
            f'the concept "{concept.name}" has values for {len(concept.values)} layers and the '
            f"model has {len(layers)}: without a value {_listed(missing)}; not in the model "
            f"{_listed(unknown)}; of another width {_listed(wider)}. This model is not laid out as "
            "the one it was trained for: use one that is, or train the concept for this one."
        )


def _stored(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    # A clone always, so that nobody else's tensor can change a concept.
    return tensor.detach().to(device="cpu", dtype=dtype, copy=True).contiguous()


def _stored_mapping(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Mapping[str, Tensor]:
    return MappingProxyType({name: _stored(tensor, dtype) for name, tensor in tensors.items()})


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))


def _expect_shape(name: str, tensor: Tensor, shape: tuple[int, ...], family: ModelFamily) -> None:
    if tuple(tensor.shape) != shape:
        raise ConceptError(
            f"{name} has the shape {_shape(tensor)}; expected {list(shape)} for {family.title}"
        )


def _listed(names: Mapping[str, object] | list[str]) -> str:
    """The first few of some names, and how many more there are."""
    shown, rest = list(names)[:3], len(names) - 3
    return (", ".join(shown) or "none") + (f" and {rest} more" if rest > 0 else "")
