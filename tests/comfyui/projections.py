"""What reaches attention: a tap on the key and value projections, and the paper's formulas for it.

The tap notes what goes into a projection and what comes out of it, whoever calls it, at every pass.
So it tells whether the edit is exact whatever else is on the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import comfy.ops
import torch

from perfusion_core.comfy.concept_entry import ConceptEntry
from perfusion_core.comfy.models import Layer, detect_family, layers_of
from perfusion_core.method.gram import LEAST_APART

Texts = Iterable[tuple[torch.Tensor, torch.Tensor]]

# The relative error that rounding in a dtype may leave. On the tiny models, with one concept, the
# worst are 2.7e-7, 3.8e-4 and 3.0e-3; gates and projection in bf16 instead of fp32 give 3.3e-3 in
# fp16 and 3.6e-3 in bf16.
TOLERANCES = {torch.float32: 3e-6, torch.float16: 6e-4, torch.bfloat16: 3.3e-3}


@dataclass(frozen=True)
class Projected:
    """One call of a key or value projection.

    Attributes:
        path: of the layer.
        kind: "k" or "v".
        weight: [out, d] in float64, what ComfyUI multiplied with: patched, cast and all.
        cast: whether ComfyUI cast the weight for this call.
        context: e [B, T, d], the text that the projection was called with.
        output: [B, T, out], what attention got.
    """

    path: str
    kind: str
    weight: torch.Tensor
    cast: bool
    context: torch.Tensor
    output: torch.Tensor

    @property
    def plain(self) -> torch.Tensor:
        """W e in float64: the output without any concept."""
        return self.context.double() @ self.weight.T


@contextmanager
def tapped_layers(layers: Mapping[str, Layer]) -> Iterator[list[Projected]]:
    """Every call of the layers' projections within this context, in order."""
    seen: list[Projected] = []

    def tap(path: str, kind: str) -> Any:
        def note(module: Any, inputs: Any, output: torch.Tensor) -> None:
            weight = comfy.ops.cast_bias_weight(module, inputs[0])[0].double().clone()
            cast = bool(module.comfy_cast_weights)
            seen.append(Projected(path, kind, weight, cast, inputs[0].clone(), output.clone()))

        return note

    handles = [
        module.register_forward_hook(tap(path, kind))
        for path, layer in layers.items()
        for kind, module in (("k", layer.key), ("v", layer.value))
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def tapped(model: Any) -> Any:
    """Every call of a MODEL's cross-attention projections within this context."""
    return tapped_layers(layers_of(model, detect_family(model)))


def reference(
    weight: torch.Tensor, context: torch.Tensor, stack: Iterable[ConceptEntry], path: str | None
) -> torch.Tensor:
    """The edit in float64: h = W e + sum_j g_j (o_j - s_j W i_j). No path: keys.

    s are e's coordinates along the concepts, in which eigenvalues of the concepts' correlations
    below LEAST_APART are raised to it.
    """
    w, e = weight.double(), context.double()
    stack = list(stack)
    concepts = [entry.concept for entry in stack]
    inputs = torch.stack([c.target_input.double() for c in concepts], dim=1)
    whitened = torch.stack([c.whitened_target.double() for c in concepts], dim=1)
    gram = whitened.T @ inputs
    lengths = gram.diagonal().sqrt()
    values, vectors = torch.linalg.eigh(gram / lengths / lengths[:, None])
    blunt = (vectors * values.clamp(min=LEAST_APART)) @ vectors.T * lengths * lengths[:, None]
    similarities = torch.linalg.solve(blunt, (e @ whitened).mT).mT
    h = e @ w.T
    for j, (entry, concept) in enumerate(zip(stack, concepts, strict=True)):
        gate = torch.sigmoid(
            (similarities[..., j] - entry.settings.bias) / entry.settings.temperature
        )
        output = w @ concept.superclass_encoding.double()
        if path is not None:
            output = output + concept.values[path].double()
        taken = similarities[..., j, None] * (w @ inputs[:, j])
        h = h + gate[..., None] * (output - taken)
    return h


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """How far apart two tensors are, relative to the second."""
    return float((found.double() - expected).norm() / expected.norm())


def assert_edited(
    seen: Iterable[Projected],
    *stack: ConceptEntry,
    added: Mapping[str, torch.Tensor] | None = None,
    least: float = 0.05,
) -> None:
    """That keys and values are the paper's, within the dtype's rounding, and not the stock ones.

    Args:
        added: "<path>.k" or "<path>.v" -> what another pack adds to that projection's weight
            without ComfyUI knowing it.
        least: how much the concept changes at least, so that its lack would be seen.
    """
    seen = list(seen)
    assert seen
    for p in seen:
        weight = p.weight + (added or {}).get(f"{p.path}.{p.kind}", 0)
        expected = reference(weight, p.context, stack, p.path if p.kind == "v" else None)
        assert error(p.output, expected) < TOLERANCES[p.output.dtype], (p.path, p.kind)
    assert max(error(p.output, p.plain) for p in seen) > least


def assert_plain(seen: Iterable[Projected]) -> None:
    """That keys and values are those of the stock layers."""
    seen = list(seen)
    assert seen
    for p in seen:
        assert error(p.output, p.plain) < TOLERANCES[p.output.dtype], (p.path, p.kind)


def assert_locked(
    seen: Iterable[Projected], texts: Texts, added: Mapping[str, torch.Tensor] | None = None
) -> None:
    """That all keys are those of the superclass prompts.

    Args:
        texts: every prompt's encoding [1, T, d] and that of its superclass twin.
        added: as for `assert_edited`.
    """
    keys = [p for p in seen if p.kind == "k"]
    texts = list(texts)
    assert keys
    for p in keys:
        weight = p.weight + (added or {}).get(f"{p.path}.k", 0)
        for context, output in zip(p.context, p.output, strict=True):
            twins = [twin[0] for own, twin in texts if torch.equal(own[0].to(context), context)]
            assert twins, "a prompt that no one wrote"
            assert error(output, twins[0].double() @ weight.T) < TOLERANCES[output.dtype]


def batches(seen: Iterable[Projected]) -> list[int]:
    """How many prompts each pass had."""
    keys = [p for p in seen if p.kind == "k"]
    return [p.context.shape[0] for p in keys if p.path == keys[0].path]
