"""What autograd cannot go back through in ComfyUI, in plain torch, gives the same numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from perfusion_core.comfy.differentiable import Differentiable

PAIRS = ["apply_rope", "apply_rope_split_half", "rms_rope", "rms_rope_split_half"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [*PAIRS, *(f"{name}1" for name in PAIRS)])
def test_turned_queries_and_keys_are_comfy_kitchens_with_a_gradient(
    name: str, dtype: torch.dtype
) -> None:
    kitchen = pytest.importorskip("comfy_kitchen", reason="this ComfyUI has no comfy-kitchen")
    if not hasattr(kitchen, name):
        pytest.skip(f"its comfy-kitchen has no {name}")
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    turned = [random(2, 6, 2, 8) for _ in range(1 if name.endswith("1") else 2)]
    scales = [random(8) for _ in turned] if name.startswith("rms") else []
    rotations = torch.randn(1, 6, 1, 4, 2, 2, generator=generator)

    def run(first: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found: Any = getattr(kitchen, name)(first, *turned[1:], rotations, *scales)
        return found if isinstance(found, tuple) else (found,)

    stock = run(turned[0])
    leaf = turned[0].clone().requires_grad_()
    with Differentiable():
        ours = run(leaf)
    for own, theirs in zip(ours, stock, strict=True):
        assert own.dtype == theirs.dtype
        assert torch.allclose(own, theirs, rtol=1e-6, atol=1e-6)
    ours[0].float().sum().backward()
    assert leaf.grad is not None
    assert bool(leaf.grad.any())


def test_a_sum_into_a_tensor_has_a_gradient_and_is_in_it() -> None:
    leaf = torch.ones(3, requires_grad=True)
    place = leaf * 2
    with Differentiable():
        found = torch.add(place * 3, leaf, out=place)
    assert found is place
    assert place.tolist() == [7.0] * 3
    found.sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.tolist() == [7.0] * 3


def test_without_gradients_nothing_is_done_otherwise() -> None:
    place = torch.zeros(3)
    with torch.no_grad(), Differentiable():
        assert torch.add(torch.ones(3), torch.ones(3), out=place) is place
    assert place.tolist() == [2.0] * 3
