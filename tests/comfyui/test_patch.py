"""Concepts on a model, through ComfyUI's real sampler: the stock output is the oracle."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import comfy.model_base
import comfy.model_management
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy.sd import CLIP
from projections import reference
from tiny_models import CPU, patched_modules, sample, tiny_concept, tiny_model

from perfusion_core.comfy.concept_entry import ConceptEntry
from perfusion_core.comfy.forward_patch import Differences, edited
from perfusion_core.comfy.models import ComfyMismatch, detect_family, layers_of
from perfusion_core.comfy.prompts import add_concepts
from perfusion_core.comfy.stack import KEY, apply_stack, extend_stack, stack_of, tune
from perfusion_core.concept.concept import Concept, ConceptError
from perfusion_core.method.edit import GatedEdit
from perfusion_core.method.settings import ConceptSettings, KeyLock

Model = Any
ON = ConceptSettings(bias=0.6, temperature=0.15)
OFF = replace(ON, strength=0.0)
APPLY, CALC = WrappersMP.APPLY_MODEL, WrappersMP.CALC_COND_BATCH


def test_a_concept_changes_the_picture_and_strength_0_is_bit_for_bit_the_stock(
    model: Model, clip: CLIP, teddy: Concept
) -> None:
    knowing = add_concepts(clip, [teddy])
    stock = sample(model, knowing)
    on = apply_stack(model, [ConceptEntry(teddy, ON)])
    assert not torch.allclose(sample(on, knowing), stock, atol=1e-2)
    assert torch.equal(sample(apply_stack(model, [ConceptEntry(teddy, OFF)]), knowing), stock)
    off = tune(on, "", lambda _: OFF)
    assert torch.equal(sample(off, knowing), stock)
    assert torch.equal(sample(tune(off, "teddy*", lambda _: ON), knowing), sample(on, knowing))


def test_a_concept_at_strength_0_does_not_touch_the_other(
    model: Model, clip: CLIP, teddy: Concept, pot: Concept
) -> None:
    prompt = "a teddy* next to a pot*"
    knowing = add_concepts(clip, [teddy, pot])
    alone = apply_stack(model, [ConceptEntry(teddy, ON)])
    both = apply_stack(model, [ConceptEntry(teddy, ON), ConceptEntry(pot, OFF)])
    assert torch.equal(sample(both, knowing, prompt), sample(alone, knowing, prompt))


def test_two_chained_loaders_equal_one_combined_stack(
    model: Model, clip: CLIP, teddy: Concept, pot: Concept
) -> None:
    prompt = "a teddy* next to a pot*"
    one, two = ConceptEntry(teddy, ON), ConceptEntry(pot, ConceptSettings(0.5, 0.2, 0.8))
    chained = apply_stack(apply_stack(model, [one]), [two])
    combined = apply_stack(model, extend_stack((one,), [two]))
    twice = add_concepts(add_concepts(clip, [teddy]), [pot])
    once = add_concepts(clip, [teddy, pot])
    expected = sample(combined, once, prompt)
    assert torch.equal(sample(chained, twice, prompt), expected)
    assert stack_of(chained) == stack_of(combined) == (one, two)
    assert not torch.allclose(expected, sample(model, once, prompt), atol=1e-2)


def test_a_branch_that_shares_the_model_is_untouched(
    model: Model, clip: CLIP, teddy: Concept, pot: Concept
) -> None:
    knowing = add_concepts(clip, [teddy, pot])
    one = apply_stack(model, [ConceptEntry(teddy, ON)])
    other = apply_stack(model, [ConceptEntry(pot, ON)])
    stock, first, second = (sample(m, knowing) for m in (model, one, other))
    for branch, expected in ((one, first), (model, stock), (other, second), (one, first)):
        assert torch.equal(sample(branch, knowing), expected)
    assert stack_of(model) == ()
    assert not model.wrappers
    assert not model.object_patches


def test_nothing_is_left_on_the_model_after_a_run(model: Model, clip: CLIP, teddy: Concept) -> None:
    seen: list[list[str]] = []
    on = apply_stack(model, [ConceptEntry(teddy, ON)])
    on.set_model_attn2_patch(watch(lambda: seen.append(patched_modules(model))))
    sample(on, add_concepts(clip, [teddy]))
    layers = layers_of(model, detect_family(model))
    assert len(seen[0]) == 2 * len(layers) > 0
    assert patched_modules(model) == []


def watch(action: Any) -> Any:
    """An attn2 patch that calls `action` in every layer and changes nothing."""

    def patch(n: Any, context: Any, value: Any, _: Any) -> tuple[Any, Any, Any]:
        action()
        return n, context, value

    return patch


def test_nothing_is_left_after_an_error(model: Model, clip: CLIP, teddy: Concept) -> None:
    calls: list[int] = []

    def fail_late() -> None:
        calls.append(1)
        if len(calls) == 10:
            raise RuntimeError("another pack's fault")

    knowing = add_concepts(clip, [teddy])
    stock = sample(model, knowing)
    on = apply_stack(model, [ConceptEntry(teddy, ON)])
    broken = on.clone()
    broken.set_model_attn2_patch(watch(fail_late))
    with pytest.raises(RuntimeError, match="another pack's fault"):
        sample(broken, knowing)
    assert patched_modules(model) == []
    assert torch.equal(sample(model, knowing), stock)
    assert not torch.equal(sample(on, knowing), stock)


def test_nothing_is_left_after_cancel(model: Model, clip: CLIP, teddy: Concept) -> None:
    knowing = add_concepts(clip, [teddy])
    stock = sample(model, knowing)
    on = apply_stack(model, [ConceptEntry(teddy, ON)])
    on.set_model_attn2_patch(
        watch(lambda: comfy.model_management.interrupt_current_processing(True))
    )
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(on, knowing)
    comfy.model_management.interrupt_current_processing(False)
    assert patched_modules(model) == []
    assert torch.equal(sample(model, knowing), stock)


def test_a_foreign_forward_is_kept_and_works_on_the_edited_text(
    model: Model, clip: CLIP, teddy: Concept
) -> None:
    layer = next(iter(layers_of(model, detect_family(model)).values())).key
    own = layer.forward
    contexts: list[torch.Tensor] = []

    def foreign(context: torch.Tensor) -> torch.Tensor:
        contexts.append(context)
        return own(context)

    layer.forward = foreign
    knowing = add_concepts(clip, [teddy])
    sample(model, knowing)
    sample(apply_stack(model, [ConceptEntry(teddy, ON)]), knowing)
    assert layer.forward is foreign
    assert contexts[0].shape == contexts[-1].shape
    assert not torch.allclose(contexts[0], contexts[-1])


def test_a_foreign_forward_may_keep_what_it_gave(model: Model, clip: CLIP, teddy: Concept) -> None:
    """As packs do that compute the values of a prompt once and give them again at every step."""
    layer = next(iter(layers_of(model, detect_family(model)).values())).value
    own = layer.forward
    kept: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def foreign(context: torch.Tensor) -> torch.Tensor:
        for known, values, _ in kept:
            if torch.equal(known, context):
                return values
        values = own(context)
        kept.append((context.clone(), values, values.clone()))
        return values

    knowing = add_concepts(clip, [teddy])
    on = apply_stack(model, [ConceptEntry(teddy, ON)])
    expected = sample(on, knowing, steps=3)
    layer.forward = foreign
    assert torch.equal(sample(on, knowing, steps=3), expected)
    assert len(kept) == 1
    assert all(torch.equal(values, as_given) for _, values, as_given in kept)


def test_a_pass_within_a_pass_replaces_the_edit(model: Model, clip: CLIP, teddy: Concept) -> None:
    layers = layers_of(model, detect_family(model))
    edit = GatedEdit(
        teddy.target_input[None].float(),
        teddy.whitened_target[None],
        teddy.superclass_encoding[None].float(),
        [ON],
    )
    differences = Differences({path: d[None].float() for path, d in teddy.values.items()})
    value = next(iter(layers.values())).value
    context = torch.randn(2, 7, 192)
    edits = dict.fromkeys(layers, edit)
    with edited(layers, edits, differences, CPU, torch.float32):
        once = value(context)
        with edited(layers, edits, differences, CPU, torch.float32):
            assert torch.equal(value(context), once)
        assert torch.equal(value(context), once)
    assert not torch.equal(value(context), once)
    assert patched_modules(model) == []


@pytest.mark.parametrize("count", [1, 2, 4])
def test_keys_and_values_match_a_float64_reference(count: int, model: Model, clip: CLIP) -> None:
    stack = [
        ConceptEntry(
            tiny_concept(model, clip, f"word{j}*", "teddy", seed=20 + j),
            ConceptSettings(0.5 + 0.1 * j, 0.15 + 0.05 * j),
        )
        for j in range(count)
    ]
    knowing = add_concepts(clip, [entry.concept for entry in stack])
    contexts: list[torch.Tensor] = []
    outputs: list[tuple[torch.Tensor, torch.Tensor]] = []

    def note_context(n: Any, context: Any, value: Any, _: Any) -> tuple[Any, Any, Any]:
        contexts.append(context.clone())
        return n, context, value

    def note_outputs(q: Any, k: Any, v: Any, _: Any) -> Any:
        outputs.append((k.clone(), v.clone()))
        return torch.zeros_like(q)

    on = apply_stack(model, stack)
    on.set_model_attn2_patch(note_context)
    on.set_model_attn2_replace(note_outputs, "middle", 0)
    words = " ".join(entry.concept.placeholder for entry in stack)
    sample(on, knowing, f"a photo of a {words} on a blue background", steps=1)
    layers = layers_of(model, detect_family(model))
    path = next(p for p in layers if p.startswith("middle"))
    context = contexts[[p for p in layers].index(path)]
    keys, values = outputs[0]
    layer = layers[path]
    key_weight, value_weight = layer.key.weight.detach(), layer.value.weight.detach()
    for found, expected in (
        (keys, reference(key_weight, context, stack, None)),
        (values, reference(value_weight, context, stack, path)),
    ):
        error = (found.double() - expected).norm() / expected.norm()
        assert error < 2e-6
    with torch.no_grad():
        assert (keys - layer.key(context)).norm() > 0.05 * keys.norm()


def test_a_lora_is_the_same_before_and_after_the_loader(
    model: Model, clip: CLIP, teddy: Concept
) -> None:
    path = next(iter(teddy.values))
    key = f"diffusion_model.{path}.to_v.weight"
    difference = torch.randn(model.model_state_dict()[key].shape)
    lora = {key: ("diff", (difference,))}
    knowing = add_concepts(clip, [teddy])
    entry = ConceptEntry(teddy, ON)
    before = model.clone()
    assert before.add_patches(lora, 0.5) == [key]
    before = apply_stack(before, [entry])
    after = apply_stack(model, [entry])
    after.add_patches(lora, 0.5)
    expected = sample(after, knowing)
    assert torch.equal(sample(before, knowing), expected)
    assert not torch.equal(sample(apply_stack(model, [entry]), knowing), expected)


def test_however_often_settings_change_there_is_one_patch_and_none_that_is_not_needed(
    model: Model, teddy: Concept, pot: Concept
) -> None:
    def ours(of: Model) -> list[int]:
        return [len(of.get_wrappers(kind, KEY)) for kind in (APPLY, CALC)]

    on = apply_stack(model, [ConceptEntry(teddy, ON)])
    assert ours(on) == [1, 0]
    locked = replace(ON, key_lock=KeyLock.GLOBAL)
    both = apply_stack(on, [ConceptEntry(pot, locked)])
    for bias in (0.3, 0.4, 0.5):
        both = tune(both, "", lambda s, b=bias: replace(s, bias=b))
        assert ours(both) == [1, 1]
    assert ours(tune(both, "pot*", lambda _: replace(locked, strength=0.0))) == [1, 0]
    assert ours(tune(both, "", lambda s: replace(s, strength=0.0))) == [0, 0]


def test_packs_that_give_every_layer_a_context_of_its_own_change_nothing(
    model: Model, clip: CLIP, teddy: Concept
) -> None:
    on = apply_stack(model, [ConceptEntry(teddy, ON)])
    knowing = add_concepts(clip, [teddy])
    expected = sample(on, knowing)
    coupled = on.clone()
    coupled.set_model_attn2_patch(lambda n, k, v, _: (n, k.clone(), v.clone()))
    assert torch.equal(sample(coupled, knowing), expected)


def test_the_edit_is_prepared_once_for_all_layers(
    model: Model, clip: CLIP, teddy: Concept, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    prepare = GatedEdit.prepare

    def count(self: GatedEdit, context: torch.Tensor, *args: Any) -> Any:
        calls.append(1)
        return prepare(self, context, *args)

    monkeypatch.setattr(GatedEdit, "prepare", count)
    on = apply_stack(model, [ConceptEntry(teddy, ON)])
    sample(on, add_concepts(clip, [teddy]), steps=3)
    assert len(calls) == 3  # cond and uncond in one batch


@pytest.mark.parametrize(("width", "family"), [(768, "sd1"), (1024, "sd2"), (192, "emoji")])
def test_the_family_is_known_by_the_width_of_the_text(width: int, family: str) -> None:
    assert detect_family(tiny_model(width)).id == family


def test_sdxl_is_known_by_what_else_goes_in_as_well() -> None:
    pooled = {"num_classes": "sequential", "adm_in_channels": 2816}
    assert detect_family(tiny_model(2048, **pooled)).id == "sdxl"
    for others in ({}, {**pooled, "adm_in_channels": 1000}):
        with pytest.raises(ComfyMismatch, match="width of Stable Diffusion XL's.* not as there"):
            detect_family(tiny_model(2048, **others))


def test_an_unknown_width_is_refused() -> None:
    with pytest.raises(ComfyMismatch, match=r"BaseModel.*cross-attention is 320"):
        detect_family(tiny_model(320))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Flux", "share one attention"),
        ("Chroma", "share one attention"),
        ("SD3", "share one attention"),
        ("QwenImage", "share one attention"),
        ("SDXLRefiner", "only one of SDXL's two text encoders"),
        ("SV3D_u", "pictures"),
        ("WAN21_Vace", "its network is derived of Wan's"),
        ("CosmosVideo", "not support it yet"),
    ],
)
def test_models_that_do_not_fit_are_refused_by_name_and_reason(name: str, reason: str) -> None:
    kind = getattr(comfy.model_base, name)
    with pytest.raises(ComfyMismatch, match=rf"{name}\..*{reason}"):
        detect_family(SimpleNamespace(model=kind.__new__(kind)))


def test_a_concept_of_another_family_is_refused(model: Model, clip: CLIP, teddy: Concept) -> None:
    big = tiny_model(768)
    with pytest.raises(ConceptError, match="trained for the emoji world"):
        apply_stack(big, [ConceptEntry(teddy, ON)])


def test_a_concept_without_some_of_the_layers_is_refused(model: Model, teddy: Concept) -> None:
    values = dict(teddy.values)
    path, _ = values.popitem()
    with pytest.raises(ConceptError, match=path.replace(".", r"\.")):
        apply_stack(model, [ConceptEntry(replace(teddy, values=values), ON)])


def test_tuning_needs_a_concept_of_that_name(
    model: Model, clip: CLIP, teddy: Concept, pot: Concept
) -> None:
    with pytest.raises(ComfyMismatch, match="carries no Perfusion concept"):
        tune(model, "", lambda s: s)
    both = apply_stack(model, [ConceptEntry(teddy, ON), ConceptEntry(pot, ON)])
    with pytest.raises(ComfyMismatch, match=r'no concept called "cup\*".*teddy\*.*pot\*'):
        tune(both, "cup*", lambda s: s)
    tuned = stack_of(tune(both, " POT* ", lambda s: replace(s, bias=0.1)))
    assert [entry.settings.bias for entry in tuned] == [0.6, 0.1]
    assert [entry.settings.bias for entry in stack_of(both)] == [0.6, 0.6]
