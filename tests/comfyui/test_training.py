"""Training on ComfyUI's own classes, their weights made in inference mode as ComfyUI does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import comfy.model_management
import comfy.patcher_extension
import pytest
import torch
from comfy.model_base import ModelType
from comfy.sd import CLIP
from tiny_models import patched_modules, sample, tiny_clip, tiny_concept, tiny_model

from perfusion_core.comfy.backbone import ComfyBackbone, training_backbone
from perfusion_core.comfy.concept_entry import ConceptEntry
from perfusion_core.comfy.models import ComfyMismatch
from perfusion_core.comfy.prompts import add_concepts, encode
from perfusion_core.comfy.stack import apply_stack
from perfusion_core.concept.concept import Concept
from perfusion_core.method.batches import PictureGroup, TrainingError
from perfusion_core.method.covariance import Covariance
from perfusion_core.method.edit import GatedEdit
from perfusion_core.method.settings import ConceptSettings
from perfusion_core.method.training import Training, train
from perfusion_core.method.training_settings import TrainingSettings

SHAPE = (2, 4, 8, 8)
Model = Any


@pytest.fixture(scope="module")
def model() -> Model:
    with torch.inference_mode():
        return tiny_model()


@pytest.fixture(scope="module")
def clip() -> CLIP:
    with torch.inference_mode():
        return tiny_clip(length=32)


@pytest.fixture
def unchanged(model: Model, clip: CLIP) -> Iterator[None]:
    """Asserts that model and encoder are then as before: the same objects of the same values."""
    parts = (model.model, clip.cond_stage_model)
    before = [
        {n: (p, p.requires_grad, p.detach().clone()) for n, p in part.named_parameters()}
        for part in parts
    ]
    buffers = [dict(part.named_buffers()) for part in parts]
    yield
    comfy.model_management.interrupt_current_processing(False)
    for part, parameters, old in zip(parts, before, buffers, strict=True):
        assert dict(part.named_parameters()).keys() == parameters.keys()
        for name, now in part.named_parameters():
            was, grad, values = parameters[name]
            assert now is was
            assert now.requires_grad == grad
            assert now.grad is None
            assert torch.equal(now, values)
        assert all(now is old[name] for name, now in part.named_buffers())
    assert patched_modules(model) == []
    assert not model.wrappers
    assert not model.object_patches
    assert not model.attachments


def covariance(width: int = 192) -> Covariance:
    return Covariance(torch.eye(width), 1000, "emoji")


def run(
    model: Model,
    clip: CLIP,
    between: Callable[[], None] = lambda: None,
    latents: torch.Tensor | None = None,
    masks: torch.Tensor | None = None,
    superclass: str = "teddy",
    placeholder: str = "teddy*",
    **settings: Any,
) -> Training:
    """Trains as the node does: within ComfyUI's inference mode."""
    with torch.inference_mode():
        if latents is None:
            latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3)) * 5
        with training_backbone(model, clip, SHAPE) as backbone:
            training = Training(
                backbone,
                [PictureGroup(latents, masks)],
                placeholder=placeholder,
                superclass=superclass,
                covariance=covariance(),
                settings=TrainingSettings(**{"steps": 3, "batch_size": 2, "seed": 1, **settings}),
            )
            for _ in training:
                between()
            return training


def test_weights_made_in_inference_mode_can_be_trained_on(
    model: Model, clip: CLIP, unchanged: None
) -> None:
    assert next(model.model.parameters()).is_inference()
    result = run(model, clip)
    concept = result.concept
    assert result.finished
    assert len(result.losses) == 3
    assert concept.family == "emoji"
    assert concept.embeddings["clip_l"].shape == (1, 192)
    assert len(concept.values) == 7
    assert all(float(value.abs().max()) > 0 for value in concept.values.values())


def test_the_stand_ins_share_the_weights_memory(model: Model, clip: CLIP, unchanged: None) -> None:
    pointers = [p.data_ptr() for p in model.model.parameters()]
    with torch.inference_mode(), training_backbone(model, clip, SHAPE):
        inside = list(model.model.parameters())
        assert not any(p.is_inference() or p.requires_grad for p in inside)
        assert [p.data_ptr() for p in inside] == pointers
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()


def test_a_weight_that_comfyui_exchanges_meanwhile_stays_exchanged(
    model: Model, clip: CLIP
) -> None:
    """As it does when it takes a LoRA off a model, or moves one that must make room."""
    part = model.model.diffusion_model.out[2]
    before = part.weight
    other = torch.nn.Parameter(torch.zeros_like(before), requires_grad=False)
    try:
        with torch.inference_mode(), training_backbone(model, clip, SHAPE):
            assert part.weight is not before
            part.weight = other
        assert part.weight is other
    finally:
        part.weight = before


def test_what_is_not_trained_on_leaves_the_device_while_training(clip: CLIP) -> None:
    # ComfyUI frees no memory of the device "cpu"; "cpu:0" is another one to it.
    with torch.inference_mode():
        trained, other = tiny_model(), tiny_model()
        for one in (trained, other):
            one.load_device = torch.device("cpu", 0)
        comfy.model_management.load_models_gpu([other])  # as a VAE after encoding
        assert other in comfy.model_management.loaded_models()
        with training_backbone(trained, clip, SHAPE) as backbone:
            held = comfy.model_management.loaded_models()
            assert other not in held
            assert any(patcher.is_clone(trained) for patcher in held)
            assert backbone.device == trained.load_device


def test_the_loss_falls_when_one_picture_is_learned_by_heart(clip: CLIP) -> None:
    with torch.inference_mode():
        model = tiny_model(kind=ModelType.V_PREDICTION, model_channels=64)
        # A model that listens to its text: with random weights alone, little of it reaches the end.
        for name, weight in model.model.diffusion_model.named_parameters():
            if "attn2.to_out" in name or name.endswith("proj_out.weight") or name == "out.2.weight":
                weight.mul_(3)
    colour = torch.tensor([3.0, -3.0, 2.0, -2.0]) / 0.18215
    picture = colour.view(1, 4, 1, 1).expand(1, 4, 8, 8)
    result = run(model, clip, latents=picture, steps=40, batch_size=4, value_rate=0.5)
    first, last = sum(result.losses[:4]) / 4, sum(result.losses[-4:]) / 4
    assert last < 0.75 * first


def test_the_same_seed_gives_the_same_concept(model: Model, clip: CLIP, unchanged: None) -> None:
    one, two, other = (run(model, clip, seed=seed).concept.hash for seed in (1, 1, 2))
    assert one == two != other


def test_a_mask_of_ones_is_no_mask(model: Model, clip: CLIP) -> None:
    plain = run(model, clip).concept.hash
    assert run(model, clip, masks=torch.ones(2, 64, 64)).concept.hash == plain
    half = torch.ones(2, 64, 64)
    half[:, :32] = 0
    assert run(model, clip, masks=half).concept.hash != plain


def test_cancel_stops_within_one_step(model: Model, clip: CLIP, unchanged: None) -> None:
    done: list[int] = []

    def cancel_after_the_second() -> None:
        done.append(len(done) + 1)
        if len(done) == 2:
            comfy.model_management.interrupt_current_processing(True)

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(model, clip, cancel_after_the_second, steps=50)
    assert done == [1, 2]


def test_an_error_leaves_everything_as_it_was(model: Model, clip: CLIP, unchanged: None) -> None:
    def fail() -> None:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        run(model, clip, fail)
    assert torch.is_inference_mode_enabled() is False


def test_the_model_samples_as_before_and_the_concept_is_usable(model: Model, clip: CLIP) -> None:
    stock = sample(model, clip)
    concept = run(model, clip, steps=5, value_rate=0.5).concept
    assert torch.equal(sample(model, clip), stock)
    on = apply_stack(model, [ConceptEntry(concept, concept.settings)])
    assert not torch.allclose(sample(on, add_concepts(clip, [concept])), stock, atol=1e-2)


def test_other_packs_patches_on_the_model_are_in_effect(model: Model, clip: CLIP) -> None:
    calls: list[str] = []
    patched = model.clone()

    def patch(n: Any, context: Any, value: Any, _: Any) -> tuple[Any, Any, Any]:
        calls.append("attention patch")
        return n, context, value

    def wrapper(executor: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append("wrapper")
        return executor(*args, **kwargs)

    patched.set_model_attn2_patch(patch)
    kind = comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL
    patched.add_wrapper_with_key(kind, "other", wrapper)
    run(patched, clip, steps=1)
    assert calls.count("wrapper") == 1
    assert calls.count("attention patch") == 7


def test_a_lora_on_the_model_is_in_effect(model: Model, clip: CLIP) -> None:
    key = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_v.weight"
    shape = model.model_state_dict()[key].shape
    with torch.inference_mode():
        lora = model.clone()
        lora.add_patches({key: ("diff", (torch.randn(shape),))}, 1.0)
    changed = run(lora, clip).concept.hash
    assert changed != run(model, clip).concept.hash


@pytest.mark.parametrize("kind", [ModelType.EPS, ModelType.V_PREDICTION, ModelType.FLOW])
def test_the_loss_is_the_error_of_what_the_model_predicts(kind: ModelType, clip: CLIP) -> None:
    with torch.inference_mode():
        model = tiny_model(kind=kind)
        latents, noise = torch.randn(2, *SHAPE)
    times = torch.tensor([0.2, 0.7])
    raw: list[torch.Tensor] = []

    def note(executor: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        raw.append(executor(*args, **kwargs))
        return raw[-1]

    wrapper = comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL
    model.add_wrapper_with_key(wrapper, "note", note)
    concept = tiny_concept(model, clip)
    with torch.inference_mode(), training_backbone(model, clip, SHAPE) as backbone:
        encoded = backbone.encode(["a teddy*"] * 2, "teddy*", dict(concept.embeddings))
        values = {path: d[None].float() for path, d in concept.values.items()}
        loss = backbone.loss(latents.clone(), noise.clone(), times, encoded, gate(concept), values)
        sampling = model.model.model_sampling
        sigma = torch.tensor([sampling.percent_to_sigma(1 - t) for t in times.tolist()])
        sigma = sigma.view(2, 1, 1, 1)
        clean = model.model.process_latent_in(latents.clone())
        target = {
            ModelType.EPS: noise,
            ModelType.V_PREDICTION: (noise - sigma * clean) / (sigma**2 + 1) ** 0.5,
            ModelType.FLOW: noise - clean,
        }[kind]
        assert torch.allclose(loss, (raw[0] - target).square(), rtol=1e-3, atol=1e-4)


def test_the_loss_follows_the_sampling_that_a_node_has_set(model: Model, clip: CLIP) -> None:
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    with torch.inference_mode():
        patched = ModelSamplingDiscrete().patch(model, "v_prediction", False)[0]
    told = tiny_model(kind=ModelType.V_PREDICTION)
    as_told = run(told, clip).losses
    assert run(patched, clip).losses == as_told
    assert run(model, clip).losses != as_told


def test_a_step_reads_no_number_of_the_schedule_from_the_device(
    model: Model, clip: CLIP, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    kind = type(model.model.model_sampling)
    percent_to_sigma = kind.percent_to_sigma

    def noted(self: Any, percent: float) -> float:
        asked.append(self)
        return percent_to_sigma(self, percent)

    monkeypatch.setattr(kind, "percent_to_sigma", noted)
    run(model, clip, steps=2)
    assert len(asked) == 2 * 2
    assert model.model.model_sampling not in asked
    assert {b.device.type for one in asked for b in one.buffers()} == {"cpu"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_in_half_precision_computes_afterwards_as_before(
    dtype: torch.dtype, clip: CLIP
) -> None:
    with torch.inference_mode():
        model = tiny_model(dtype=dtype)
    stock = sample(model, clip)
    concept = run(model, clip).concept
    assert all(float(value.abs().max()) > 0 for value in concept.values.values())
    assert torch.equal(sample(model, clip), stock)
    assert {p.dtype for p in model.model.parameters()} == {dtype}


def gate(concept: Concept) -> GatedEdit:
    return GatedEdit(
        concept.target_input[None].float(),
        concept.whitened_target[None],
        concept.superclass_encoding[None].float(),
        [ConceptSettings(0.75, 0.1)],
    )


def test_the_gradient_through_the_text_encoder_is_right(model: Model, clip: CLIP) -> None:
    # The oracle: autograd's own (slow) way with in-place additions.
    start = torch.randn(2, 192, generator=torch.Generator().manual_seed(0)) * 0.5
    gradients = []
    with torch.inference_mode(), training_backbone(model, clip, SHAPE) as backbone:
        for ours in (True, False):
            vectors = start.clone().requires_grad_()
            if ours:
                encoded = backbone.encode(
                    ["a teddy* here", "teddy*"], "teddy*", {"clip_l": vectors}
                )
                encoded.context.square().sum().backward()
                positions = encoded.positions
            else:
                oracle = with_vectors(clip, vectors)
                with torch.autograd.graph.allow_mutation_on_saved_tensors():
                    encode(oracle, ["a teddy* here", "teddy*"]).context.square().sum().backward()
            gradients.append(vectors.grad)
    assert positions.nonzero().tolist() == [[0, 3], [1, 2]]
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-5, atol=1e-5)
    assert float(gradients[0].abs().max()) > 0


def with_vectors(clip: CLIP, vectors: torch.Tensor) -> CLIP:
    from perfusion_core.comfy.prompts import Word, with_words

    return with_words(clip, {"clip_l": [Word("teddy*", vectors)]})


def test_a_prompt_that_comes_up_again_is_encoded_once(model: Model, clip: CLIP) -> None:
    prompts = ["a teddy*", "a photo of a teddy*", "a teddy*", "a teddy*"]
    start = torch.randn(1, 192, generator=torch.Generator().manual_seed(0)) * 0.5
    counts: list[int] = []
    with torch.inference_mode(), training_backbone(model, clip, SHAPE) as backbone:
        handle = clip.cond_stage_model.clip_l.transformer.register_forward_pre_hook(
            lambda _, __, given: counts.append(len(given["embeds"])), with_kwargs=True
        )
        try:
            vectors = start.clone().requires_grad_()
            encoded = backbone.encode(prompts, "teddy*", {"clip_l": vectors})
        finally:
            handle.remove()
        weights = torch.arange(1.0, 5.0).view(4, 1, 1)
        (encoded.context.square() * weights).sum().backward()
        alone = start.clone().requires_grad_()
        apart = [backbone.encode([prompt], "teddy*", {"clip_l": alone}) for prompt in prompts]
        context = torch.cat([one.context for one in apart])
        (context.square() * weights).sum().backward()
    assert counts == [2]
    assert torch.allclose(encoded.context, context, atol=1e-5)
    assert torch.equal(encoded.positions, torch.cat([one.positions for one in apart]))
    assert torch.allclose(vectors.grad, alone.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_text_encoder_in_half_precision_is_cast_once_and_not_in_every_step(
    model: Model, dtype: torch.dtype
) -> None:
    with torch.inference_mode():
        halved, same = tiny_clip(length=32), tiny_clip(length=32)
        halved.cond_stage_model.to(dtype)
        same.cond_stage_model.to(dtype).float()
    before = dict(halved.cond_stage_model.named_parameters())
    seen: set[torch.dtype] = set()

    def look() -> None:
        seen.update(p.dtype for p in halved.cond_stage_model.clip_l.transformer.parameters())

    learned = run(model, halved, look).concept
    assert seen == {dtype, torch.float32}  # the token embeddings stay as they are
    assert all(now is before[name] for name, now in halved.cond_stage_model.named_parameters())
    assert {p.dtype for p in before.values()} == {dtype}
    assert learned.hash == run(model, same).concept.hash


def test_a_model_that_computes_in_fp16_learns_what_it_learns_in_fp32(clip: CLIP) -> None:
    # What a GPU without bf16 does; a CPU computes in fp32 unless told to.
    latents = torch.randn(4, 4, 32, 32, generator=torch.Generator().manual_seed(3))
    masks = torch.full((4, 32, 32), 0.01)  # soft, as CLIPSeg's are: most gradients are small
    masks[:, 16, 16] = 1
    learned = {}
    for dtype in (torch.float32, torch.float16):
        with torch.inference_mode():
            model = tiny_model(dtype=dtype)
        backbone = ComfyBackbone(model.clone(), clip.clone(), latents.shape, "off")
        backbone.resume()
        try:
            assert backbone.underflows == (dtype == torch.float16)
            learned[dtype] = train(
                backbone,
                [PictureGroup(latents, masks)],
                placeholder="teddy*",
                superclass="teddy",
                covariance=covariance(),
                settings=TrainingSettings(steps=1, batch_size=4, seed=1),
            ).concept
        finally:
            backbone.release()
    one, other = (torch.cat(list(c.values.values())).float() for c in learned.values())
    # Adam's first step is the gradient's sign: one that became 0, or noise, shows.
    assert float((one.sign() == other.sign()).float().mean()) > 0.98


def test_the_superclass_starts_the_embedding(model: Model, clip: CLIP) -> None:
    with torch.inference_mode(), training_backbone(model, clip, SHAPE) as backbone:
        for word, count in (("teddy", 1), ("teddy bear", 2)):
            vectors = backbone.superclass_embeddings(word)
            assert vectors["clip_l"].shape == (count, 192)
            ours = backbone.encode([f"a photo of a {word}"], word, vectors)
            plain = encode(clip, [f"a photo of a {word}"])
            assert torch.allclose(ours.context, plain.context)
            assert ours.positions.nonzero().tolist() == [[0, 4 + count]]


def test_an_empty_superclass_is_refused(model: Model, clip: CLIP, unchanged: None) -> None:
    with pytest.raises(ValueError, match="superclass is empty"):
        run(model, clip, superclass=" ")


def test_a_model_that_carries_a_concept_is_refused(model: Model, clip: CLIP) -> None:
    concept = tiny_concept(model, clip)
    on = apply_stack(model, [ConceptEntry(concept, concept.settings)])
    with pytest.raises(ComfyMismatch, match=r"already carries the concept \"teddy\""):
        run(on, clip)


def test_a_clip_of_another_family_is_refused(clip: CLIP) -> None:
    with pytest.raises(ComfyMismatch, match=r"Stable Diffusion 1\.x.*Connect the model's own CLIP"):
        run(tiny_model(768), clip)


def test_training_that_diverges_says_so(model: Model, clip: CLIP, unchanged: None) -> None:
    with pytest.raises(TrainingError, match="diverged"):
        run(model, clip, steps=20, value_rate=1e30)
