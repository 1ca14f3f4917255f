"""The global key lock and what ComfyUI's nodes do to a conditioning: it follows, or it is said."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from typing import Any

import comfy.sd1_clip
import comfy.sdxl_clip
import nodes
import pytest
import torch
from comfy.sd import CLIP
from comfy_execution.utils import CurrentNodeContext
from other_packs import encode, knowing, ksample, run_node
from projections import tapped
from tiny_models import tiny_concept
from true_models import random_concept, true_clip, true_model

from perfusion_core.comfy.concept_entry import ConceptEntry
from perfusion_core.comfy.models import detect_family, layers_of
from perfusion_core.comfy.prompts import LOCKED_PROMPT, SUPERCLASS_PROMPT, add_concepts
from perfusion_core.comfy.stack import apply_stack
from perfusion_core.concept.concept import Concept
from perfusion_core.method.settings import ConceptSettings, KeyLock

Model = Any
Conditioning = Any
GLOBAL = ConceptSettings(0.5, 0.15, key_lock=KeyLock.GLOBAL)
TEXT = "a teddy* on a beach"
OTHER = "a red house beside a teddy*"


@pytest.fixture
def entry(teddy: Concept) -> ConceptEntry:
    return ConceptEntry(teddy, GLOBAL)


def average(one: Conditioning, other: Conditioning, share: float = 0.3) -> Conditioning:
    return run_node(
        nodes.ConditioningAverage,
        conditioning_to=one,
        conditioning_from=other,
        conditioning_to_strength=share,
    )[0]


def concat(one: Conditioning, other: Conditioning) -> Conditioning:
    return run_node(nodes.ConditioningConcat, conditioning_to=one, conditioning_from=other)[0]


def combine(one: Conditioning, other: Conditioning) -> Conditioning:
    return run_node(nodes.ConditioningCombine, conditioning_1=one, conditioning_2=other)[0]


def area(one: Conditioning, _: Conditioning) -> Conditioning:
    sizes = {"width": 64, "height": 64, "x": 0, "y": 0, "strength": 1.0}
    return run_node(nodes.ConditioningSetArea, conditioning=one, **sizes)[0]


def masked(one: Conditioning, _: Conditioning) -> Conditioning:
    return run_node(
        nodes.ConditioningSetMask,
        conditioning=one,
        mask=torch.ones(1, 64, 64),
        set_cond_area="default",
        strength=1.0,
    )[0]


def early(one: Conditioning, _: Conditioning) -> Conditioning:
    return run_node(nodes.ConditioningSetTimestepRange, conditioning=one, start=0.0, end=1.0)[0]


def zeroed(one: Conditioning, _: Conditioning) -> Conditioning:
    return run_node(nodes.ConditioningZeroOut, conditioning=one)[0]


def scaled(one: Conditioning, _: Conditioning) -> Conditioning:
    """As ComfyUI's ConditioningMultiply, which older ones do not have."""
    return [[context * 0.7, {**beside}] for context, beside in one]


def batched(one: Conditioning, other: Conditioning) -> Conditioning:
    """As packs that schedule prompts over a batch do."""
    return [[torch.cat([one[0][0], other[0][0]]), {"pooled_output": one[0][1]["pooled_output"]}]]


def saved(one: Conditioning, _: Conditioning) -> Conditioning:
    return loaded(stored(one))


def copied(one: Conditioning, _: Conditioning) -> Conditioning:
    return [[context.clone(), {**beside}] for context, beside in one]


def stored(conditioning: Conditioning) -> bytes:
    buffer = io.BytesIO()
    torch.save(conditioning, buffer)
    return buffer.getvalue()


def loaded(data: bytes) -> Conditioning:
    return torch.load(io.BytesIO(data), weights_only=True)


CHANGES = (
    average, concat, combine, area, masked, early, zeroed, scaled, batched, saved, copied
)  # fmt: skip


def keys(model: Model, conditioning: Conditioning, negative: Conditioning, size: int = 1) -> Any:
    """Keys of the first layer [B, T, out] in a run without guidance's second half."""
    latent = {"samples": torch.zeros(size, 4, 8, 8)}
    with tapped(model) as seen:
        ksample(model, conditioning, negative, 1, latent)
    return [p.output for p in seen if p.kind == "k" and p.path == seen[0].path]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_the_lock_follows_what_comfyuis_nodes_do_to_a_prompt(
    change: Callable[[Conditioning, Conditioning], Conditioning],
    model: Model,
    clip: CLIP,
    entry: ConceptEntry,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The oracle: the same nodes on the prompts with the superclass, and the model without it."""
    clever = knowing(clip, entry)
    prompts = encode(clever, TEXT), encode(clever, OTHER)
    twins = [encode(clip, text.replace("*", "")) for text in (TEXT, OTHER)]
    negative = encode(clever, "blurry")
    size = 2 if change is batched else 1
    on = apply_stack(model, [entry])
    with caplog.at_level(logging.WARNING):
        found = keys(on, change(*prompts), negative, size)
    expected = keys(model, change(*twins), negative, size)
    if change is zeroed:  # no word, no key of a word
        assert [one.shape for one in found] == [one.shape for one in expected]
    else:
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert torch.allclose(one, other, atol=1e-4)
    assert not [r for r in caplog.records if "key lock" in r.message]


def test_what_goes_into_a_conditioning_is_plain(clip: CLIP, entry: ConceptEntry) -> None:
    (context, beside), = encode(knowing(clip, entry), TEXT)  # fmt: skip
    tensors = {name: value for name, value in beside.items() if value is not None}
    assert all(type(value) is torch.Tensor for value in (context, *tensors.values()))
    assert {LOCKED_PROMPT, SUPERCLASS_PROMPT} <= set(tensors)
    assert not vars(context)
    plain = encode(add_concepts(clip, [entry.concept]), TEXT)
    assert torch.equal(plain[0][0], context)
    assert len(stored([[context, beside]])) < 2.2 * len(stored(plain))


def test_comfyuis_dataset_nodes_save_and_load_it(
    clip: CLIP, entry: ConceptEntry, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = pytest.importorskip("comfy_extras.nodes_dataset")
    if not hasattr(dataset, "SaveTrainingDataset"):
        pytest.skip("this ComfyUI has no nodes for training data sets")
    import folder_paths

    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    for name in ("get_dataset_save_dir", "get_dataset_dir"):
        monkeypatch.setattr(dataset, name, lambda folder: str(tmp_path / folder), raising=False)
    prompt = encode(knowing(clip, entry), TEXT)
    latents = [{"samples": torch.zeros(1, 4, 8, 8)}]
    with torch.inference_mode():
        dataset.SaveTrainingDataset.execute(latents, [prompt], ["set"], [10])
        output = dataset.LoadTrainingDataset.execute("set")
    again = output.args[1][0]
    assert torch.equal(again[0][0], prompt[0][0])
    for name in (LOCKED_PROMPT, SUPERCLASS_PROMPT):
        assert torch.equal(again[0][1][name], prompt[0][1][name])


def changed_elsewhere(one: Conditioning) -> Conditioning:
    """By a node of another pack, in a way that nobody can follow."""
    return [[context.sin(), {**beside}] for context, beside in one]


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda clever, plain: changed_elsewhere(clever(TEXT)), "was changed after it was encoded"),
        (lambda clever, plain: average(clever(TEXT), plain("a cat")), "was changed after it was"),
        (lambda clever, plain: concat(clever(TEXT), plain("a cat")), "was changed after it was"),
        (lambda clever, plain: plain(TEXT), "was not encoded with the CLIP|no prompt of this run"),
    ],
    ids=["changed", "average", "concat", "plain"],
)
def test_what_the_lock_cannot_follow_is_said_once_with_the_remedy(
    make: Any,
    says: str,
    known: bool,
    model: Model,
    clip: CLIP,
    entry: ConceptEntry,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On the node that samples, and in the log: also where another prompt of the run is known."""
    from server import PromptServer

    told: list[tuple[str, str]] = []

    class Server:
        client_id = "page"

        def send_progress_text(self, text: str, node: str, _: str) -> None:
            told.append((node, text))

        def __getattr__(self, _: str) -> Any:
            return lambda *args, **kwargs: None

    monkeypatch.setattr(PromptServer, "instance", Server(), raising=False)
    clever, plain = (lambda t: encode(knowing(clip, entry), t)), (lambda t: encode(clip, t))
    positive, negative = make(clever, plain), (clever if known else plain)("blurry")
    on = apply_stack(model, [entry])
    for run in ("1", "2"):
        caplog.clear()
        told.clear()
        with caplog.at_level(logging.WARNING), CurrentNodeContext(run, "7"):
            ksample(on, positive, negative, 3)
        (message,) = [r.message for r in caplog.records if "key lock" in r.message]
        assert told == [("7", message)]
        assert any(part in message for part in says.split("|"))
        assert "Connect that CLIP" in message or "as one prompt" in message


def test_a_negative_prompt_without_the_concept_needs_no_word(
    model: Model, clip: CLIP, entry: ConceptEntry, caplog: pytest.LogCaptureFixture
) -> None:
    clever = knowing(clip, entry)
    positive = encode(clever, TEXT)
    negatives = [encode(clip, ""), encode(clever, "blurry"), zeroed(positive, positive)]
    negatives.append(changed_elsewhere(encode(clever, "blurry")))
    with caplog.at_level(logging.WARNING):
        for negative in negatives:
            ksample(apply_stack(model, [entry]), positive, negative, 1)
    assert not [r for r in caplog.records if "key lock" in r.message]


@pytest.mark.parametrize("family", ["SD15", "SDXL"])
def test_an_encoder_with_the_lock_is_of_its_own_class(family: str) -> None:
    model, clip = true_model(family, torch.device("cpu"), channels=32), true_clip(family)
    found = detect_family(model)
    layers = {path: layer.out for path, layer in layers_of(model, found).items()}
    concept = random_concept(found, layers)
    locked = add_concepts(clip, [concept], [KeyLock.GLOBAL])
    stock, encoder = clip.cond_stage_model, locked.cond_stage_model
    assert type(encoder) is type(stock)
    assert encoder is not stock
    assert isinstance(encoder, comfy.sdxl_clip.SDXLClipModel) == (family == "SDXL")
    for name in ("clip_l", "clip_g"):
        assert getattr(encoder, name, None) is getattr(stock, name, None)
    assert encoder.state_dict().keys() == stock.state_dict().keys()
    assert [name for name, _ in encoder.named_modules()] == [n for n, _ in stock.named_modules()]
    # As advanced encoders do: one text encoder after the other, words numbered.
    for key, chunks in locked.tokenize(TEXT, return_word_ids=True).items():
        part = getattr(encoder, f"clip_{key}")
        rows = [[entry[:2] for entry in chunk] for chunk in chunks]
        context, _ = part.encode_token_weights(rows)[:2]
        assert context.shape[:2] == (1, 77)
    # Twice is no nesting, and the stock encoder stays as it was.
    again = add_concepts(locked, [concept], [KeyLock.GLOBAL]).cond_stage_model
    assert vars(again)["encode_token_weights"].encoder is stock
    assert "encode_token_weights" not in vars(stock)


def test_a_saved_prompt_is_locked_in_another_session(
    model: Model, clip: CLIP, entry: ConceptEntry
) -> None:
    """Nothing of the CLIP that encoded it lives any more."""
    clever = knowing(clip, entry)
    data = stored(encode(clever, TEXT))
    twin = encode(clip, TEXT.replace("*", ""))
    negative = encode(clever, "")
    found = keys(apply_stack(model, [entry]), loaded(data), negative)
    for one, other in zip(found, keys(model, twin, negative), strict=True):
        assert torch.allclose(one, other, atol=1e-4)


def test_several_vectors_are_followed_as_well(model: Model, clip: CLIP) -> None:
    entry = ConceptEntry(tiny_concept(model, clip, "toy*", "big teddy", vectors=2), GLOBAL)
    clever = knowing(clip, entry)
    mixed = average(encode(clever, "a toy* here"), encode(clever, "my toy*"))
    twins = average(encode(clip, "a big teddy here"), encode(clip, "my big teddy"))
    negative = encode(clever, "")
    # The same prompts again: what was averaged must not be known by whom holds it.
    kept = encode(clever, "a toy* here"), encode(clever, "my toy*")
    found = keys(apply_stack(model, [entry]), mixed, negative)
    assert kept
    for one, other in zip(found, keys(model, twins, negative), strict=True):
        assert torch.allclose(one, other, atol=1e-4)
