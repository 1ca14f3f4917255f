"""Gradient checkpointing of CLIP's text encoders: SDXL's two are a third of what training holds.

ComfyUI runs text encoders in fp32, and casts weights of 16 bits for each layer. Autograd holds what
was cast until the end of the step, unless the layer runs again for backward: then one layer's is
there at a time. ComfyUI's layers add to their input in place (`x += ...`), which one that runs
again must not do: `_NotInPlace`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from .differentiable import Differentiable
from .forward_swap import ForwardSwap

# ComfyUI's class of a layer of CLIP. Of language models' a step keeps less, beside the network's.
LAYER = "CLIPLayer"


def encoder_layers(encoder: Any) -> list[nn.Module]:
    """The layers of CLIP's text encoders in a CLIP's `cond_stage_model`; none of other encoders."""
    return [part for part in encoder.modules() if type(part).__name__ == LAYER]


def all_checkpointed(encoder: Any) -> bool:
    """Whether nearly all weights of the encoders are in such layers, but for tables of words."""
    inside = sum(p.numel() for layer in encoder_layers(encoder) for p in layer.parameters())
    tables = [p for p in encoder.modules() if isinstance(p, nn.Embedding)]
    outside = sum(p.numel() for p in encoder.parameters()) - inside
    outside -= sum(p.numel() for table in tables for p in table.parameters())
    return bool(10 * outside < inside)


@contextmanager
def checkpointed_encoder(encoder: Any) -> Iterator[None]:
    """Within this context the layers of the encoders run again for backward."""
    with ForwardSwap() as swap:
        for layer in encoder_layers(encoder):
            swap.put(layer, forward=_checkpointing(layer.forward))
        yield


def _checkpointing(original: Any) -> Any:
    def run(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        with _NotInPlace(x):
            return original(x, *args, **kwargs)

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return original(*args, **kwargs)
        return checkpoint(
            run,
            *args,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), Differentiable()),
            **kwargs,
        )

    return forward


class _NotInPlace(TorchFunctionMode):
    """Within this context `x += y` makes a new x, of a layer's input and what became of it.

    Of nothing else: elsewhere a method of torch's that adds in place may be meant.
    """

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self._x = x

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is Tensor.add_ and args[0] is self._x:
            self._x = torch.add(*args, **(kwargs or {}))
            return self._x
        return func(*args, **(kwargs or {}))
