"""Attention of words: its shares, sizes of layers, sums over layers, maps as pictures."""

from __future__ import annotations

import pytest
import torch

from perfusion_core.method import attention
from perfusion_core.method.attention import (
    AttentionMaps,
    AttentionSums,
    layer_size,
    own_words,
    word_attention,
)


def test_a_token_is_the_word_of_the_concept_that_it_is_most_like() -> None:
    similarity = torch.tensor([[0.1, 0.0], [1.0, 0.8], [0.6, 0.9], [0.49, 0.3]])
    expected = [[False, False], [True, False], [False, True], [False, False]]
    assert own_words(similarity).tolist() == expected


def test_shares_are_those_of_the_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    queries, keys = torch.randn(2, 12, 8), torch.randn(2, 5, 8)
    words = torch.zeros(2, 5, 3, dtype=torch.bool)
    words[:, 1, 0] = words[0, 2:4, 1] = True
    words[..., 2] = True
    expected = torch.zeros(2, 12, 3)
    for head in (slice(0, 4), slice(4, 8)):
        weights = (queries[..., head] @ keys[..., head].mT / 2).softmax(dim=-1)
        expected += weights @ words.float() / 2
    shares = word_attention(queries, keys, 2, words)
    torch.testing.assert_close(shares, expected)
    torch.testing.assert_close(shares[..., 2], torch.ones(2, 12))  # all words: all attention
    monkeypatch.setattr(attention, "MAX_WEIGHTS", 1)  # a query at a time
    torch.testing.assert_close(word_attention(queries, keys, 2, words), shares)


@pytest.mark.parametrize(
    ("latents", "layer"),
    [
        ((64, 64), (64, 64)),
        ((64, 64), (8, 8)),
        ((96, 64), (24, 16)),
        ((65, 33), (9, 5)),  # halved three times, rounding up
        ((8, 24), (1, 3)),
        ((64, 64), (27, 27)),  # shrunk by another pack
    ],
)
def test_the_size_of_a_layer_follows_from_its_number_of_places(
    latents: tuple[int, int], layer: tuple[int, int]
) -> None:
    assert layer_size(layer[0] * layer[1], *latents) == layer


def test_layers_of_all_sizes_are_averaged_at_one_small_size() -> None:
    sums = AttentionSums(pictures=1, concepts=1, height=256, width=128)
    assert sums.grid == (64, 32)
    words = torch.ones(1, 4, 1, dtype=torch.bool)
    for height, width, share in ((128, 64, 0.1), (8, 4, 0.3)):
        sums.add(torch.full((1, height * width, 1), share), words)
    shares = sums.maps(["teddy*"]).shares
    torch.testing.assert_close(shares, torch.full((1, 1, 64, 32), 0.2))


def test_rows_without_the_word_say_nothing_and_pictures_stay_apart() -> None:
    sums = AttentionSums(pictures=2, concepts=2, height=2, width=2)
    # Two prompts of two pictures each; only the second prompt has the first concept's word.
    shares = torch.tensor([0.0, 0.0, 0.2, 0.6])[:, None, None].expand(4, 4, 2)
    words = torch.zeros(4, 3, 2, dtype=torch.bool)
    words[2:, 1, 0] = True
    sums.add(shares, words)
    maps = sums.maps(["teddy*", "pot*"])
    assert maps.present.tolist() == [[True, False], [True, False]]
    torch.testing.assert_close(maps.shares[:, 0].mean(dim=(1, 2)), torch.tensor([0.2, 0.6]))
    assert not maps.shares[:, 1].any()


def test_the_picture_is_lit_where_the_word_attends() -> None:
    shares = torch.zeros(1, 2, 8, 16)
    shares[0, 0] = 0.05
    shares[0, 0, :, :8] = 0.25
    maps = AttentionMaps(("teddy*", "pot*"), shares, torch.tensor([[True, False]]))
    masks = maps.masks(32, 64)
    assert masks.shape == (2, 32, 64)
    assert masks[0, 16, 8] == 1
    assert masks[0, 16, 56] == 0
    assert not masks[1].any()
    strip = maps.picture(torch.full((1, 32, 64, 3), 0.5), "title")
    assert strip.shape[0] == 1
    assert strip.shape[2] > strip.shape[1]
    assert 0 <= strip.min() <= strip.max() <= 1
    # Of the first map's cell the left half is coloured and the right half grey.
    cells = strip[0, -128:, -3 * 512 :]
    colour = (cells.amax(dim=-1) - cells.amin(dim=-1)).mean(dim=0)
    left, right = colour[-1024:-768].mean(), colour[-700:-560].mean()
    assert left > 0.3
    assert right < 0.05
    assert maps.table().splitlines() == [
        "picture\tconcept\tlowest share\tmean share\thighest share",
        "1\tteddy*\t0.0500\t0.1500\t0.2500",
        "1\tpot*\t-\t-\t-",
    ]
