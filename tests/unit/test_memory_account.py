"""The account that docs/memory.md stands on: what lives is counted, once, while it lives."""

from __future__ import annotations

import torch
from torch import nn

from tests.benchmarks.memory import Account, Flash, at_true_shapes


def test_what_lives_is_counted_once_and_until_nothing_holds_it() -> None:
    with Account() as account:
        first = torch.zeros(1000)
        view = first[:10].view(2, 5)
        second = torch.zeros(500)
        assert account.live == 6000
        del second
        assert account.live == 4000
        del first
        assert account.live == 4000  # the view holds it
        del view
        assert account.live == 0
    assert account.peak == 6000


def test_a_step_of_a_network_is_counted_without_its_numbers() -> None:
    with at_true_shapes(), Account() as account:
        network = nn.Sequential(nn.Linear(1000, 1000, bias=False), nn.ReLU())
        network.requires_grad_(False)
        weights = account.live
        assert weights == 4_000_000
        x = torch.empty(1_000_000, 1000, requires_grad=True)  # 4 GB: no machine of ours has them
        network(x).sum().backward()
    # The input, what the layer gave and the ReLU kept or gave; on the way back as much again.
    assert 12e9 < account.peak - weights < 21e9


def test_attention_keeps_no_probabilities() -> None:
    with at_true_shapes(), Account() as account:
        q, k, v = (torch.empty(1, 8, 16384, 64, requires_grad=True) for _ in range(3))
        before = account.live
        out = nn.functional.scaled_dot_product_attention(q, k, v)
        kept = account.live - before
        out.sum().backward()
    assert isinstance(Flash, type)
    assert kept == q.nbytes + 8 * 16384 * 4  # the output, and a number a row
    assert q.grad is not None
    assert q.grad.shape == q.shape
