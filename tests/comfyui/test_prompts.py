"""The placeholder in prompts. The oracle: the same prompt with an ordinary word of one token."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.model_management
import pytest
import torch
from comfy.sd import CLIP
from safetensors.torch import save_file
from tiny_models import tiny_clip, tiny_concept, tiny_model

from perfusion_core.comfy.concept_entry import ConceptEntry
from perfusion_core.comfy.models import ComfyMismatch
from perfusion_core.comfy.prompts import add_concepts, encode
from perfusion_core.comfy.stack import extend_stack
from perfusion_core.concept.concept import Concept

DOG = 1929  # "dog</w>" in CLIP's vocabulary


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> CLIP:
    folder = tmp_path_factory.mktemp("embeddings")
    save_file({"emb_params": torch.arange(384.0).reshape(2, 192)}, folder / "style.safetensors")
    return tiny_clip(embeddings=str(folder))


@pytest.fixture(scope="module")
def teddy(clip: CLIP) -> Concept:
    return tiny_concept(tiny_model(), clip)


def tokens(clip: CLIP, prompt: str) -> list[list[tuple[Any, float]]]:
    return clip.tokenize(prompt)["l"]


def flat(clip: CLIP, prompt: str) -> list[tuple[Any, float]]:
    return joined(tokens(clip, prompt))


def joined(chunks: list[list[Any]]) -> list[Any]:
    return [pair for chunk in chunks for pair in chunk]


def assert_same(found: Any, expected: Any, vector: torch.Tensor) -> None:
    """Token by token, where `expected` has a dog for the concept's vector."""
    assert [len(chunk) for chunk in found] == [len(chunk) for chunk in expected]
    for (token, weight), (other, its) in zip(joined(found), joined(expected), strict=True):
        assert weight == its
        if torch.is_tensor(other):
            assert torch.equal(token, other)
        elif other == DOG:
            assert torch.equal(token, vector)
        else:
            assert token == other


@pytest.mark.parametrize(
    "prompt",
    [
        "teddy*",
        "a photo of a teddy*",
        "a photo of a Teddy* on a table",
        "a photo of a teddy*, on a table",
        "teddy*.",
        "a (teddy*:1.2) on a table",
        "a ((teddy*)) and (a red teddy*:0.7)",
        "a \\(teddy*\\) in brackets",
        "teddy* teddy* teddy*",
        "teddy*'s hat",
        "teddy*\nteddy*",
        "a “teddy*” in quotes",
        "teddy*,teddy*/teddy*",
        "a photo of a " + "very " * 90 + "good teddy*, " + "really " * 70 + "teddy*",
        "word, " * 34 + "a new teddy* at the break",
        "embedding:style teddy*",
        "a teddy* embedding:style and (embedding:style, teddy*:1.3)",
        "no concept here",
        "",
    ],
)
def test_the_placeholder_is_one_token_wherever_it_stands(
    prompt: str, clip: CLIP, teddy: Concept
) -> None:
    knowing = add_concepts(clip, [teddy])
    expected = tokens(clip, prompt.replace("teddy*", "dog").replace("Teddy*", "dog"))
    vector = teddy.embeddings["clip_l"][0].float()
    found = tokens(knowing, prompt)
    assert_same(found, expected, vector)
    count = sum(
        torch.is_tensor(t) and len(t) == 192 and torch.equal(t, vector) for t, _ in joined(found)
    )
    assert count == prompt.lower().count("teddy*")


@pytest.mark.parametrize(
    ("placeholder", "prompt"),
    [
        ("teddy*", "myteddy* here"),
        ("teddo", "a teddos and a teddoes"),
        ("teddo", "my_teddo"),
        ("teddy*", "a teddy and a star *"),
    ],
)
def test_the_placeholder_does_not_match_inside_other_words(
    placeholder: str, prompt: str, clip: CLIP, teddy: Concept
) -> None:
    knowing = add_concepts(clip, [replace(teddy, placeholder=placeholder)])
    assert tokens(knowing, prompt) == tokens(clip, prompt)


@pytest.mark.parametrize("prompt", ["an İris* here", "an ıris* here", "an IRIS* here"])
def test_letters_that_are_one_but_for_their_case_are_one(
    prompt: str, clip: CLIP, teddy: Concept
) -> None:
    """The capital of a Turkish i, and an i without its dot, are no other word."""
    knowing = add_concepts(clip, [replace(teddy, placeholder="iris*")])
    assert sum(torch.is_tensor(token) for token, _ in flat(knowing, prompt)) == 1


def test_the_longest_placeholder_wins(clip: CLIP, teddy: Concept) -> None:
    other = tiny_concept(tiny_model(), clip, "teddy*2", seed=9)
    knowing = add_concepts(clip, [teddy, other])
    found = [t for t, _ in flat(knowing, "teddy* and teddy*2") if torch.is_tensor(t)]
    assert torch.equal(
        torch.stack(found), torch.cat([c.embeddings["clip_l"] for c in (teddy, other)])
    )


def test_several_vectors_take_several_places(clip: CLIP) -> None:
    concept = tiny_concept(tiny_model(), clip, vectors=3)
    knowing = add_concepts(clip, [concept])
    found = [t for t, _ in flat(knowing, "a (teddy*:1.5) here")]
    places = [i for i, t in enumerate(found) if torch.is_tensor(t)]
    assert places == [2, 3, 4]
    encoding = encode(knowing, ["a teddy* here"])
    assert encoding.vectors[0].nonzero().flatten().tolist() == places
    assert int(encoding.mask[0].sum()) == 7  # start, a, three vectors, here, end


def test_the_clip_that_came_in_is_untouched(clip: CLIP, teddy: Concept) -> None:
    tokenizer, inner = clip.tokenizer, clip.tokenizer.clip_l.tokenizer
    before = tokens(clip, "a teddy* here")
    knowing = add_concepts(clip, [teddy])
    assert any(torch.is_tensor(token) for token, _ in flat(knowing, "a teddy* here"))
    assert clip.tokenizer is tokenizer
    assert clip.tokenizer.clip_l.tokenizer is inner
    assert tokens(clip, "a teddy* here") == before
    assert knowing.cond_stage_model is clip.cond_stage_model


def test_a_clone_of_the_clip_and_its_layer_setting_keep_the_concept(
    clip: CLIP, teddy: Concept
) -> None:
    knowing = add_concepts(clip, [teddy]).clone()
    knowing.clip_layer(-2)
    assert any(torch.is_tensor(t) for t, _ in flat(knowing, "teddy*"))


def test_encoding_follows_the_vectors(clip: CLIP, teddy: Concept) -> None:
    with torch.inference_mode():
        knowing = add_concepts(clip, [teddy])
        prompt = "a photo of a teddy* on a table"
        full = knowing.encode_from_tokens(knowing.tokenize(prompt))
        plain = clip.encode_from_tokens(clip.tokenize(prompt.replace("teddy*", "dog")))
        several = encode(knowing, [prompt, "a dog", prompt])
        assert torch.equal(full[:, :5], plain[:, :5])  # a causal encoder: what precedes is the same
        assert not torch.allclose(full[:, 5:], plain[:, 5:], atol=1e-3)
        assert torch.allclose(several.context[[0, 2]], full.expand(2, -1, -1), atol=1e-5)


def test_two_concepts_of_one_placeholder_are_refused_with_the_remedy(
    clip: CLIP, teddy: Concept
) -> None:
    other = tiny_concept(tiny_model(), clip, "Teddy*", seed=9, name="bear")
    knowing = add_concepts(clip, [teddy])
    with pytest.raises(ComfyMismatch, match=r'"teddy" and "bear".*"placeholder" field.*Teddy\*2'):
        add_concepts(knowing, [other])
    entries = [ConceptEntry(c, c.settings) for c in (teddy, other)]
    with pytest.raises(ComfyMismatch, match=r'"teddy" and "bear".*"placeholder" field'):
        extend_stack((), entries)
    renamed = add_concepts(knowing, [replace(other, placeholder="bear*")])
    assert sum(torch.is_tensor(t) for t, _ in flat(renamed, "teddy* bear*")) == 2


def test_the_same_concept_twice_is_no_clash(clip: CLIP, teddy: Concept) -> None:
    twice = add_concepts(add_concepts(clip, [teddy]), [replace(teddy, name="again")])
    assert sum(torch.is_tensor(t) for t, _ in flat(twice, "teddy*")) == 1


def test_a_clip_of_other_encoders_is_refused(teddy: Concept) -> None:
    with pytest.raises(ComfyMismatch, match=r"clip_l \(width 192\).*clip_l \(width 768\)"):
        add_concepts(FakeClip(), [teddy])


class FakeClip:
    """A CLIP as far as its tokenizer: of Stable Diffusion 1's width."""

    def __init__(self) -> None:
        from comfy.sd1_clip import SD1Tokenizer

        self.tokenizer = SD1Tokenizer()


@pytest.fixture(autouse=True)
def _no_interrupt() -> Iterator[None]:
    yield
    comfy.model_management.interrupt_current_processing(False)


def test_placeholders_survive_the_vocabulary_file(tmp_path: Path, clip: CLIP) -> None:
    # The stand-in answers for everything else that ComfyUI asks its tokenizer.
    knowing = add_concepts(clip, [tiny_concept(tiny_model(), clip)])
    assert knowing.tokenizer.clip_l.tokenizer.get_vocab()["dog</w>"] == DOG
