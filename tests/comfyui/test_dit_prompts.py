"""Prompts of transformers: what their layers see of a text, and where the placeholder is in it."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from dit_work import PROMPT, learned, sampled
from projections import Projected, tapped
from tiny_dits import TinyDit

from perfusion_core.comfy.backbone import training_backbone
from perfusion_core.comfy.clip_covariance import covariance_of
from perfusion_core.comfy.concept_entry import recommended
from perfusion_core.comfy.encoding import encode
from perfusion_core.comfy.models import ComfyMismatch, layers_of
from perfusion_core.comfy.prompts import add_concepts, word_tokens
from perfusion_core.comfy.stack import apply_stack
from perfusion_core.comfy.tokenizers import encoder_widths, row_tokens, tokenizers_of
from perfusion_core.comfy.training_words import with_training_word
from perfusion_core.comfy.vectors import MarkedId, is_vector

TEXTS = [
    "a photo of a {} on a blue background",
    "{}, on a beach",
    "two of them: {}.",
    "({}:1.3) and (a hat:0.7)",
    "a {}",
]


def knowing(dit: TinyDit, clip: Any, vectors: int = 1, superclass: str = "teddy") -> Any:
    generator = torch.Generator().manual_seed(2)
    embeddings = {
        name: torch.randn(vectors, width, generator=generator)
        for name, width in dit.family.encoders.items()
    }
    return with_training_word(clip, "toy*", embeddings, superclass)


def plain(tokens: list[list[Any]]) -> list[tuple[Any, float]]:
    """Tokens and weights of a prompt's one chunk, pads left out."""
    (chunk,) = tokens
    return [entry for entry in chunk if is_vector(entry[0]) or entry[0] != 0]


def test_the_clip_is_known_by_its_tokenizers(dit: TinyDit, dit_clip: Any) -> None:
    assert encoder_widths(dit_clip) == dit.family.tokenizers


@pytest.mark.parametrize("text", TEXTS)
def test_a_placeholder_takes_the_place_of_its_word_and_no_space_of_its_own(
    text: str, dit: TinyDit, dit_clip: Any
) -> None:
    found = knowing(dit, dit_clip).tokenize(text.format("toy*"))
    stock = dit_clip.tokenize(text.format("teddy"))
    tokenizers = tokenizers_of(dit_clip)
    for name, tokenizer in tokenizers.items():
        key = name.removeprefix("clip_")
        ours, theirs = plain(found[key]), plain(stock[key])
        word = word_tokens(tokenizer, "teddy")
        learned_here = name in dit.family.encoders
        width = 1 if learned_here else len(word)
        at = next(n for n, (token, _) in enumerate(ours) if is_vector(token) or _marked(token))
        rest = ours[:at] + ours[at + width :]
        # The same words around it, with the same weights. (A word that begins a text may be
        # written otherwise than one within it.)
        begins = text.startswith(("{", "("))
        size = len(theirs) - len(rest)
        assert rest[:at] == theirs[:at]
        assert rest[at:] == theirs[at + size :]
        assert begins or [token for token, _ in theirs[at : at + size]] == word
        weight = 1.3 if "1.3" in text and name != "qwen3_06b" else 1.0
        assert all(entry[1] == weight for entry in ours[at : at + width])


def _marked(token: Any) -> bool:
    return isinstance(token, MarkedId)


def test_ids_of_a_placeholder_are_numbers_that_know_their_word(dit: TinyDit, dit_clip: Any) -> None:
    if not dit.family.ids:
        pytest.skip("it learns in every tokenizer")
    clip = knowing(dit, dit_clip)
    (row,) = clip.tokenize("a toy* on a hill")["t5xxl"]
    marked = [token for token, _ in row if _marked(token)]
    assert marked == word_tokens(tokenizers_of(dit_clip)["t5xxl"], "teddy")
    assert torch.tensor([token for token, _ in row], dtype=torch.int).tolist() == [
        int(token) for token, _ in row
    ]
    assert deepcopy(marked[0]).word is marked[0].word
    assert not any(_marked(token) for token, _ in dit_clip.tokenize("a teddy")["t5xxl"][0])


@pytest.mark.parametrize("vectors", [1, 2])
def test_positions_are_the_rows_of_the_placeholder_in_prompts_of_any_length(
    vectors: int, dit: TinyDit, dit_clip: Any, dit_model: Any
) -> None:
    clip = knowing(dit, dit_clip, vectors)
    prompts = [text.format("toy*") for text in TEXTS]
    with torch.no_grad():
        together = encode(clip, prompts, base=dit_model.model)
        apart = [encode(clip, [prompt], base=dit_model.model) for prompt in prompts]
    longest = max(one.context.shape[1] for one in apart)
    assert together.context.shape == (
        len(prompts),
        dit.rows or longest,
        dit.family.context_width,
    )
    count = vectors * len(dit.family.parts)
    if dit.family.ids:
        count = len(word_tokens(tokenizers_of(dit_clip)["t5xxl"], "teddy"))
    assert together.vectors.sum(dim=1).tolist() == [count] * len(prompts)
    for row, one in enumerate(apart):
        length = one.context.shape[1]
        assert torch.allclose(together.context[row, :length], one.context[0], atol=1e-5)
        assert torch.equal(together.vectors[row, :length], one.vectors[0])
        assert not bool(together.context[row, length:].any())
        tokens = row_tokens(clip, clip.tokenize(prompts[row]))[1][0]
        first = next(n for n, (t, *_) in enumerate(tokens) if is_vector(t) or _marked(t))
        assert int(one.vectors[0].int().argmax()) == first
    if dit.family.mask:  # the network does not look past a prompt's end
        assert torch.equal(together.beside[dit.family.mask] > 0, together.mask)
        return
    # What is past a prompt's end is zero, and counts as no token.
    zero = ~together.context.any(dim=-1)
    assert bool(zero.any())
    assert not bool((together.mask & zero).any())
    assert bool((together.mask | zero).all())


def as_rows(p: Projected, expected: torch.Tensor) -> torch.Tensor:
    """The context of a call, a prompt a row: in some networks they lie one after the other."""
    whole = p.context.numel() % expected.numel() == 0
    rows = p.context.reshape(-1, *expected.shape) if whole else p.context
    pads = ~expected.any(dim=-1)  # where there are others than zero, they are not the text's
    if bool(pads.any()) and rows.shape[1:] == expected.shape:
        rows = rows.masked_fill(pads[:, None], 0)
    return rows


def test_the_layers_see_what_the_encoding_says_bit_for_bit(
    dit: TinyDit, dit_clip: Any, dit_model: Any
) -> None:
    concept = learned(dit_model, dit_clip)
    clip = add_concepts(dit_clip, [concept])
    with torch.inference_mode():
        layer = next(iter(layers_of(dit_model, dit.family).values()))
        text = encode(clip, [PROMPT], base=dit_model.model).context
        expected = layer.seen(text)[0]
        if len(dit.family.parts) > 1:  # its pads are learned ones
            expected = expected * text[0].any(dim=-1, keepdim=True)
    with tapped(dit_model) as seen:
        sampled(dit_model, clip, steps=1)
    exact = torch.equal if layer.before is None else torch.allclose
    assert any(exact(row, expected) for p in seen for row in as_rows(p, expected))
    # And with a concept on the model: the edit works on it.
    on = apply_stack(dit_model, [recommended(concept)])
    with tapped(on) as seen:
        sampled(on, clip, steps=1)
    assert any(exact(row, expected) for p in seen for row in as_rows(p, expected))


def test_the_covariance_is_of_words_as_the_layers_see_them(
    dit: TinyDit, dit_clip: Any, dit_model: Any
) -> None:
    captions = ["a red house", "two dogs on a long, long road", "rain"]
    with torch.inference_mode():
        found = covariance_of(dit_clip, captions, model=dit_model)
        encoded = encode(dit_clip, captions, base=dit_model.model)
    words = encoded.context[encoded.mask]
    assert found.family == dit.family.id
    assert found.count == len(words)
    assert bool(words.any(dim=-1).all())  # no pads
    exact = words.double().T @ words.double() / len(words)
    assert torch.allclose(found.matrix.diagonal().double(), exact.diagonal(), rtol=1e-4)


def test_without_the_model_an_adapter_is_asked_for(
    dit: TinyDit, dit_clip: Any, dit_model: Any
) -> None:
    if not dit.family.adapter:
        pytest.skip("it has no adapter")
    with pytest.raises(ComfyMismatch, match="connect the model as well"):
        covariance_of(dit_clip)


def test_a_training_sees_the_same_context_and_its_positions(
    dit: TinyDit, dit_clip: Any, dit_model: Any
) -> None:
    with (
        torch.inference_mode(),
        training_backbone(dit_model, dit_clip, dit.shape()) as backbone,
    ):
        word = backbone.superclass_embeddings("teddy")
        found = backbone.encode([PROMPT], "teddy*", word, "teddy")
        assert list(word) == list(dit.family.encoders)
        stock = encode(dit_clip, [PROMPT.replace("*", "")], base=dit_model.model)
    # With the superclass's own vectors, the placeholder is the superclass.
    assert torch.allclose(found.context, stock.context, atol=1e-6)
    assert found.positions.sum(dim=1).tolist() == [len(dit.family.parts)]
    assert bool(found.context[found.positions].any())
