"""Captions and validation prompts: the placeholder is found in them where a prompt has it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from comfy.sd import CLIP
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import tiny_clip, tiny_model

from perfusion_core.comfy.backbone import ComfyBackbone
from perfusion_core.comfy.models import ComfyMismatch
from perfusion_core.comfy.pictures import prompt_lines
from perfusion_core.comfy.prompts import add_concepts
from perfusion_core.concept.concept import Concept
from perfusion_core.method.batches import TrainingError

CASES = json.loads((Path(__file__).parents[1] / "placeholder_cases.json").read_text("utf-8"))
PARTS = ["teddy*", "TEDDY*", "{}", " ", "my", "a", "é", "沙滩", ", ", "*", "_9", "\u200b"]
CASES = [case for case in CASES if case["text"].strip() and case["word"]]


def counted(clip: CLIP, teddy: Concept, text: str) -> int:
    """How often ComfyUI's tokens of a text hold the concept."""
    chunks = add_concepts(clip, [teddy]).tokenize(text)["l"]
    return sum(torch.is_tensor(token) for chunk in chunks for token, _ in chunk)


@pytest.mark.parametrize("case", CASES, ids=lambda case: ascii(case["text"]))
def test_a_caption_names_the_concept_where_the_prompt_does(case: dict[str, Any]) -> None:
    text, word, count = case["text"], case["word"], case["mentions"]
    if count == 1:
        (line,) = prompt_lines(text, word, "caption")
        assert line.count("{}") == 1
        return
    cause = f"names it {count} times" if count else "only inside a longer word|does not have"
    with pytest.raises(TrainingError, match=cause):
        prompt_lines(text, word, "caption")


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.sampled_from(
            ["teddy*", "TEDDY*", "{}", " ", "my", "a", "é", "沙滩", ", ", "*", "_9", "\u200b"]
        ),
        max_size=7,
    ).map("".join)
)
def test_a_caption_that_is_taken_has_the_concept_once_in_comfyuis_tokens(
    clip: CLIP, teddy: Concept, text: str
) -> None:
    """And one that is refused has not, in so far as it is written without {}."""
    try:
        lines = prompt_lines(text, "teddy*", "caption")
    except TrainingError:
        assert "{}" in text or counted(clip, teddy, text) != 1
        return
    assert [counted(clip, teddy, line.replace("{}", "teddy*")) for line in lines] == [1] * len(
        lines
    )


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("a photo", "does not have the placeholder"),
        ("a photo of myteddy* on a bed", "only inside a longer word"),
        ("a teddy* and a teddy*", "names it 2 times"),
        ("a teddy* and {}", "names it 2 times"),
        ("my{} on a bed", 'it reads "myteddy\\* on a bed", which has "teddy\\*" only inside'),
    ],
)
def test_the_cause_that_is_named_is_the_one_that_is_there(line: str, cause: str) -> None:
    with pytest.raises(TrainingError, match=cause) as caught:
        prompt_lines(line, "teddy*", "validation prompt")
    assert "write {} or teddy* where it stands" in str(caught.value)


@pytest.fixture(scope="module")
def backbone() -> ComfyBackbone:
    return ComfyBackbone(tiny_model(), tiny_clip(), (1, 4, 8, 8), "off")


@pytest.mark.parametrize(
    ("prompt", "vectors", "cause"),
    [
        ("a photo of myteddy* on a bed", 1, "only inside a longer word"),
        ("a photo of myteddy* " + "on a bed " * 40, 1, "only inside a longer word"),
        ("a photo of a bed", 1, "does not have the placeholder"),
        ("a teddy* " + "on a bed " * 40, 1, "too long.* 75 tokens at a time.*takes 1"),
        ("a teddy*", 75, "takes 75 vectors.*set vectors to 0"),
    ],
)
def test_prompts_are_refused_for_what_is_wrong_with_them(
    prompt: str, vectors: int, cause: str, backbone: ComfyBackbone
) -> None:
    embeddings = {"clip_l": torch.randn(vectors, 192)}
    with pytest.raises(TrainingError, match=cause):
        backbone.check_prompts([prompt], "teddy*", embeddings)


def test_an_embedding_in_a_caption_is_no_placeholder(tmp_path: Any) -> None:
    from safetensors.torch import save_file

    save_file({"emb_params": torch.ones(1, 192)}, tmp_path / "style.safetensors")
    backbone = ComfyBackbone(tiny_model(), tiny_clip(embeddings=str(tmp_path)), (1, 4, 8, 8), "off")
    embeddings = {"clip_l": torch.randn(2, 192)}
    with pytest.raises(TrainingError, match="does not have the placeholder"):
        backbone.check_prompts(["embedding:style on a bed"], "teddy*", embeddings)
    text = "embedding:style teddy* on a bed"
    encoded = backbone.encode([text], "teddy*", embeddings)
    assert encoded.positions[0].nonzero().flatten().tolist() == [3]


def test_a_clip_that_carries_the_word_already_is_named(clip: CLIP, teddy: Concept) -> None:
    knowing = add_concepts(clip, [teddy])
    backbone = ComfyBackbone(tiny_model(), knowing, (1, 4, 8, 8), "off")
    with pytest.raises(ComfyMismatch, match='already knows the concept "teddy" by the word'):
        backbone.check_prompts(["a Teddy*"], "Teddy*", {"clip_l": torch.randn(1, 192)})
