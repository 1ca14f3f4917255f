"""A new architecture is one file with a `ModelFamily`: this is one, and nothing else knows it.

A small transformer whose cross-attention has one biased projection for keys and values, a norm
behind the keys, and names of its own, in ComfyUI's own model object. It is trained, saved, loaded
and sampled like any other, and the values that reach attention are compared with the formula.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.latent_formats
import comfy.model_base
import comfy.model_patcher
import comfy.supported_models_base
import pytest
import torch
from einops import rearrange
from tiny_models import CPU, patched_modules, randomise, sample, tiny_clip
from torch import Tensor, nn

from perfusion_core import families
from perfusion_core.comfy import broken_numbers
from perfusion_core.comfy.attention_recorder import AttentionScope, attention_maps
from perfusion_core.comfy.backbone import training_backbone
from perfusion_core.comfy.concept_entry import ConceptEntry, edit_of, recommended
from perfusion_core.comfy.models import ComfyMismatch, detect_family, layers_of
from perfusion_core.comfy.prompts import add_concepts, encode
from perfusion_core.comfy.stack import KEY, apply_stack, tune
from perfusion_core.concept.concept import Concept
from perfusion_core.concept.concept_file import load_concept, save_concept
from perfusion_core.families import CrossAttention, ModelFamily
from perfusion_core.method.batches import PictureGroup
from perfusion_core.method.covariance import Covariance
from perfusion_core.method.settings import ConceptSettings
from perfusion_core.method.training import train
from perfusion_core.method.training_settings import TrainingSettings

TEXT, WIDTH, HEADS, BLOCKS = 160, 32, 2, 3


# --- the architecture: ComfyUI's part of the work


class TextAttention(nn.Module):
    """Queries from the picture; keys and values from one projection, keys first."""

    def __init__(self) -> None:
        super().__init__()
        self.n_heads = HEADS
        self.q_linear = nn.Linear(WIDTH, WIDTH)
        self.kv_linear = nn.Linear(TEXT, 2 * WIDTH)
        self.k_norm = nn.LayerNorm(WIDTH // HEADS)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        queries = rearrange(self.q_linear(x), "b n (h w) -> b n h w", h=HEADS)
        both = rearrange(self.kv_linear(context), "b n (two h w) -> two b n h w", two=2, h=HEADS)
        keys, values = self.k_norm(both[0]), both[1]
        shares = torch.einsum("bqhw,bkhw->bhqk", queries, keys) / (WIDTH // HEADS) ** 0.5
        mixed = torch.einsum("bhqk,bkhw->bqhw", shares.softmax(dim=-1), values)
        return self.out(rearrange(mixed, "b n h w -> b n (h w)"))


class StubBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.text_attention = TextAttention()
        self.mlp = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = x + self.text_attention(x, context)
        return x + self.mlp(x)


class StubTransformer(nn.Module):
    """A transformer over the cells of the latents."""

    def __init__(self, dtype: Any = None, device: Any = None, **_: Any) -> None:
        super().__init__()
        self.dtype = torch.float32
        self.into = nn.Linear(4, WIDTH)
        self.time = nn.Linear(1, WIDTH)
        self.blocks = nn.ModuleList(StubBlock() for _ in range(BLOCKS))
        self.out = nn.Linear(WIDTH, 4)

    def forward(
        self, x: Tensor, timesteps: Tensor, context: Tensor | None = None, **_: Any
    ) -> Tensor:
        height = x.shape[-2]
        hidden = self.into(rearrange(x, "b c h w -> b (h w) c"))
        hidden = hidden + self.time(timesteps[:, None, None].float() / 1000)
        for block in self.blocks:
            hidden = block(hidden, context)
        return rearrange(self.out(hidden), "b (h w) c -> b c h w", h=height)


# --- the family: all that the pack is told of it


@dataclass(frozen=True, kw_only=True)
class StubFamily(ModelFamily):
    def has_part(self, name: str) -> bool:
        return "blocks" in name.split(".")


STUB = StubFamily(
    id="stub",
    title="a stub",
    encoders={"clip_l": TEXT},
    resolution=64,
    network="StubTransformer",
    attention=CrossAttention(
        "text_attention",
        "kv_linear",
        "kv_linear",
        query="q_linear",
        heads="n_heads",
        bias=True,
        key_norm="k_norm",
    ),
    blocks=("StubBlock",),
    kept=10_000,
)


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    families.register(STUB)
    yield
    del families._families[STUB.id]


# --- at work


class StubConfig(comfy.supported_models_base.BASE):
    unet_config: dict[str, Any] = {}
    unet_extra_config: dict[str, Any] = {}
    latent_format = comfy.latent_formats.SD15
    memory_usage_factor = 0.1


@pytest.fixture
def model() -> Any:
    config = StubConfig({"image_model": "stub"})
    config.set_inference_dtype(torch.float32, None)
    made = comfy.model_base.BaseModel(
        config, model_type=comfy.model_base.ModelType.EPS, device=CPU, unet_model=StubTransformer
    )
    randomise(made.diffusion_model, seed=0)
    return comfy.model_patcher.ModelPatcher(made, load_device=CPU, offload_device=CPU)


@pytest.fixture(scope="module")
def clip() -> Any:
    return tiny_clip(width=TEXT)


def learned(model: Any, clip: Any, checkpointing: str = "off", **settings: Any) -> Concept:
    wanted = TrainingSettings(**{"steps": 3, "batch_size": 2, "value_rate": 0.5, **settings})
    latents = 5 * torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    with (
        torch.inference_mode(),
        training_backbone(model, clip, (2, 4, 8, 8), checkpointing) as backbone,
    ):
        return train(
            backbone,
            [PictureGroup(latents)],
            placeholder="teddy*",
            superclass="teddy",
            covariance=Covariance(torch.eye(TEXT), 1000, "stub"),
            settings=wanted,
        ).concept


def test_it_is_recognised_with_its_layers(model: Any) -> None:
    family = detect_family(model)
    assert family is STUB
    layers = layers_of(model, family)
    assert list(family.groups(layers).values()) == ["down", "middle", "up"]
    assert {layer.out for layer in layers.values()} == {WIDTH}
    assert all(layer.fused for layer in layers.values())


def test_it_is_trained_saved_loaded_and_sampled(model: Any, clip: Any, tmp_path: Path) -> None:
    concept = learned(model, clip)
    assert concept.family == "stub"
    assert all(float(value.abs().max()) > 0 for value in concept.values.values())
    save_concept(concept, tmp_path / "stub.safetensors")
    loaded = load_concept(tmp_path / "stub.safetensors")
    assert loaded.hash == concept.hash

    knowing = add_concepts(clip, [loaded])
    on = apply_stack(model, [recommended(loaded)])
    off = tune(on, "", lambda s: ConceptSettings(s.bias, s.temperature, strength=0.0))
    stock, with_it, without = (sample(m, knowing, steps=2) for m in (model, on, off))
    assert torch.equal(without, stock)
    assert not torch.allclose(with_it, stock, rtol=0, atol=1e-3)
    assert patched_modules(model) == []


def test_checkpointing_learns_the_same(model: Any, clip: Any) -> None:
    assert learned(model, clip, "on").hash == learned(model, clip, "off").hash


def test_trained_keys_work_on_a_fused_projection(model: Any, clip: Any) -> None:
    concept = learned(model, clip, key_mode="trained")
    assert all(float(key.abs().max()) > 0 for key in concept.keys.values())
    on = apply_stack(model, [recommended(concept)])
    locked = apply_stack(model, [recommended(learned(model, clip))])
    knowing = add_concepts(clip, [concept])
    assert not torch.allclose(sample(on, knowing, steps=1), sample(locked, knowing, steps=1))


def test_keys_and_values_are_the_formula_with_the_bias_once(model: Any, clip: Any) -> None:
    """K = W_K e' + b_K and V = W_V e' + b_V + g D, in float64."""
    concept = learned(model, clip)
    entry = ConceptEntry(concept, ConceptSettings(0.5, 0.15, strength=1.3))
    knowing = add_concepts(clip, [concept])
    on = apply_stack(model, [entry])
    path, layer = next(iter(layers_of(model, STUB).items()))
    seen: list[tuple[Tensor, Tensor]] = []

    def tap(_: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        seen.append((inputs[0].double(), output.double()))

    # What reaches the norm and attention: behind the projection, whose forward is swapped.
    handle = layer.key.register_forward_hook(tap)
    try:
        sample(on, knowing, steps=1)
    finally:
        handle.remove()
    weight, bias = layer.key.weight.double(), layer.key.bias.double()
    target = concept.target_input.double()
    whitened = concept.whitened_target.double()
    superclass = concept.superclass_encoding.double()
    assert seen
    opened = 0.0
    for context, both in seen:
        similarity = context @ whitened / (target @ whitened)
        gate = torch.sigmoid((similarity - 0.5) / 0.15)
        opened = max(opened, float(gate.max()))
        moved = gate[..., None] * (superclass - similarity[..., None] * target)
        edited = context + 1.3 * moved
        expected = edited @ weight.T + bias
        expected[..., WIDTH:] += 1.3 * gate[..., None] * concept.values[path].double()
        assert torch.allclose(both, expected, rtol=1e-4, atol=1e-4)
    assert opened > 0.5


@pytest.mark.parametrize("kind", ["key", "value"])
def test_numbers_that_a_concept_breaks_in_a_fused_layer_are_told(
    model: Any, clip: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(broken_numbers, "_tell", told.append)
    concept = learned(model, clip, key_mode="trained")
    on = apply_stack(model, [recommended(concept)])
    (patch,) = on.get_wrappers("apply_model", KEY)
    differences = patch.tensors.keys if kind == "key" else patch.tensors.differences
    path = list(concept.values)[1]
    differences.by_layer[path] = torch.full_like(differences.by_layer[path], float("nan"))
    assert not bool(sample(on, add_concepts(clip, [concept]), steps=1).isfinite().all())
    (line,) = told
    assert f"in the {kind}s of the layer {path}" in line
    assert recommended(concept).title in line


def test_the_attention_map_sees_the_keys_behind_their_norm(model: Any, clip: Any) -> None:
    concept = learned(model, clip)
    on, knowing = apply_stack(model, [recommended(concept)]), add_concepts(clip, [concept])
    # A norm that gives nothing: attention is then even, whatever the projection gives.
    for block in model.model.diffusion_model.blocks:
        block.text_attention.k_norm.weight.data.zero_()
        block.text_attention.k_norm.bias.data.zero_()
    with torch.inference_mode():
        tokens = knowing.tokenize("a teddy*")
        prompt = knowing.encode_from_tokens_scheduled(tokens)
        maps = attention_maps(on, prompt, {"samples": torch.randn(1, 4, 8, 8)}, AttentionScope(2))
    words = edit_of([recommended(concept)]).similarity(encode(knowing, ["a teddy*"]).context)
    count = int((words >= 0.5).sum())
    assert count > 0
    assert torch.allclose(maps.shares, torch.full_like(maps.shares, count / 77), atol=1e-5)
    assert patched_modules(model) == []


def test_another_network_of_that_name_and_another_width_is_refused(model: Any) -> None:
    for block in model.model.diffusion_model.blocks:
        block.text_attention.kv_linear = nn.Linear(TEXT + 1, 2 * WIDTH)
    with pytest.raises(ComfyMismatch, match=f"the text width of its cross-attention is {TEXT + 1}"):
        detect_family(model)


def test_checkpointing_that_finds_no_blocks_says_so(model: Any, clip: Any) -> None:
    blocks = nn.ModuleList()
    for block in model.model.diffusion_model.blocks:
        other = type("OtherBlock", (nn.Module,), {"forward": StubBlock.forward})()
        other.text_attention, other.mlp = block.text_attention, block.mlp
        blocks.append(other)
    model.model.diffusion_model.blocks = blocks
    with pytest.raises(ComfyMismatch, match="finds no StubBlock.*would save no memory"):
        learned(model, clip, "on")
