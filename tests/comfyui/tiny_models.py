"""Small models of ComfyUI's own classes with random weights: real code, milliseconds a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.latent_formats
import comfy.model_base
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models_base
import nodes
import torch

from perfusion_core.comfy.models import detect_family, layers_of
from perfusion_core.comfy.prompts import Word, encode, with_words
from perfusion_core.concept.concept import Concept

CPU = torch.device("cpu")

# Tensors of this size are slower on several threads, and a second thread may have to wait for a
# core.
torch.set_num_threads(1)

UNET: dict[str, Any] = {
    "image_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "channel_mult": [1, 2],
    "num_res_blocks": [1, 1],
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "num_head_channels": 32,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": False,
    "adm_in_channels": None,
    "use_temporal_attention": False,
    "legacy": False,
}


class TinyConfig(comfy.supported_models_base.BASE):
    unet_config: dict[str, Any] = {}
    unet_extra_config: dict[str, Any] = {}
    latent_format = comfy.latent_formats.SD15
    memory_usage_factor = 0.1


def randomise(module: torch.nn.Module, seed: int, scale: float = 0.6) -> None:
    """Random weights that keep signals at about unit size (ComfyUI's classes leave them unset)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in list(module.named_parameters()) + list(module.named_buffers()):
            if not tensor.is_floating_point() or "sigmas" in name:
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if tensor.ndim > 1:
                fan_in = tensor[0].numel() if "embedding" not in name else 1
                tensor.copy_(noise * scale / fan_in**0.5)
            elif name.endswith("weight"):
                tensor.copy_(1 + 0.1 * noise)
            else:
                tensor.copy_(0.1 * noise)


def tiny_model(
    width: int = 192,
    seed: int = 0,
    kind: comfy.model_base.ModelType = comfy.model_base.ModelType.EPS,
    dtype: torch.dtype = torch.float32,
    cast: torch.dtype | None = None,
    **unet: Any,
) -> comfy.model_patcher.ModelPatcher:
    """A MODEL with ComfyUI's UNet, cross-attending to texts of `width`.

    Args:
        dtype: what weights are kept in.
        cast: what they are cast to for use; None when they need no cast.
    """
    config = TinyConfig({**UNET, "context_dim": width, **unet})
    config.set_inference_dtype(dtype, cast)
    model = comfy.model_base.BaseModel(config, model_type=kind, device=CPU)
    randomise(model.diffusion_model, seed)
    patcher = comfy.model_patcher.ModelPatcher(model, load_device=CPU, offload_device=CPU)

    def again(disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
        return tiny_model(width, seed, kind, dtype, cast, **unet)

    return loaded_again_by(patcher, again)


def loaded_again_by(patcher: Any, load: Callable[..., Any]) -> Any:
    """The MODEL, which newer versions of ComfyUI load again where a copy must not share weights."""
    if hasattr(patcher, "cached_patcher_init"):
        patcher.cached_patcher_init = (load, ())
    return patcher


def _text_config(width: int, length: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 2 * width,
        "hidden_act": "quick_gelu",
        "max_position_embeddings": length,
        "eos_token_id": 49407,
        "vocab_size": 49408,
    }


def tiny_clip(
    width: int = 192, length: int = 77, seed: int = 1, embeddings: str | None = None
) -> comfy.sd.CLIP:
    """A CLIP of two layers with ComfyUI's real tokenizer."""

    class Tokenizer(comfy.sd1_clip.SDTokenizer):
        def __init__(self, embedding_directory: Any = None, tokenizer_data: Any = None) -> None:
            super().__init__(
                max_length=length,
                embedding_directory=embedding_directory,
                embedding_size=width,
                tokenizer_data=tokenizer_data or {},
            )

    class ClipTokenizer(comfy.sd1_clip.SD1Tokenizer):
        def __init__(self, embedding_directory: Any = None, tokenizer_data: Any = None) -> None:
            super().__init__(
                embedding_directory=embedding_directory,
                tokenizer_data=tokenizer_data or {},
                tokenizer=Tokenizer,
            )

    class TextModel(comfy.sd1_clip.SDClipModel):
        def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: Any = None):
            super().__init__(
                device=device,
                max_length=length,
                dtype=dtype,
                textmodel_json_config=_text_config(width, length),
                return_projected_pooled=False,
                model_options=model_options or {},
            )

    class ClipModel(comfy.sd1_clip.SD1ClipModel):
        def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: Any = None):
            super().__init__(
                device=device, dtype=dtype, model_options=model_options or {}, clip_model=TextModel
            )

    target = comfy.supported_models_base.ClipTarget(ClipTokenizer, ClipModel)
    clip = comfy.sd.CLIP(
        target, embedding_directory=embeddings, model_options={"dtype": torch.float32}
    )
    randomise(clip.cond_stage_model, seed)
    return clip


def whitened(target: torch.Tensor) -> torch.Tensor:
    """C^-1 i [d] of a target input as a concept stores it; one C, as one text encoder has one."""
    width = len(target)
    mixing = torch.randn(width, width, generator=torch.Generator().manual_seed(0)) / width**0.5
    covariance = torch.eye(width) + 0.1 * (mixing @ mixing.T)
    return torch.linalg.solve(covariance, target.half().float())


def tiny_concept(
    model: comfy.model_patcher.ModelPatcher,
    clip: comfy.sd.CLIP,
    placeholder: str = "teddy*",
    superclass: str = "teddy",
    seed: int = 2,
    vectors: int = 1,
    name: str = "",
) -> Concept:
    """A concept of random vectors and values that fits a tiny model and knows its placeholder."""
    generator = torch.Generator().manual_seed(seed)
    family = detect_family(model)
    embeddings = {
        encoder: 0.6 * torch.randn(vectors, size, generator=generator)
        for encoder, size in family.encoders.items()
    }
    words = {encoder: [Word(placeholder, v)] for encoder, v in embeddings.items()}
    prompt = [f"a photo of a {placeholder}"]
    with torch.no_grad():
        own = encode(with_words(clip, words), prompt)
        plain = encode(clip, [f"a photo of a {superclass}"])
    target = own.context[own.vectors][-1]
    return Concept(
        name=name or placeholder.strip("*"),
        family=family.id,
        placeholder=placeholder,
        superclass=superclass,
        embeddings=embeddings,
        target_input=target,
        whitened_target=whitened(target),
        superclass_encoding=plain.context[0, 5],
        values={
            path: torch.randn(layer.out, generator=generator)
            for path, layer in layers_of(model, family).items()
        },
    )


def sample(
    model: comfy.model_patcher.ModelPatcher,
    clip: comfy.sd.CLIP,
    prompt: str = "a photo of a teddy* on a blue background",
    steps: int = 2,
    seed: int = 5,
    sampler: str = "euler",
    channels: int = 4,
) -> torch.Tensor:
    """Latents of ComfyUI's own KSampler node, run as ComfyUI runs it."""
    with torch.inference_mode():
        positive, negative = (nodes.CLIPTextEncode().encode(clip, t)[0] for t in (prompt, "blurry"))
        empty = {"samples": torch.zeros(1, channels, 8, 8)}
        latents = nodes.KSampler().sample(
            model, seed, steps, 4.0, sampler, "normal", positive, negative, empty
        )
        samples: torch.Tensor = latents[0]["samples"]
        return samples.clone()


def patched_modules(model: comfy.model_patcher.ModelPatcher) -> list[str]:
    """Modules whose forward is not their class's own."""
    return [name for name, part in model.model.named_modules() if "forward" in vars(part)]


class TinyVae:
    """In place of ComfyUI's VAE: eight by eight pixels become one, times ten."""

    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        small = torch.nn.functional.avg_pool2d(pictures.movedim(-1, 1), 8)
        return torch.cat([small, small[:, :1]], dim=1) * 10 - 5

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        pixels = torch.nn.functional.interpolate((latents[:, :3] + 5) / 10, scale_factor=8)
        return pixels.clamp(0, 1).movedim(1, -1)
