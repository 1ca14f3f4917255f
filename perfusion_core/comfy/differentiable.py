"""What autograd cannot go back through, in plain torch, while training.

Some things in ComfyUI end a step in an error: comfy-kitchen's rotary position embeddings and its
norms, which have no backward, `torch.add(..., out=...)` in its language models, and blocks that
write into what a norm has kept for backward. Within `Differentiable` the same numbers come from
torch's own functions, those of comfy-kitchen but for rounding. No function is replaced: torch
itself asks a mode, within a `with` and on one thread, what to do in the place of a call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# How torch writes the names of comfy-kitchen's functions.
_PREFIX = "comfy_kitchen::"


class Differentiable(TorchFunctionMode):
    """Within this context gradients flow through what else has no backward.

    Args:
        overwrites: whether blocks write into what a norm was given; the norm then gets a copy.
    """

    def __init__(self, overwrites: bool = False) -> None:
        super().__init__()
        self._overwrites = overwrites

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        if torch.is_grad_enabled():
            name = str(getattr(func, "_qualified_op_name", ""))
            plain = _PLAIN.get(name.removeprefix(_PREFIX)) if name.startswith(_PREFIX) else None
            if plain is not None:
                return plain(*args, **given)
            if self._overwrites and func in _NORMS and _has_gradient(args[0]):
                return func(args[0].clone(), *args[1:], **given)
            out = given.get("out")
            if isinstance(out, Tensor) and any(map(_has_gradient, (out, *args))):
                return out.copy_(func(*args, **{k: v for k, v in given.items() if k != "out"}))
        return func(*args, **given)


def _has_gradient(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _pairs(x: Tensor, rotations: Tensor) -> Tensor:
    """Rotates the pairs (2i, 2i + 1) of x [..., n]; rotations [..., n/2, 2, 2]."""
    pairs = x.to(rotations.dtype).reshape(*x.shape[:-1], -1, 1, 2)
    return (_cut(x, rotations) * pairs).sum(-1).flatten(-2).to(x.dtype)


def _halves(x: Tensor, rotations: Tensor) -> Tensor:
    """Rotates the pairs (i, i + n/2) of x [..., n]; rotations [..., n/2, 2, 2]."""
    halves = x.to(rotations.dtype).reshape(*x.shape[:-1], 2, -1)
    pairs = halves.movedim(-2, -1)[..., None, :]
    return (rotations * pairs).sum(-1).movedim(-1, -2).flatten(-2).to(x.dtype)


def _cut(x: Tensor, rotations: Tensor) -> Tensor:
    """Rotations of as many places as there are, where there are more."""
    if min(x.dim(), rotations.dim()) > 2 and 1 != x.shape[2] < rotations.shape[2]:
        return rotations[:, :, : x.shape[2]]
    return rotations


_Rotate = Callable[[Tensor, Tensor], Tensor]


def _both(rotate: _Rotate) -> Callable[..., tuple[Tensor, Tensor]]:
    def plain(q: Tensor, k: Tensor, freqs_cis: Tensor) -> tuple[Tensor, Tensor]:
        return rotate(q, freqs_cis), rotate(k, freqs_cis)

    return plain


def _normed(rotate: _Rotate) -> Callable[..., Tensor]:
    """Of an RMS norm and a rotation of the first `rot_dim` numbers (0: of all)."""

    def plain(
        x: Tensor, freqs_cis: Tensor, scale: Tensor, epsilon: float = 1e-6, rot_dim: int = 0
    ) -> Tensor:
        normed = torch.nn.functional.rms_norm(x, x.shape[-1:], scale, epsilon)
        turned = rot_dim or x.shape[-1]
        rotated = rotate(normed[..., :turned], freqs_cis)
        return torch.cat([rotated, normed[..., turned:]], dim=-1)

    return plain


def _both_normed(rotate: _Rotate) -> Callable[..., tuple[Tensor, Tensor]]:
    one = _normed(rotate)

    def plain(
        q: Tensor,
        k: Tensor,
        freqs_cis: Tensor,
        q_scale: Tensor,
        k_scale: Tensor | None = None,
        epsilon: float = 1e-6,
        rot_dim: int = 0,
    ) -> tuple[Tensor, Tensor]:
        of_keys = q_scale if k_scale is None else k_scale
        return (
            one(q, freqs_cis, q_scale, epsilon, rot_dim),
            one(k, freqs_cis, of_keys, epsilon, rot_dim),
        )

    return plain


def _modulated(x: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-6) -> Tensor:
    """An RMS norm of x [..., n], scaled and shifted; x may be written into afterwards."""
    return torch.nn.functional.rms_norm(x.clone(), x.shape[-1:], eps=eps) * (1 + scale) + shift


# Where `overwrites` matters.
_NORMS = (torch.nn.functional.rms_norm, torch.rms_norm)

# Of comfy-kitchen's functions, by name, those that give new tensors.
_PLAIN: Mapping[str, Callable[..., Any]] = {
    "apply_rope1": _pairs,
    "apply_rope": _both(_pairs),
    "apply_rope_split_half1": _halves,
    "apply_rope_split_half": _both(_halves),
    "rms_rope1": _normed(_pairs),
    "rms_rope": _both_normed(_pairs),
    "rms_rope_split_half1": _normed(_halves),
    "rms_rope_split_half": _both_normed(_halves),
    "rms_adaln": _modulated,
}
