"""Concepts on weights that are patched, merged, cast, kept in few bits or not loaded at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import comfy.model_management as management
import nodes
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy.sd import CLIP
from comfy_extras.nodes_freelunch import FreeU_V2
from comfy_extras.nodes_model_merging import CLIPMergeSimple, ModelMergeBlocks, ModelMergeSimple
from other_packs import TEXT, differ, encode, knowing, ksample, lora_file, run_node
from projections import TOLERANCES, assert_edited, batches, tapped
from tiny_models import patched_modules, sample, tiny_clip, tiny_model

from perfusion_core.comfy.concept_entry import ConceptEntry
from perfusion_core.comfy.models import compute_dtype
from perfusion_core.comfy.stack import apply_stack, stack_of
from perfusion_core.concept.concept import Concept
from perfusion_core.method.edit import GatedEdit, PreparedContext
from perfusion_core.method.settings import ConceptSettings, KeyLock

Model = Any
ON = ConceptSettings(0.5, 0.15)
OFF = replace(ON, strength=0.0)
GLOBAL = replace(ON, key_lock=KeyLock.GLOBAL)


def add_lora(model: Model, clip: CLIP, strength_clip: float = 0.0) -> tuple[Model, CLIP]:
    """ComfyUI's Load LoRA."""
    return run_node(
        nodes.LoraLoader,
        model=model,
        clip=clip,
        lora_name=lora_file(model, clip),
        strength_model=0.5,
        strength_clip=strength_clip,
    )


@pytest.mark.parametrize("settings", [ON, GLOBAL])
def test_a_lora_on_the_clip_is_the_same_before_and_after_the_loader(
    settings: ConceptSettings, model: Model, clip: CLIP, teddy: Concept
) -> None:
    entry = ConceptEntry(teddy, settings)
    on, clever = apply_stack(model, [entry]), knowing(clip, entry)
    after = sample(*add_lora(on, clever, strength_clip=0.5))
    early_model, early_clip = add_lora(model, clip, strength_clip=0.5)
    before = sample(apply_stack(early_model, [entry]), knowing(early_clip, entry))
    assert torch.equal(before, after)
    assert differ(after, sample(*add_lora(on, clever)), sample(on, clever))


def test_a_lora_that_leaves_the_weights_alone_gives_the_picture_of_one_that_does_not(
    model: Model, clip: CLIP, teddy: Concept
) -> None:
    if find_spec("comfy_extras.nodes_lora_debug") is None:
        pytest.skip("this ComfyUI has no LoRA loader that leaves the weights alone")
    from comfy_extras.nodes_lora_debug import LoraLoaderBypass

    entry = ConceptEntry(teddy, ON)
    on, clever = apply_stack(model, [entry]), knowing(clip, entry)
    expected = sample(add_lora(on, clever)[0], clever)
    bypassed, _ = run_node(
        LoraLoaderBypass,
        model=on,
        clip=clever,
        lora_name=lora_file(model, clip),
        strength_model=0.5,
        strength_clip=0.0,
    )
    assert torch.allclose(sample(bypassed, clever), expected, atol=1e-3)


@pytest.mark.parametrize(
    ("node", "ratios"),
    [
        (ModelMergeSimple, {"ratio": 0.4}),
        (ModelMergeBlocks, {"input": 0.2, "middle": 0.5, "out": 0.8}),
    ],
)
def test_of_two_merged_models_the_first_ones_concept_stays(
    node: Any, ratios: dict[str, float], model: Model, clip: CLIP, teddy: Concept
) -> None:
    """ComfyUI merges the second one's weights alone; its other patches are lost as well."""
    entry = ConceptEntry(teddy, ON)
    clever = knowing(clip, entry)
    other = tiny_model(seed=9)

    def merge(one: Model, two: Model) -> Model:
        return run_node(node, model1=one, model2=two, **ratios)[0]

    merged = merge(model, other)
    stock = sample(merged, clever)
    first = merge(apply_stack(model, [entry]), other)
    assert stack_of(first) == (entry,)
    assert torch.equal(sample(first, clever), sample(apply_stack(merged, [entry]), clever))
    assert differ(sample(first, clever), stock)
    second = merge(model, apply_stack(other, [entry]))
    assert stack_of(second) == ()
    assert torch.equal(sample(second, clever), stock)


@pytest.mark.parametrize("settings", [ON, GLOBAL])
def test_of_two_merged_clips_the_first_ones_placeholder_stays(
    settings: ConceptSettings, model: Model, clip: CLIP, teddy: Concept
) -> None:
    entry = ConceptEntry(teddy, settings)
    other = tiny_clip(seed=8)

    def merge(one: CLIP, two: CLIP) -> CLIP:
        return run_node(CLIPMergeSimple, clip1=one, clip2=two, ratio=0.3)[0]

    on = apply_stack(model, [entry])
    pictures = [
        sample(on, knowing(merge(clip, other), entry)),
        sample(on, merge(knowing(clip, entry), other)),
    ]
    assert torch.equal(*pictures)
    assert differ(pictures[0], sample(on, knowing(clip, entry)))


def with_no_room(model: Model, patch: pytest.MonkeyPatch) -> Model:
    """As under --novram: ComfyUI leaves every weight where it is and casts it at each use."""
    patch.setattr(management, "is_device_cpu", lambda _: False)
    patch.setattr(management, "vram_state", management.VRAMState.NO_VRAM)
    return model


def with_room_for_half(model: Model, _: pytest.MonkeyPatch) -> Model:
    """As when memory runs short before sampling: ComfyUI unloads half of the model again."""

    def unload_half(executor: Any, patcher: Model, *args: Any, **kwargs: Any) -> Any:
        prepared = executor(patcher, *args, **kwargs)
        patcher.partially_unload(patcher.offload_device, patcher.model_size() // 2)
        assert 0 < patcher.loaded_size() < patcher.model_size()
        return prepared

    clone = model.clone()
    clone.add_wrapper(WrappersMP.PREPARE_SAMPLING, unload_half)
    return clone


@pytest.mark.parametrize("partly", [with_no_room, with_room_for_half])
def test_a_model_that_is_not_all_loaded_gives_the_picture_of_one_that_is(
    partly: Callable[..., Model],
    clip: CLIP,
    teddy: Concept,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entry = ConceptEntry(teddy, ON)
    clever = knowing(clip, entry)
    on, off = ([replace(entry, settings=settings)] for settings in (ON, OFF))
    whole = sample(apply_stack(add_lora(tiny_model(), clip)[0], on), clever)
    model = tiny_model()
    lora = add_lora(model, clip)[0]
    with tapped(model) as seen:
        picture = sample(partly(apply_stack(lora, on), monkeypatch), clever)
    assert any(p.cast for p in seen)
    assert_edited(seen, entry)
    assert torch.allclose(picture, whole, atol=1e-3)
    stock = sample(partly(lora, monkeypatch), clever)
    assert torch.equal(sample(partly(apply_stack(lora, off), monkeypatch), clever), stock)
    plain = sample(partly(apply_stack(model, on), monkeypatch), clever)
    assert differ(picture, stock, plain)
    assert patched_modules(model) == []


# What weights are kept in, and what they are cast to for use; None for no cast.
DTYPES = [
    (torch.float16, None),
    (torch.bfloat16, None),
    (torch.float16, torch.float32),
    (torch.float8_e4m3fn, torch.float32),
    (torch.float8_e4m3fn, torch.bfloat16),
    (torch.float8_e5m2, torch.float16),
]


@pytest.mark.parametrize(("kept", "cast"), DTYPES)
def test_weights_of_few_bits(
    kept: torch.dtype, cast: torch.dtype | None, clip: CLIP, teddy: Concept
) -> None:
    entry = ConceptEntry(teddy, ON)
    clever = knowing(clip, entry)
    model = tiny_model(dtype=kept, cast=cast)
    stored = {p.dtype for p in model.model.diffusion_model.parameters()}
    assert stored == {kept}
    assert compute_dtype(model.model) is (cast or kept)
    stock = sample(model, clever)
    assert torch.equal(sample(apply_stack(model, [replace(entry, settings=OFF)]), clever), stock)
    with tapped(model) as seen:
        picture = sample(apply_stack(model, [entry]), clever)
    assert {p.output.dtype for p in seen} == {cast or kept}
    assert {p.output.dtype for p in seen} <= TOLERANCES.keys()
    assert {p.cast for p in seen} == {cast is not None}
    assert_edited(seen, entry)
    assert torch.isfinite(picture).all()
    assert differ(picture, stock)
    with_lora = add_lora(model, clip)[0]
    both = sample(apply_stack(with_lora, [entry]), clever)
    assert torch.equal(sample(add_lora(apply_stack(model, [entry]), clip)[0], clever), both)
    assert differ(both, picture, sample(with_lora, clever))
    assert patched_modules(model) == []


@pytest.mark.parametrize(("kept", "cast"), DTYPES)
def test_with_weights_of_few_bits_gates_and_edit_are_exact_but_for_the_last_rounding(
    kept: torch.dtype, cast: torch.dtype | None, clip: CLIP, teddy: Concept, pot: Concept,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    seen: list[tuple[GatedEdit, torch.Tensor, PreparedContext]] = []
    prepare = GatedEdit.prepare

    def noted(self: GatedEdit, context: torch.Tensor, *args: Any) -> PreparedContext:
        prepared = prepare(self, context, *args)
        seen.append((self, context, prepared))
        return prepared

    with monkeypatch.context() as patch:
        patch.setattr(GatedEdit, "prepare", noted)
        entries = [ConceptEntry(teddy, ON), ConceptEntry(pot, ON)]
        on = apply_stack(tiny_model(dtype=kept, cast=cast), entries)
        sample(on, knowing(clip, *entries), "a teddy* in a pot*")
    assert len(seen) == 2  # steps
    for edit, context, prepared in seen:
        assert context.dtype is (cast or kept)
        exact = edit.prepare(context.double())
        for found, expected in (
            (prepared.context, exact.context),
            (prepared.weights, exact.weights),
        ):
            # fp32 itself is rounded on the way; fewer bits are the nearest number but on an edge.
            if found.dtype == torch.float32:
                assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
            else:
                assert (found == expected.to(found.dtype)).double().mean() > 0.99


@pytest.mark.parametrize(("kept", "cast"), DTYPES[-3:])
def test_the_global_lock_knows_prompts_in_any_dtype(
    kept: torch.dtype, cast: torch.dtype, clip: CLIP, teddy: Concept
) -> None:
    entry = ConceptEntry(teddy, GLOBAL)
    clever = knowing(clip, entry)
    model = tiny_model(dtype=kept, cast=cast)
    positive, negative = encode(clever, TEXT), encode(clever, "blurry")
    with tapped(model) as seen:
        ksample(apply_stack(model, [entry]), positive, negative)
    twin = encode(clip, TEXT.replace("*", ""))[0][0]
    assert batches(seen) == [2, 2]
    for p in seen:
        if p.kind == "k":
            row = [torch.equal(own, positive[0][0][0].to(own)) for own in p.context].index(True)
            expected = twin[0].to(cast).double() @ p.weight.T
            found = p.output[row].double()
            assert (found - expected).norm() < TOLERANCES[cast] * expected.norm()


def test_branches_with_a_concept_and_another_pack_each_take_turns(
    model: Model, clip: CLIP, teddy: Concept, pot: Concept
) -> None:
    """On one model they give what each gives on a model of its own."""
    entries = ConceptEntry(teddy, ON), ConceptEntry(pot, GLOBAL)
    clever = knowing(clip, *entries)
    positive, negative = encode(clever, "a teddy* next to a pot*"), encode(clever, "blurry")

    def branches(base: Model) -> list[Model]:
        with_lora = add_lora(base, clip)[0]
        (freed,) = run_node(FreeU_V2, model=base, b1=1.3, b2=1.4, s1=0.9, s2=0.2)
        one, two = ([entry] for entry in entries)
        return [apply_stack(with_lora, one), apply_stack(freed, two), with_lora, base]

    expected = [ksample(branches(tiny_model())[number], positive, negative) for number in range(4)]
    assert differ(*expected)
    shared = branches(model)
    for number in (0, 1, 3, 1, 0, 2, 0, 3):
        assert torch.equal(ksample(shared[number], positive, negative), expected[number])
    assert patched_modules(model) == []


def test_one_branch_goes_on_with_the_picture_of_another(
    model: Model, clip: CLIP, teddy: Concept, pot: Concept
) -> None:
    entries = ConceptEntry(teddy, ON), ConceptEntry(pot, ON)
    clever = knowing(clip, *entries)
    prompts = encode(clever, "a teddy* next to a pot*"), encode(clever, "blurry")

    def relay(*runners: Model) -> torch.Tensor:
        latent = {"samples": torch.zeros(1, 4, 8, 8)}
        for leg, runner in enumerate(runners):
            first, last = leg == 0, leg == len(runners) - 1
            (latent,) = run_node(
                nodes.KSamplerAdvanced,
                model=runner,
                add_noise="enable" if first else "disable",
                noise_seed=5,
                steps=len(runners),
                cfg=4.0,
                sampler_name="euler",
                scheduler="normal",
                positive=prompts[0],
                negative=prompts[1],
                latent_image=latent,
                start_at_step=leg,
                end_at_step=leg + 1,
                return_with_leftover_noise="disable" if last else "enable",
            )
        return latent["samples"].clone()

    def branches(base: Model) -> list[Model]:
        return [apply_stack(base, [entry]) for entry in entries]

    (one, two), (own_one, _), (_, own_two) = (
        branches(m) for m in (model, tiny_model(), tiny_model())
    )
    expected = relay(own_one, own_two, own_one, own_two)
    assert torch.equal(relay(one, two, one, two), expected)
    assert differ(expected, relay(one, one, one, one), relay(two, two, two, two))
    assert patched_modules(model) == []
