"""Gradient checkpointing: a block of a network keeps what went in, and runs again for backward.

Like the edit's hooks, the blocks' stand-in forwards are there for one forward pass alone; what runs
again is the forward that was there before, with the edit's hooks put in for it once more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import checkpoint

Again = Callable[[Iterable[str]], AbstractContextManager[Any]]
"""Paths of layers -> the edit's hooks on them, for a block that runs again."""


@contextmanager
def checkpointed(
    network: Any, layers: Iterable[str], prepare: Callable[[Tensor], object], again: Again
) -> Iterator[None]:
    """Within this context the network's blocks are checkpointed; afterwards they are as before.

    Args:
        network: a host's UNet.
        layers: paths of the layers that the edit is on.
        prepare: called with the context of every block before it runs. What blocks share is made
            there, once, and not again with each.
        again: see `Again`.
    """
    layers = tuple(layers)
    before: list[tuple[Any, dict[str, Any]]] = []
    try:
        for path, block in _blocks(network):
            own = block.__dict__
            inside = [layer for layer in layers if layer.startswith(f"{path}.")]
            forward = _checkpointing(block.forward, inside, prepare, again)
            before.append((block, {"forward": own["forward"]} if "forward" in own else {}))
            own["forward"] = forward
        yield
    finally:
        for block, entries in reversed(before):
            block.__dict__.pop("forward", None)
            block.__dict__.update(entries)


def _blocks(network: Any) -> list[tuple[str, Any]]:
    """The parts of a UNet that hold nearly all that backward needs, none within another."""
    from comfy.ldm.modules.attention import BasicTransformerBlock
    from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock

    kinds = (BasicTransformerBlock, ResBlock)
    return [(path, part) for path, part in network.named_modules() if isinstance(part, kinds)]


def _checkpointing(
    original: Any, layers: list[str], prepare: Callable[[Tensor], object], again: Again
) -> Any:
    def forward(*args: Any, **kwargs: Any) -> Any:
        if layers and kwargs.get("context") is not None:
            prepare(kwargs["context"])
        # The host goes on writing into its options (which block it is at): what runs again is
        # given them as they were. The rest of `kwargs` stays the very objects, by which the edit
        # knows its contexts.
        given = [kwargs, {k: dict(v) if isinstance(v, dict) else v for k, v in kwargs.items()}]

        def run(*tensors: Any) -> Any:
            return original(*tensors, **given.pop(0) if len(given) > 1 else given[0])

        return checkpoint(
            run,
            *args,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), again(layers) if layers else nullcontext()),
        )

    return forward
