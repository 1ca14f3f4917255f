"""Inputs of nodes that take lists: which of them may be many, and what is said of the others.

A node with `is_input_list` gets a list for every input, also for a number that was typed into its
field. What may be many (pictures, captions) it reads as a list. Everything else is one thing: a
list there is refused, because training with the first of it and without a word would drop the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..perfusion_core.method.batches import TrainingError


def the_one(name: str, values: Sequence[Any]) -> Any:
    """The one value of an input. Raises TrainingError with the count where it is not one."""
    if len(values) != 1:
        raise TrainingError(
            f'The input "{name}" got a list of {len(values)} values; it takes one. Connect a node '
            "that gives a single value, or pick one of the list."
        )
    return values[0]


def single_values(inputs: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Each input's one value, by its name. Raises TrainingError for an input that is not one."""
    return {name: the_one(name, values) for name, values in inputs.items()}
