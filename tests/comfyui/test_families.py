"""The table of families against ComfyUI's own models: true layers, true sizes, every model named.

A ComfyUI that brings a new model makes a test here fail with the model's name.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.ldm.audio.embedders
import comfy.model_base
import comfy.model_detection
import comfy.model_management
import comfy.supported_models
import pytest
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from tiny_models import patched_modules, sample
from true_models import (
    CPU,
    LARGE,
    META,
    NETWORKS,
    TRANSFORMERS,
    UNETS,
    learned_concept,
    random_concept,
    true_clip,
    true_model,
)

from perfusion_core.comfy.backbone import training_backbone
from perfusion_core.comfy.concept_entry import recommended
from perfusion_core.comfy.contract import FITS, SINCE
from perfusion_core.comfy.models import ComfyMismatch, detect_family, layers_of
from perfusion_core.comfy.pictures import thumbnail
from perfusion_core.comfy.prompts import add_concepts
from perfusion_core.comfy.stack import apply_stack, layer_paths, stack_of, tune
from perfusion_core.concept.concept import Concept, ConceptError
from perfusion_core.concept.concept_file import load_concept, save_concept
from perfusion_core.families import FAMILIES, REFUSED
from perfusion_core.method.backbone import TrainingPrompts
from perfusion_core.method.edit import GatedEdit
from perfusion_core.method.settings import ConceptSettings
from tools.locate import find_comfyui

Model = Any
Config = Any


@cache
def shapes(name: str) -> Model:
    """A true-size model without numbers, shared by the tests."""
    return true_model(name)


def outs(model: Model) -> dict[str, int]:
    return {path: layer.out for path, layer in layers_of(model, detect_family(model)).items()}


# --- true layers


@pytest.mark.parametrize("name", NETWORKS)
def test_the_true_models_are_what_comfyui_takes_them_for(name: str) -> None:
    weights = shapes(name).model.diffusion_model.state_dict()
    found = comfy.model_detection.model_config_from_unet(dict(weights), "")
    assert type(found).__name__ == name
    assert {key: found.unet_config[key] for key in NETWORKS[name]} == NETWORKS[name]


@pytest.mark.parametrize(
    ("name", "family", "count", "numbers", "limit"),
    [
        ("SD15", "sd1", 16, 12_480, 40_000),
        ("SD20", "sd2", 16, 12_480, 40_000),
        ("SDXL", "sdxl", 70, 83_200, 200_000),
    ],
)
def test_layers_numbers_and_bytes_of_a_concept(
    name: str, family: str, count: int, numbers: int, limit: int, tmp_path: Path
) -> None:
    model = shapes(name)
    found = detect_family(model)
    layers = layers_of(model, found)
    assert found.id == family
    assert len(layers) == count
    assert {layer.text_width for layer in layers.values()} == {found.context_width}
    assert {layer.key.bias for layer in layers.values()} == {None}
    assert sum(outs(model).values()) == numbers
    assert set(found.groups(layers).values()) == {"down", "middle", "up"}

    concept = random_concept(found, outs(model))
    save_concept(concept, tmp_path / "plain.safetensors")
    size = (tmp_path / "plain.safetensors").stat().st_size
    assert 2 * numbers < size < limit
    loaded = load_concept(tmp_path / "plain.safetensors")
    assert loaded.hash == concept.hash
    carrying = apply_stack(model, [recommended(loaded)])
    assert [entry.concept for entry in stack_of(carrying)] == [loaded]
    assert layer_paths(carrying) == list(layers)


@pytest.mark.parametrize(
    ("name", "large", "layers", "out", "width"),
    [
        ("CosmosT2IPredict2", False, 28, 2048, 1024),
        ("CosmosT2IPredict2", True, 36, 5120, 1024),
        ("CosmosI2VPredict2", False, 28, 2048, 1024),
        ("Anima", False, 28, 2048, 1024),
        ("WAN21_T2V", False, 30, 1536, 4096),
        ("WAN21_T2V", True, 40, 5120, 4096),
        ("WAN21_I2V", False, 40, 5120, 4096),
        ("WAN22_T2V", False, 30, 3072, 4096),
        ("LTXV", False, 28, 2048, 4096),
        ("LTXV", True, 48, 4096, 4096),
        ("HunyuanDiT", False, 40, 1408, 3072),
        ("HunyuanDiT1", False, 40, 1408, 3072),
        ("PixArtAlpha", False, 28, 1152, 4096),
        ("PixArtSigma", False, 28, 1152, 4096),
    ],
)
def test_concepts_of_transformers_fit_their_true_layers(
    name: str, large: bool, layers: int, out: int, width: int, tmp_path: Path
) -> None:
    if name not in TRANSFORMERS:
        pytest.skip(f"this ComfyUI has no {name}")
    model = true_model(name, **(LARGE[name] if large else {}))
    family = detect_family(model)
    assert family.id == FITS[name]
    stem = "transformer_blocks" if name == "LTXV" else "blocks"
    paths = [f"{stem}.{n}.{family.attention.layer}" for n in range(layers)]
    assert outs(model) == dict.fromkeys(paths, out)
    assert {layer.text_width for layer in layers_of(model, family).values()} == {width}
    assert family.context_width == width
    concept = random_concept(family, outs(model))
    save_concept(concept, tmp_path / "c.safetensors")
    loaded = load_concept(tmp_path / "c.safetensors")
    assert (tmp_path / "c.safetensors").stat().st_size < 2 * layers * out + 12 * width + 40_000
    carrying = apply_stack(model, [recommended(loaded)])
    assert layer_paths(carrying) == list(outs(model))
    if large:
        with pytest.raises(ConceptError, match="not laid out as the one it was trained for"):
            apply_stack(shapes(name), [recommended(loaded)])


def test_families_of_one_width_of_text_are_told_apart(tmp_path: Path) -> None:
    """SD 2's, Cosmos-Predict2's and Anima's texts are all 1024 wide."""
    names = ["SD20", *TRANSFORMERS]
    for name in names:
        weights = shapes(name).model.diffusion_model.state_dict()
        for prefix in ("", "model.diffusion_model.", "net."):
            found = {f"{prefix}{key}": tuple(value.shape) for key, value in weights.items()}
            fitting = [f.id for f in FAMILIES.values() if f.recognises_file(found)]
            assert fitting == [FITS[name]], (name, prefix)
    for name in names[1:]:
        other = shapes("Anima" if FITS[name] == "cosmos2" and "Anima" in names else "SD20")
        concept = random_concept(detect_family(shapes(name)), outs(shapes(name)))
        with pytest.raises(ConceptError, match="was trained for"):
            apply_stack(other, [recommended(concept)])


def test_a_concept_with_a_preview_is_small_too(tmp_path: Path) -> None:
    model = shapes("SD15")
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(3, 512, 512, generator=generator)  # a picture that compresses badly
    preview = thumbnail(noise)
    concept = random_concept(detect_family(model), outs(model), preview=preview)
    save_concept(concept, tmp_path / "c.safetensors")
    assert load_concept(tmp_path / "c.safetensors").preview == preview
    assert (tmp_path / "c.safetensors").stat().st_size < 40_000


def test_the_refiner_is_refused_and_says_what_to_do() -> None:
    with pytest.raises(ComfyMismatch, match="only one of SDXL's two.*use the base model"):
        detect_family(shapes("SDXLRefiner"))


def test_a_unet_with_a_head_that_reads_poses_is_refused() -> None:
    # SDPose: ComfyUI takes it for a model of SD 2 or SDXL.
    known = "heatmap_head" in inspect.signature(UNetModel.__init__).parameters
    for name in ("SD20", "SDXL"):
        model = true_model(name, **({"heatmap_head": True} if known else {}))
        if not known:
            model.model.diffusion_model.heatmap_head = torch.nn.Identity()
        with pytest.raises(ComfyMismatch, match="heatmap_head.*it makes no pictures"):
            detect_family(model)


# --- at work


@pytest.fixture
def both_cores() -> Iterator[None]:
    """A gigabyte of weights is faster on all cores, unlike the small tensors of other tests."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
    comfy.model_management.unload_all_models()


def samples_with_and_without(model: Model, clip: Any, concept: Concept) -> None:
    knowing = add_concepts(clip, [concept])
    on = apply_stack(model, [recommended(concept)])
    off = tune(on, "", lambda s: ConceptSettings(s.bias, s.temperature, strength=0.0))
    stock, with_it, without = (sample(m, knowing, steps=1) for m in (model, on, off))
    assert bool(stock.isfinite().all())
    assert torch.equal(without, stock)
    assert not torch.allclose(with_it, stock, rtol=0, atol=1e-3)
    assert patched_modules(model) == []


@pytest.mark.slow
def test_sd15_at_its_true_size_trains_and_samples(both_cores: None) -> None:
    model, clip = true_model("SD15", CPU), true_clip("SD15")
    concept = learned_concept(model, clip, value_rate=1.0)
    assert concept.layers == outs(shapes("SD15"))
    assert all(float(value.abs().max()) > 0 for value in concept.values.values())
    samples_with_and_without(model, clip, concept)


def test_sd15_with_all_its_layers_trains_and_samples() -> None:
    model, clip = true_model("SD15", CPU, channels=32), true_clip("SD15")
    concept = learned_concept(model, clip, value_rate=1.0)
    assert list(concept.layers) == list(outs(shapes("SD15")))
    assert all(float(value.abs().max()) > 0 for value in concept.values.values())
    samples_with_and_without(model, clip, concept)


@pytest.fixture(scope="module")
def sdxl() -> tuple[Model, Any]:
    """SDXL with all its layers, thin, and both its encoders."""
    return true_model("SDXL", CPU, channels=32), true_clip("SDXL")


def test_sdxl_learns_in_both_encoders_and_samples(sdxl: tuple[Model, Any]) -> None:
    model, clip = sdxl
    concept = learned_concept(model, clip, value_rate=1.0)
    assert list(concept.layers) == list(outs(shapes("SDXL")))
    assert all(float(value.abs().max()) > 0 for value in concept.values.values())
    widths = {encoder: tuple(v.shape) for encoder, v in concept.embeddings.items()}
    assert widths == {"clip_l": (1, 768), "clip_g": (1, 1280)}
    with torch.inference_mode(), training_backbone(model, clip, (1, 4, 8, 8)) as backbone:
        start = backbone.superclass_embeddings("teddy")
    for encoder, learned in concept.embeddings.items():
        assert not torch.equal(learned, start[encoder].half()), encoder
    samples_with_and_without(model, clip, concept)


@pytest.mark.parametrize(
    ("name", "marks"),
    [
        (
            "SD20",
            {"output_blocks.11.1.transformer_blocks.0.norm1.bias": torch.tensor([-1.0, 1.0])},
        ),
        ("SDXL", {"v_pred": torch.zeros(1)}),
    ],
)
def test_models_of_v_prediction_train_and_sample(name: str, marks: dict[str, torch.Tensor]) -> None:
    # SD 2's heads have a fixed width, of which 64 channels are one.
    model, clip = true_model(name, CPU, channels=64, marks=marks), true_clip(name)
    assert model.model.model_type is comfy.model_base.ModelType.V_PREDICTION
    concept = learned_concept(model, clip, value_rate=1.0)
    assert list(concept.layers) == list(outs(shapes(name)))
    assert all(float(value.abs().max()) > 0 for value in concept.values.values())
    samples_with_and_without(model, clip, concept)


@pytest.mark.parametrize(
    ("name", "clip_of", "changes"),
    [
        ("SD15", "SD15", {"in_channels": 9}),  # for inpainting
        ("SDXL", "SDXL", {"in_channels": 9}),
        ("SD15_instructpix2pix", "SD15", {}),
        ("SD21UnclipL", "SD20", {"channels": 64}),
        ("SSD1B", "SDXL", {}),
    ],
)
def test_the_families_other_models_train_and_sample(
    name: str, clip_of: str, changes: dict[str, Any]
) -> None:
    model = true_model(name, CPU, **{"channels": 32, **changes})
    clip = true_clip(clip_of)
    concept = learned_concept(model, clip, value_rate=1.0)
    assert list(concept.layers) == list(outs(shapes(name)))
    assert all(float(value.abs().max()) > 0 for value in concept.values.values())
    samples_with_and_without(model, clip, concept)


def test_sdxls_pooled_vector_learns_too(sdxl: tuple[Model, Any]) -> None:
    model, clip = sdxl
    family = detect_family(model)
    concept = random_concept(family, outs(model))
    with torch.inference_mode(), training_backbone(model, clip, (1, 4, 8, 8)) as backbone:
        vectors = {
            encoder: v.detach().clone().requires_grad_()
            for encoder, v in backbone.superclass_embeddings("teddy").items()
        }
        encoded = backbone.encode(["a photo of a teddy*"], "teddy*", vectors)
        assert encoded.context.shape[-1] == family.context_width == 2048
        assert encoded.extra.shape == (1, 1280)
        # The way through attention is cut; what is left is the way through the pooled vector.
        only_pooled = TrainingPrompts(encoded.context.detach(), encoded.positions, encoded.extra)
        edit = GatedEdit(
            concept.target_input[None].float(),
            concept.whitened_target[None],
            concept.superclass_encoding[None].float(),
            [ConceptSettings()],
        )
        latents, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        loss = backbone.loss(
            latents,
            noise,
            torch.tensor([0.5]),
            only_pooled,
            edit,
            {path: value[None].float() for path, value in concept.values.items()},
        )
        loss.mean().backward()
    assert float(vectors["clip_g"].grad.abs().max()) > 0
    assert vectors["clip_l"].grad is None


def test_sdxls_prompts_are_encoded_together_and_each_keeps_its_pooled_vector(
    sdxl: tuple[Model, Any],
) -> None:
    model, clip = sdxl
    prompts = ["a teddy*", "a photo of a (teddy*:1.2)", "a teddy*"]
    calls: list[None] = []
    with torch.inference_mode(), training_backbone(model, clip, (3, 4, 8, 8)) as backbone:
        vectors = backbone.superclass_embeddings("teddy")
        handle = clip.cond_stage_model.clip_g.register_forward_hook(lambda *_: calls.append(None))
        try:
            together = backbone.encode(prompts, "teddy*", vectors)
        finally:
            handle.remove()
        apart = [backbone.encode([prompt], "teddy*", vectors) for prompt in prompts]
    assert len(calls) == 1
    assert torch.allclose(together.context, torch.cat([e.context for e in apart]), atol=1e-4)
    assert torch.allclose(together.extra, torch.cat([e.extra for e in apart]), atol=1e-4)
    assert not torch.allclose(together.extra[0], together.extra[1], atol=1e-2)
    for encoder in (clip.cond_stage_model.clip_l, clip.cond_stage_model.clip_g):
        assert not encoder._forward_hooks


# --- every model of ComfyUI


def without_network(config: Config) -> Any:
    """ComfyUI's model object as its own code makes it; of the network's weights, none."""
    unet = {"in_channels": 4, **config.unet_config, "disable_unet_model_creation": True}
    weights: dict[str, Any] = {}
    if config.__name__ == "Stable_Zero123":  # asks its network for a dtype
        unet = {**UNETS["SD15"], "in_channels": 8, "dtype": torch.float32}
        weights = {
            "cc_projection.weight": torch.empty(768, 772, device=META),
            "cc_projection.bias": torch.empty(768, device=META),
        }
    if config.__name__ == "StableAudio3":
        unet["timestep_features_type"] = "expo"
        numbers = comfy.ldm.audio.embedders.NumberConditioner(
            768, 0, 384, fourier_features_type="expo"
        )
        weights = {
            f"conditioner.conditioners.seconds_total.{key}": tensor
            for key, tensor in numbers.state_dict().items()
        }
    if config.__name__ == "StableAudio":
        numbers = comfy.ldm.audio.embedders.NumberConditioner(768, 0, 512).state_dict()
        weights = {
            f"conditioner.conditioners.{name}.{key}": tensor
            for name in ("seconds_start", "seconds_total")
            for key, tensor in numbers.items()
        }
    if config.__name__ == "Flux2":  # asks for the width of its network
        unet["hidden_size"] = 6144
    with torch.no_grad():
        return config(unet).get_model(weights, "", device=META)


@pytest.mark.parametrize("config", comfy.supported_models.models, ids=lambda c: c.__name__)
def test_every_model_of_comfyui_fits_or_is_refused_with_its_reason(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = config.__name__
    if name in FITS:
        assert detect_family(shapes(name)).id == FITS[name]
        return
    if name != "Stable_Zero123":  # which has its network
        # ComfyUI 0.12 notes the dtypes of the network, which is left out here.
        ours = {"raising": False}
        nothing = torch.nn.Identity()
        monkeypatch.setattr(comfy.model_base.BaseModel, "diffusion_model", nothing, **ours)
        monkeypatch.setattr(comfy.model_management, "archive_model_dtypes", lambda _: None, **ours)
    base = without_network(config)
    with pytest.raises(ComfyMismatch) as refused:
        detect_family(SimpleNamespace(model=base))
    reasons = [REFUSED[c.__name__].reason for c in type(base).__mro__ if c.__name__ in REFUSED]
    assert reasons, (
        f"this ComfyUI has a model that no one has judged: {name} (class {type(base).__name__}). "
        "Give it a family in perfusion_core/families/, or an entry in REFUSED (refused.py there)"
    )
    assert f"{type(base).__name__}. The reason: {reasons[0]}." in str(refused.value)


def test_every_refused_class_is_comfyuis_or_newer_than_it() -> None:
    unknown = {name for name in REFUSED if not hasattr(comfy.model_base, name)}
    here = version(find_comfyui().version)
    assert unknown == {name for name, since in SINCE.items() if version(since) > here}


def version(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))


def test_every_family_but_the_demos_own_is_a_model_of_comfyui() -> None:
    assert set(FITS.values()) == set(FAMILIES) - {"emoji"}
