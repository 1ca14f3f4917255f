"""The covariance: what it averages, that it can be inverted, and that it tells words apart."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from perfusion_core.families import FAMILIES, ModelFamily
from perfusion_core.families.captions import COUNT, ordinary_captions
from perfusion_core.method.covariance import (
    Covariance,
    CovarianceError,
    cache_key,
    estimate,
    from_tokens,
)
from perfusion_core.method.templates import templates_for

D = 24


def encoder(padded_to: int, width: int = D):
    """A text encoder of one vector a word, whose padding is garbage."""

    def encode(captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        encodings = torch.full((len(captions), padded_to, width), 1e4)
        mask = torch.zeros(len(captions), padded_to, dtype=torch.bool)
        for row, caption in enumerate(captions):
            for column, word in enumerate(caption.split()):
                seed = sum(map(ord, word)) * 7 + len(word)
                generator = torch.Generator().manual_seed(seed)
                encodings[row, column] = torch.randn(width, generator=generator)
                mask[row, column] = True
        return encodings, mask

    return encode


CAPTIONS = ordinary_captions()


def second_moment(tokens: Tensor) -> Tensor:
    tokens = tokens.double()
    return tokens.T @ tokens / len(tokens)


def test_padding_and_batching_do_not_matter() -> None:
    one = estimate(encoder(30), CAPTIONS, "emoji", batch_size=512)
    other = estimate(encoder(77), CAPTIONS, "emoji", batch_size=7)
    assert one.count == other.count == sum(len(c.split()) for c in CAPTIONS)
    torch.testing.assert_close(one.matrix, other.matrix)
    assert one.fingerprint == other.fingerprint


def test_every_token_counts_alike_whatever_the_length_of_its_caption() -> None:
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
    together = estimate(encoder(8), [" ".join(words)], "emoji")
    apart = estimate(encoder(77), words, "emoji")
    torch.testing.assert_close(together.matrix, apart.matrix)


def test_many_tokens_give_the_second_moment() -> None:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(D, D, generator=generator)
    tokens = torch.randn(200_000, D, generator=generator) @ root.T + 2
    estimated = from_tokens(tokens, "emoji").matrix.double()
    expected = second_moment(tokens)
    torch.testing.assert_close(estimated.diagonal(), expected.diagonal(), rtol=1e-6, atol=0)
    assert (estimated - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("count", [1, 3, 20, D, 200])
def test_few_tokens_give_a_matrix_that_can_be_inverted(count: int) -> None:
    words = [chr(ord("a") + n % 21) for n in range(count)]
    covariance = estimate(encoder(30), words, "emoji")
    eigenvalues = torch.linalg.eigvalsh(covariance.matrix.double())
    assert eigenvalues[0] > 0
    assert eigenvalues[-1] / eigenvalues[0] < 1e5


def test_components_of_any_scale_are_treated_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(50, D, generator=generator)
    scales = torch.logspace(-2, 2, D)
    plain, scaled = from_tokens(tokens, "emoji"), from_tokens(tokens * scales, "emoji")
    torch.testing.assert_close(scaled.matrix, plain.matrix * scales * scales[:, None])
    i = tokens[0]
    torch.testing.assert_close(scaled.whiten(i * scales) * scales, plain.whiten(i))


def test_a_component_that_is_always_0_is_survived() -> None:
    tokens = torch.randn(50, D)
    tokens[:, 3] = 0
    assert from_tokens(tokens, "emoji").whiten(tokens[0]).isfinite().all()


@pytest.mark.parametrize("count", [60, 120, 1000])
def test_few_tokens_tell_a_concept_from_words_that_were_not_seen(count: int) -> None:
    """The mean square similarity of fresh tokens, against no C, the raw moments, and the true C."""
    width = 96
    generator = torch.Generator().manual_seed(0)
    # As SD 1.5's: a bulk over a factor of 17, and a few directions that every token shares.
    scales = torch.logspace(-0.77, 0.46, width, dtype=torch.float64)
    scales[:3] = torch.tensor([16.0, 80.0, 220.0])
    scales = scales.sqrt()
    root = torch.linalg.qr(torch.randn(width, width, generator=generator).double())[0] * scales

    def sample(n: int) -> Tensor:
        return torch.randn(n, width, generator=generator).double() @ root.T

    seen, fresh, concepts = sample(count), sample(4000), sample(50)

    def leakage(whitened: Tensor) -> float:
        similarity = fresh @ whitened.T / (whitened * concepts).sum(dim=1)
        return float(similarity.square().mean())

    ours = leakage(from_tokens(seen, "emoji").whiten(concepts))
    best = leakage(concepts @ torch.linalg.inv(root @ root.T))
    raw = leakage(concepts @ torch.linalg.pinv(second_moment(seen), hermitian=True))
    assert best <= ours < leakage(concepts)
    if count < 2 * width:
        assert ours < raw
    else:
        assert ours < 1.4 * best


def test_whitening_inverts_the_matrix_for_any_shape() -> None:
    covariance = estimate(encoder(30), CAPTIONS, "emoji")
    vectors = torch.randn(2, 3, D)
    whitened = covariance.whiten(vectors)
    assert whitened.dtype == torch.float64
    torch.testing.assert_close(whitened @ covariance.matrix.double(), vectors.double())


def test_the_fingerprint_is_of_the_numbers() -> None:
    matrix = torch.eye(D)
    assert Covariance(matrix, 5, "emoji").fingerprint == Covariance(matrix, 9, "x").fingerprint
    assert Covariance(2 * matrix, 5, "emoji").fingerprint != Covariance(matrix, 5, "x").fingerprint


def test_progress_is_told_and_may_stop_it() -> None:
    seen: list[tuple[int, int]] = []
    estimate(
        encoder(30), CAPTIONS[:10], "emoji", batch_size=4, on_captions=lambda *n: seen.append(n)
    )
    assert seen == [(4, 10), (8, 10), (10, 10)]

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        estimate(encoder(30), CAPTIONS, "emoji", on_captions=stop)


def test_the_cache_key_is_of_the_encoder_and_of_the_captions() -> None:
    keys = {
        cache_key("a", CAPTIONS), cache_key("b", CAPTIONS), cache_key("a", CAPTIONS[1:]),
        cache_key("a", ["ab"]), cache_key("a", ["a", "b"]),
    }  # fmt: skip
    assert len(keys) == 5
    assert cache_key("a", CAPTIONS) == cache_key("a", list(CAPTIONS))


# --- what bad input gets


def test_bad_input_is_refused() -> None:
    with pytest.raises(CovarianceError, match="no captions"):
        estimate(encoder(30), [], "emoji")
    with pytest.raises(CovarianceError, match="no tokens"):
        estimate(encoder(30), ["", " "], "emoji")
    with pytest.raises(CovarianceError, match="NaN"):
        from_tokens(torch.full((5, D), torch.nan), "emoji")
    with pytest.raises(CovarianceError, match="width 24, these are 7 wide"):
        from_tokens(torch.randn(50, D), "emoji").whiten(torch.ones(7))
    with pytest.raises(CovarianceError, match="cannot be inverted"):
        Covariance(-torch.eye(D), 5, "emoji").whiten(torch.ones(D))


# --- the built-in texts


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.id)
def test_the_built_in_captions_are_many_and_varied(family: ModelFamily) -> None:
    captions = family.captions()
    assert len(captions) == len(set(captions)) == COUNT
    assert family.captions() == captions
    lengths = [len(caption.split()) for caption in captions]
    assert min(lengths) <= 3
    assert max(lengths) >= 15
    assert all(c == c.strip() and "  " not in c and "{" not in c for c in captions)


def test_sentences_of_the_emoji_world_are_in_its_own_captions_alone() -> None:
    def sentences(captions: Sequence[str]) -> list[str]:
        colours = ("red", "orange", "yellow", "green", "blue", "purple", "white", "gray")
        return [c for c in captions if c.endswith(tuple(f"{k} background" for k in colours))]

    assert len(sentences(FAMILIES["emoji"].captions())) > 100
    for family in FAMILIES.values():
        if family.id != "emoji":
            assert not sentences(family.captions())


def test_the_emoji_worlds_captions_stay_what_its_published_figures_were_measured_with() -> None:
    text = "\n".join(FAMILIES["emoji"].captions())
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "ca250098993e445e"


def test_templates_have_one_place_each_and_the_article_of_the_superclass() -> None:
    for superclass in ("teddy", "apple"):
        templates = templates_for(superclass)
        assert len(set(templates)) == len(templates) >= 10
        assert all(template.count("{}") == 1 for template in templates)
        assert len({template.index("{}") for template in templates}) > 3
    assert "a photo of a {}" in templates_for("teddy")
    assert "a photo of an {}" in templates_for("apple")
    assert not any("a {}" in template for template in templates_for("apple"))
