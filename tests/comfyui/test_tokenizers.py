"""The tokenizers of a CLIP with concepts are what they stand for: same class, same calls."""

from __future__ import annotations

import copy
import io
from dataclasses import replace
from typing import Any

import pytest
import torch
from comfy.sd import CLIP
from comfy.sd1_clip import SDTokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import tiny_clip, tiny_concept, tiny_model

from perfusion_core.comfy.concept_entry import ConceptEntry
from perfusion_core.comfy.gates_of_prompt import gates_of_prompt
from perfusion_core.comfy.models import ComfyMismatch
from perfusion_core.comfy.prompts import add_concepts
from perfusion_core.comfy.tokenizers import vectors_of
from perfusion_core.comfy.vectors import KnownVectors, Word
from perfusion_core.concept.concept import Concept
from perfusion_core.method.settings import KeyLock

TEXT = "a photo of a teddy* on a beach"


@pytest.fixture(scope="module")
def clip() -> CLIP:
    return tiny_clip()


@pytest.fixture(scope="module")
def teddy(clip: CLIP) -> Concept:
    return tiny_concept(tiny_model(), clip)


def of_vectors(teddy: Concept, count: int) -> Concept:
    numbers = torch.randn(count, 192, generator=torch.Generator().manual_seed(count))
    return replace(teddy, embeddings={"clip_l": numbers})


def inner(clip: CLIP) -> Any:
    return clip.tokenizer.clip_l.tokenizer


def as_dog(clip: CLIP, ids: Any) -> Any:
    """Ids in which vectors are the id of a dog."""
    if isinstance(ids, list):
        return [as_dog(clip, one) for one in ids]
    return 1929 if torch.is_tensor(ids) else ids


CALLS = [
    {},
    {"truncation": False, "add_special_tokens": False},
    {"add_special_tokens": False},
    {"truncation": True, "max_length": 8},
    {"truncation": True, "max_length": 5, "add_special_tokens": False},
    {"padding": "max_length", "max_length": 20},
    {"padding": True},
    {"return_attention_mask": False},
]


@pytest.mark.parametrize("options", CALLS, ids=str)
@pytest.mark.parametrize("several", [False, True])
def test_the_inner_tokenizer_is_called_as_other_packs_call_it(
    options: dict[str, Any], several: bool, clip: CLIP, teddy: Concept
) -> None:
    """As encoders in the manner of the A1111 web UI do. A dog stands for the concept."""
    texts: Any = [TEXT, "no concept", "teddy*, a (teddy*)", ""] if several else TEXT
    dogs = [t.replace("teddy*", "dog") for t in texts] if several else TEXT.replace("teddy*", "dog")
    stock, knowing = inner(clip), inner(add_concepts(clip, [teddy]))
    found, expected = knowing(texts, **options), stock(dogs, **options)
    assert type(found) is type(expected)
    assert found.keys() == expected.keys()
    assert as_dog(clip, found.input_ids) == expected.input_ids
    assert found["input_ids"] is found.input_ids
    if "attention_mask" in expected:
        assert found["attention_mask"] == expected["attention_mask"]
    ids = [one for row in found.input_ids for one in row] if several else found.input_ids
    assert any(torch.is_tensor(one) for one in ids)


def test_the_inner_tokenizer_answers_what_the_original_answers(clip: CLIP, teddy: Concept) -> None:
    stock, knowing = inner(clip), inner(add_concepts(clip, [teddy]))
    assert isinstance(knowing, type(stock))
    assert type(knowing).__name__ == type(stock).__name__
    assert len(knowing) == len(stock)
    for name in ("vocab_size", "model_max_length", "pad_token_id", "eos_token", "all_special_ids"):
        assert getattr(knowing, name) == getattr(stock, name), name
    assert knowing.get_vocab() == stock.get_vocab()
    assert knowing("a cat", return_tensors="pt").input_ids.equal(
        stock("a cat", return_tensors="pt").input_ids
    )
    assert knowing(TEXT, return_tensors="pt").input_ids.equal(
        stock(TEXT, return_tensors="pt").input_ids
    )
    assert knowing("a cat", "a dog").input_ids == stock("a cat", "a dog").input_ids
    assert knowing.encode("a cat") == stock.encode("a cat")
    assert knowing.tokenize(TEXT) == stock.tokenize(TEXT)
    ids = knowing.encode(TEXT, add_special_tokens=False)
    tokens = knowing.convert_ids_to_tokens(ids)
    expected = stock.convert_ids_to_tokens(as_dog(clip, ids))
    assert tokens == ["teddy*" if token == "dog</w>" else token for token in expected]
    assert knowing.convert_ids_to_tokens(ids[4]) == "teddy*"
    assert knowing.convert_ids_to_tokens(320) == stock.convert_ids_to_tokens(320)
    assert " ".join(knowing.decode(ids).split()) == TEXT
    assert knowing.decode([320, 1929]) == stock.decode([320, 1929])
    assert knowing.batch_decode([ids, [320]])[1] == stock.decode([320])
    with pytest.raises(AttributeError):
        knowing.no_such_thing  # noqa: B018


def test_copies_of_the_tokenizers_go_on_knowing(clip: CLIP, teddy: Concept) -> None:
    knowing = add_concepts(clip, [teddy])
    for one in (copy.copy(knowing.tokenizer), copy.deepcopy(knowing.tokenizer)):
        assert isinstance(one.clip_l, SDTokenizer)
        assert any(torch.is_tensor(t) for t, _ in one.tokenize_with_weights(TEXT)["l"][0])
    tokens = knowing.tokenize(TEXT)["l"][0]
    names = [token for _, token in knowing.tokenizer.untokenize(tokens)]
    assert names[5] == "teddy*"
    assert names[1] == "a</w>"


@pytest.mark.parametrize("what", ["clone", "half", "deepcopy", "saved"])
def test_a_vector_among_tokens_is_known_by_its_numbers(
    what: str, clip: CLIP, teddy: Concept
) -> None:
    knowing = add_concepts(clip, [teddy])
    row = [token for token, _ in knowing.tokenize("a teddy* and an x")["l"][0]]
    saved = io.BytesIO()
    torch.save(row, saved)
    saved.seek(0)
    moved = {
        "clone": lambda: [t.clone() if torch.is_tensor(t) else t for t in row],
        "half": lambda: [t.half() if torch.is_tensor(t) else t for t in row],
        "deepcopy": lambda: copy.deepcopy(row),
        "saved": lambda: torch.load(saved, weights_only=True),
    }[what]()
    found = vectors_of(knowing.tokenizer.clip_l).find([*moved, torch.ones(192)])
    assert [n for n, one in enumerate(found) if one is not None] == [2]
    assert found[2] is not None
    assert found[2][0].text == "teddy*"


def test_equal_vectors_of_a_word_are_told_apart_by_their_order() -> None:
    word = Word("toy*", torch.ones(3, 4), superclass=(1, 2, 3))
    found = KnownVectors([word]).find([5, *word.rows[:2], 6, word.rows[2], *word.rows])
    assert [None if one is None else one[1] for one in found] == [None, 0, 1, None, 2, 0, 1, 2]


@pytest.mark.parametrize("vectors", range(1, 11))
@pytest.mark.parametrize("before", [68, 70, 73, 74, 75])
def test_the_vectors_of_a_word_are_not_cut_at_the_end_of_a_chunk(
    before: int, vectors: int, clip: CLIP, teddy: Concept
) -> None:
    """The oracle: an `embedding:` of as many vectors, which ComfyUI keeps together."""
    knowing = add_concepts(clip, [of_vectors(teddy, vectors)])
    text = "word " * before + "(toy*:1.3)" + " more" * 20
    text = text.replace("toy*", "teddy*")
    chunks = knowing.tokenize(text)["l"]
    assert [len(chunk) for chunk in chunks] == [77] * len(chunks)
    held = [sum(torch.is_tensor(token) for token, _ in chunk) for chunk in chunks]
    assert sum(held) == vectors
    if vectors < 8:
        assert vectors in held
    entries = [entry for chunk in chunks for entry in chunk]
    assert all(weight == 1.3 for token, weight in entries if torch.is_tensor(token))
    assert sum(token == 1609 for token, _ in entries if not torch.is_tensor(token)) <= before
    # Nothing of the text is lost on the way.
    words = [t for t, _ in entries if not torch.is_tensor(t) and t not in (49406, 49407)]
    stock = [t for chunk in clip.tokenize("word " * before + " more" * 20)["l"] for t, _ in chunk]
    assert words == [t for t in stock if t not in (49406, 49407)]


def test_an_embedding_of_as_many_vectors_is_laid_out_alike(teddy: Concept, tmp_path: Any) -> None:
    from safetensors.torch import save_file

    concept = of_vectors(teddy, 4)
    save_file({"emb_params": concept.embeddings["clip_l"].float()}, tmp_path / "four.safetensors")
    clip = tiny_clip(embeddings=str(tmp_path))
    knowing = add_concepts(clip, [concept])
    text = "(" + "word " * 72 + ":1.1) teddy* " + "more " * 30
    found = knowing.tokenize(text, return_word_ids=True)["l"]
    expected = clip.tokenize(text.replace("teddy*", "embedding:four"), return_word_ids=True)["l"]
    assert [len(chunk) for chunk in found] == [len(chunk) for chunk in expected]
    for chunk, its in zip(found, expected, strict=True):
        for one, other in zip(chunk, its, strict=True):
            assert one[1] == other[1]
            assert torch.equal(torch.as_tensor(one[0]), torch.as_tensor(other[0]))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.sampled_from(["word", "(word:1.2)", "two words", "x,", "w " * 9]), max_size=60))
def test_our_packing_is_comfyuis(clip: CLIP, teddy: Concept, parts: list[str]) -> None:
    knowing = add_concepts(clip, [of_vectors(teddy, 3)]).tokenizer.clip_l
    text = " ".join(parts)
    chunks = knowing.tokenize_with_weights(text, return_word_ids=True)
    assert knowing._packed(knowing._groups(chunks)) == chunks


@pytest.mark.parametrize("key_lock", KeyLock)
def test_a_concept_may_have_anothers_placeholder_as_its_superclass(
    key_lock: KeyLock, clip: CLIP, teddy: Concept
) -> None:
    bear = replace(of_vectors(teddy, 2), name="bear", placeholder="bear*", superclass="teddy*")
    chained = add_concepts(add_concepts(clip, [teddy], [key_lock]), [bear], [key_lock])
    together = add_concepts(clip, [teddy, bear], [key_lock, key_lock])
    prompt = "a bear* beside a teddy*"
    ends = [one.encode_from_tokens_scheduled(one.tokenize(prompt)) for one in (chained, together)]
    (encoding, beside), (other, its) = ends[0][0], ends[1][0]
    assert torch.equal(encoding, other)
    tensors = [name for name in beside if torch.is_tensor(beside[name])]
    assert all(torch.equal(beside[name], its[name]) for name in tensors)


def test_an_embedding_is_no_superclass(teddy: Concept, tmp_path: Any) -> None:
    from safetensors.torch import save_file

    save_file({"emb_params": torch.ones(1, 192)}, tmp_path / "style.safetensors")
    clip = tiny_clip(embeddings=str(tmp_path))
    concept = replace(teddy, superclass="embedding:style")
    with pytest.raises(ComfyMismatch, match="is an embedding.*ordinary word"):
        add_concepts(clip, [concept], [KeyLock.GLOBAL])


@pytest.mark.parametrize(
    "text",
    ["一只teddy*在沙滩上", "砂浜のteddy*です", "해변의teddy*가", "a cafe\u0301 teddy*\u200b!"],
)
def test_plots_and_prompts_agree_in_every_script(text: str, clip: CLIP, teddy: Concept) -> None:
    knowing = add_concepts(clip, [teddy])
    tokens = [token for token, _ in knowing.tokenize(text)["l"][0]]
    assert sum(torch.is_tensor(token) for token in tokens) == 1
    gates = gates_of_prompt(clip, text, [ConceptEntry(teddy, teddy.settings)])
    assert gates.words.count("teddy*") == 1
