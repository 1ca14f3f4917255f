"""Models with the layers of the real ones: ComfyUI's own classes, true names, true widths.

On the `meta` device they hold no numbers and need no memory: enough for whatever asks for shapes
alone. On the CPU they get random weights. With `channels` below the true 320 they are thin: every
layer is there under its name, narrower.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import torch
from tiny_models import loaded_again_by

from perfusion_core.comfy.backbone import training_backbone
from perfusion_core.comfy.models import detect_family
from perfusion_core.concept.concept import Concept
from perfusion_core.families import ModelFamily
from perfusion_core.method.batches import PictureGroup
from perfusion_core.method.covariance import Covariance
from perfusion_core.method.training import train
from perfusion_core.method.training_settings import TrainingSettings

CPU, META = torch.device("cpu"), torch.device("meta")

_COMMON: dict[str, Any] = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "use_spatial_transformer": True,
    "use_temporal_attention": False,
    "use_temporal_resblock": False,
    "adm_in_channels": None,
    "legacy": False,
}
_SD = {
    **_COMMON,
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
}
_SD1 = {**_SD, "context_dim": 768, "use_linear_in_transformer": False}
_SD2 = {**_SD, "context_dim": 1024, "use_linear_in_transformer": True}
_XL = {
    **_COMMON,
    "context_dim": 2048,
    "use_linear_in_transformer": True,
    "num_classes": "sequential",
    "adm_in_channels": 2816,
    "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4],
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "transformer_depth_middle": 10,
}
_KOALA = {**_XL, "num_res_blocks": [1, 1, 1]}

# Name of ComfyUI's config class -> the UNet's own arguments, as ComfyUI's detection finds them.
UNETS: Mapping[str, Mapping[str, Any]] = {
    "SD15": _SD1,
    "SD15_instructpix2pix": {**_SD1, "in_channels": 8},
    "SD20": _SD2,
    "SD21UnclipL": {**_SD2, "num_classes": "sequential", "adm_in_channels": 1536},
    "SD21UnclipH": {**_SD2, "num_classes": "sequential", "adm_in_channels": 2048},
    "SDXL": _XL,
    "SDXL_instructpix2pix": {**_XL, "in_channels": 8},
    "SSD1B": {
        **_XL,
        "transformer_depth": [0, 0, 2, 2, 4, 4],
        "transformer_depth_output": [0, 0, 0, 1, 1, 2, 10, 4, 4],
        "transformer_depth_middle": -1,
    },
    "Segmind_Vega": {
        **_XL,
        "transformer_depth": [0, 0, 1, 1, 2, 2],
        "transformer_depth_output": [0, 0, 0, 1, 1, 1, 2, 2, 2],
        "transformer_depth_middle": -1,
    },
    "KOALA_700M": {
        **_KOALA,
        "transformer_depth": [0, 2, 5],
        "transformer_depth_output": [0, 0, 2, 2, 5, 5],
        "transformer_depth_middle": -2,
    },
    "KOALA_1B": {
        **_KOALA,
        "transformer_depth": [0, 2, 6],
        "transformer_depth_output": [0, 0, 2, 2, 6, 6],
        "transformer_depth_middle": 6,
    },
    "SDXLRefiner": {
        **_SD2,
        "model_channels": 384,
        "context_dim": 1280,
        "num_classes": "sequential",
        "adm_in_channels": 2560,
        "transformer_depth": [0, 0, 4, 4, 4, 4, 0, 0],
        "transformer_depth_output": [0, 0, 0, 4, 4, 4, 4, 4, 4, 0, 0, 0],
        "transformer_depth_middle": 4,
    },
}

_COSMOS: dict[str, Any] = {
    "image_model": "cosmos_predict2",
    "max_img_h": 240,
    "max_img_w": 240,
    "max_frames": 128,
    "in_channels": 16,
    "out_channels": 16,
    "patch_spatial": 2,
    "patch_temporal": 1,
    "model_channels": 2048,
    "concat_padding_mask": True,
    "crossattn_emb_channels": 1024,
    "pos_emb_cls": "rope3d",
    "pos_emb_learnable": True,
    "pos_emb_interpolation": "crop",
    "min_fps": 1,
    "max_fps": 30,
    "use_adaln_lora": True,
    "adaln_lora_dim": 256,
    "num_blocks": 28,
    "num_heads": 16,
    "extra_per_block_abs_pos_emb": False,
}
_WAN: dict[str, Any] = {
    "image_model": "wan2.1",
    "model_type": "t2v",
    "dim": 1536,
    "ffn_dim": 8960,
    "num_heads": 12,
    "num_layers": 30,
    "in_dim": 16,
    "out_dim": 16,
    "patch_size": (1, 2, 2),
    "freq_dim": 256,
    "window_size": (-1, -1),
    "qk_norm": True,
    "cross_attn_norm": True,
    "eps": 1e-6,
}
_PIXART: dict[str, Any] = {
    "image_model": "pixart_alpha",
    "hidden_size": 1152,
    "depth": 28,
    "num_heads": 16,
    "in_channels": 4,
    "patch_size": 2,
    "micro_condition": True,
}
_LTXV: dict[str, Any] = {
    "image_model": "ltxv",
    "num_layers": 28,
    "attention_head_dim": 64,
    "cross_attention_dim": 2048,
}
_HUNYUAN_DIT: dict[str, Any] = {
    "image_model": "hydit",
    "depth": 40,
    "hidden_size": 1408,
    "mlp_ratio": 4.3637,
}
_WAN_14B = {**_WAN, "dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40}
_WAN_5B = {"dim": 3072, "ffn_dim": 14336, "num_heads": 24, "in_dim": 48, "out_dim": 48}

# The larger one of a config class, which ComfyUI knows by its shapes.
LARGE: Mapping[str, Mapping[str, Any]] = {
    "CosmosT2IPredict2": {"model_channels": 5120, "num_blocks": 36, "num_heads": 40},
    "WAN21_T2V": _WAN_14B,
    "LTXV": {"num_layers": 48, "attention_head_dim": 128, "cross_attention_dim": 4096},
}

# The same of transformers; those that this ComfyUI has.
TRANSFORMERS: Mapping[str, Mapping[str, Any]] = {
    name: arguments
    for name, arguments in {
        "CosmosT2IPredict2": _COSMOS,
        "CosmosI2VPredict2": {**_COSMOS, "in_channels": 17},
        "Anima": {**_COSMOS, "image_model": "anima"},
        "WAN21_T2V": _WAN,
        "WAN21_I2V": {**_WAN_14B, "model_type": "i2v", "in_dim": 36},
        "WAN21_FunControl2V": {**_WAN_14B, "model_type": "i2v", "in_dim": 48},
        "WAN22_T2V": {**_WAN, **_WAN_5B},
        "LTXV": _LTXV,
        "HunyuanDiT": _HUNYUAN_DIT,
        "HunyuanDiT1": {
            **_HUNYUAN_DIT,
            "image_model": "hydit1",
            "size_cond": True,
            "use_style_cond": True,
        },
        "PixArtAlpha": _PIXART,
        "PixArtSigma": {**_PIXART, "image_model": "pixart_sigma", "micro_condition": False},
    }.items()
    if hasattr(comfy.supported_models, name)
}

NETWORKS: Mapping[str, Mapping[str, Any]] = {**UNETS, **TRANSFORMERS}


def true_model(
    name: str,
    device: torch.device = META,
    channels: int | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    marks: Mapping[str, torch.Tensor] | None = None,
    **unet: Any,
) -> comfy.model_patcher.ModelPatcher:
    """A MODEL, made by ComfyUI's config class of that name.

    Args:
        marks: those of a checkpoint's weights by which ComfyUI knows what the model predicts.
        unet: arguments in place of those in `NETWORKS`.
    """
    thin = unet if channels is None else {"model_channels": channels, **unet}
    config = getattr(comfy.supported_models, name)({**NETWORKS[name], "dtype": dtype, **thin})
    base = config.get_model(dict(marks or {}), "", device=device)
    if device != META:
        fill(base.diffusion_model, seed)
    model = comfy.model_patcher.ModelPatcher(base, load_device=CPU, offload_device=CPU)

    def again(disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
        return true_model(name, device, channels, dtype, seed, marks, **unet)

    return loaded_again_by(model, again)


def true_clip(name: str, layers: int = 3, seed: int = 1) -> comfy.sd.CLIP:
    """The CLIP of SD15, SD20 or SDXL: ComfyUI's tokenizers and encoders, cut in depth alone."""
    target = getattr(comfy.supported_models, name)(UNETS[name]).clip_target()
    cut = {f"{encoder}_model_config": {"num_hidden_layers": layers} for encoder in _ENCODERS}
    clip = comfy.sd.CLIP(target, model_options={"dtype": torch.float32, **cut})
    fill(clip.cond_stage_model, seed)
    return clip


_ENCODERS = ("clip_l", "clip_h", "clip_g")


def fill(module: torch.nn.Module, seed: int = 0, scale: float = 0.6) -> None:
    """Random weights that keep signals at about unit size; a second for a gigabyte.

    Taken from one pool of random numbers, over and over: drawing them all would take ten times as
    long. The pool's length is a prime, so that no two rows of a matrix are the same.
    """
    pool = torch.randn(1_000_003, generator=torch.Generator().manual_seed(seed))
    at = 0
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if not tensor.is_floating_point():
                continue
            size, mean = 0.1, 0.0
            if tensor.ndim > 1:
                size = scale / (tensor[0].numel() if "embedding" not in name else 1) ** 0.5
            elif name.endswith("weight"):
                mean = 1.0
            flat, done = tensor.view(-1), 0
            while done < len(flat):
                part = flat[done : done + len(pool) - at]
                torch.mul(pool[at : at + len(part)], size, out=part).add_(mean)
                done, at = done + len(part), (at + len(part)) % len(pool)


def random_concept(
    family: ModelFamily,
    layers: Mapping[str, int],
    placeholder: str = "teddy*",
    seed: int = 0,
    preview: bytes | None = None,
) -> Concept:
    """A concept of random numbers that fits a model.

    Args:
        layers: path -> out, of all the model's cross-attention layers.
    """
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    target = random(family.context_width).half()
    return Concept(
        name=placeholder.strip("*"),
        family=family.id,
        placeholder=placeholder,
        superclass="teddy",
        embeddings={encoder: random(1, width) for encoder, width in family.encoders.items()},
        target_input=target,
        whitened_target=target.float(),  # C is the identity
        superclass_encoding=random(family.context_width),
        values={path: random(out) for path, out in layers.items()},
        preview=preview,
    )


def learned_concept(model: Any, clip: Any, checkpointing: str = "auto", **settings: Any) -> Concept:
    """A "teddy*", trained on two pictures of 64 px as the node does: one step, unless told."""
    family = detect_family(model)
    wanted = TrainingSettings(**{"steps": 1, "batch_size": 1, "seed": 1, **settings})
    batch = (wanted.batch_size, 4, 8, 8)
    with torch.inference_mode(), training_backbone(model, clip, batch, checkpointing) as backbone:
        generator = torch.Generator().manual_seed(3)
        result = train(
            backbone,
            [PictureGroup(5 * torch.randn(2, 4, 8, 8, generator=generator))],
            placeholder="teddy*",
            superclass="teddy",
            covariance=Covariance(torch.eye(family.context_width), 1000, family.id),
            settings=wanted,
        )
    assert result.finished
    return result.concept
