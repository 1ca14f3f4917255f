"""Other forwards on modules for a while: all come off, however the while ends."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from perfusion_core.comfy.forward_swap import ForwardSwap


def doubled(module: torch.nn.Module) -> Any:
    forward = module.forward
    return lambda *args: 2 * forward(*args)


@pytest.fixture
def module() -> torch.nn.Module:
    return torch.nn.Identity()


ONE = torch.ones(1)


def test_a_module_has_what_was_put_on_it_until_the_end(module: torch.nn.Module) -> None:
    with ForwardSwap() as swap:
        swap.put(module, forward=doubled(module), note="here")
        assert module(ONE) == 2
        assert module.note == "here"
    assert module(ONE) == 1
    assert not {"forward", "note"} & vars(module).keys()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_takes_everything_off(module: torch.nn.Module, error: type[BaseException]) -> None:
    other = torch.nn.Identity()

    def fail() -> None:
        with ForwardSwap() as swap:
            swap.put(module, forward=doubled(module))
            swap.put(other, forward=doubled(other))
            raise error

    with pytest.raises(error):
        fail()
    assert module(ONE) == other(ONE) == 1


def test_swaps_within_one_another_come_off_in_turn(module: torch.nn.Module) -> None:
    with ForwardSwap() as outer:
        outer.put(module, forward=doubled(module))
        with ForwardSwap() as inner:
            inner.put(module, forward=doubled(module))
            assert module(ONE) == 4
        assert module(ONE) == 2
        # The same module twice in one.
        outer.put(module, forward=doubled(module))
        assert module(ONE) == 4
    assert module(ONE) == 1
    assert "forward" not in vars(module)


def test_what_somebody_else_has_put_there_is_there_afterwards(module: torch.nn.Module) -> None:
    theirs = doubled(module)
    module.forward = theirs  # type: ignore[method-assign]
    with ForwardSwap() as swap:
        swap.put(module, forward=doubled(module))
        assert module(ONE) == 4
    assert vars(module)["forward"] is theirs


def test_an_end_that_comes_twice_changes_nothing_more(module: torch.nn.Module) -> None:
    swap = ForwardSwap()
    with swap:
        swap.put(module, forward=doubled(module))
    module.forward = doubled(module)  # type: ignore[method-assign]
    with swap:
        pass
    assert module(ONE) == 2
