"""Gradient checkpointing: a block keeps its inputs alone, and runs again for backward.

The blocks' forwards are replaced for one forward pass, like those of the projections. For backward
the block's original forward runs again, with the edit's hooks on its layers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..families import ModelFamily
from .differentiable import Differentiable
from .forward_swap import ForwardSwap
from .models import ComfyMismatch

Again = Callable[[Iterable[str]], AbstractContextManager[Any]]
"""Paths of layers -> the edit's hooks on them, for a block that runs again."""


@contextmanager
def checkpointed(
    network: nn.Module,
    family: ModelFamily,
    layers: Iterable[str],
    prepare: Callable[[Tensor], object],
    again: Again,
) -> Iterator[None]:
    """Within this context the network's blocks are checkpointed; afterwards they are as before.

    Args:
        network: a diffusion model.
        family: its family, which knows its blocks.
        layers: paths of the layers that the edit is on.
        prepare: called with the context of every block before it runs. It makes what the blocks
            share once, so that backward does not make it again for each block.
        again: see `Again`.

    Raises ComfyMismatch when the network has none of the family's blocks.
    """
    layers = tuple(layers)
    with ForwardSwap() as swap:
        for path, block in _blocks(network, family):
            inside = [layer for layer in layers if layer.startswith(f"{path}.")]
            context_of = _reader(block.forward, family.context)
            forward = _checkpointing(
                block.forward, inside, context_of, prepare, again, family.overwrites
            )
            swap.put(block, forward=forward)
        yield


def _blocks(network: nn.Module, family: ModelFamily) -> list[tuple[str, nn.Module]]:
    """The parts of a network that hold nearly all that backward needs, none within another."""
    found = [
        (path, part)
        for path, part in network.named_modules()
        if any(ancestor.__name__ in family.blocks for ancestor in type(part).__mro__)
    ]
    if not found:
        raise ComfyMismatch(
            f"Gradient checkpointing finds no {' or '.join(family.blocks)} in this "
            f"{type(network).__name__} of {family.title}, so it would save no memory. Set "
            "checkpointing to off on Perfusion Train Concept."
        )
    return found


Read = Callable[[Sequence[Any], Mapping[str, Any]], Any]


def _reader(forward: Callable[..., Any], name: str) -> Read:
    """What gives one argument of a call to `forward`, however it is passed; None without it."""
    names = list(inspect.signature(forward).parameters)
    place = names.index(name) if name in names else len(names)

    def read(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        return args[place] if place < len(args) else kwargs.get(name)

    return read


def _checkpointing(
    original: Any,
    layers: list[str],
    context_of: Read,
    prepare: Callable[[Tensor], object],
    again: Again,
    overwrites: bool,
) -> Any:
    def forward(*args: Any, **kwargs: Any) -> Any:
        context = context_of(args, kwargs) if layers else None
        if context is not None:
            prepare(context)
        # ComfyUI writes into its options which block it is at, so the second run gets a copy of
        # them as they were. Everything else in `kwargs` stays the same object, because the edit
        # knows contexts by identity.
        copied = {k: dict(v) if isinstance(v, dict) else v for k, v in kwargs.items()}
        first_run = iter((kwargs,))

        def run(first: Any, *others: Any) -> Any:
            # What a block writes into, its second run needs as it was.
            own = first.clone() if overwrites else first
            return original(own, *others, **next(first_run, copied))

        @contextmanager
        def run_again() -> Iterator[None]:
            with again(layers) if layers else nullcontext(), Differentiable(overwrites):
                yield

        return checkpoint(
            run,
            *args,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), run_again()),
        )

    return forward
