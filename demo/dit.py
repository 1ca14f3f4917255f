"""The second small model: a diffusion transformer of ComfyUI's own Cosmos-Predict2 class.

It paints the same emoji world from the same latents as `model.py`, but reads prompts with a T5,
in which every word's encoding depends on the words after it too, and attends to them behind a norm
of the keys. Import this only where ComfyUI is importable.
"""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any

import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models_base
import comfy.text_encoders.t5
import torch
from safetensors.torch import load_file
from transformers import T5TokenizerFast

from .model import LATENT_CHANNELS, EmojiLatents, load_vae

WEIGHTS = Path(__file__).with_name("weights") / "dit"
VAE = Path(__file__).with_name("weights") / "vae.safetensors"

TEXT_WIDTH = 192
TEXT_TOKENS = 64  # of every prompt at least: shorter ones are padded with rows of zeros
VOCABULARY = 32128  # T5's
TOKEN_KEY = "shared.weight"

TEXT_CONFIG: dict[str, Any] = {
    "model_type": "t5",
    "vocab_size": VOCABULARY,
    "d_model": TEXT_WIDTH,
    "d_ff": 512,
    "d_kv": 32,
    "num_heads": 6,
    "num_layers": 3,
    "dense_act_fn": "gelu_pytorch_tanh",
    "is_gated_act": True,
    "pad_token_id": 0,
    "eos_token_id": 1,
}

DIT_CONFIG: dict[str, Any] = {
    "image_model": "cosmos_predict2",
    "max_img_h": 64,
    "max_img_w": 64,
    "max_frames": 16,
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "patch_spatial": 2,
    "patch_temporal": 1,
    "concat_padding_mask": True,
    "model_channels": 256,
    "num_blocks": 8,
    "num_heads": 8,
    "mlp_ratio": 4.0,
    "crossattn_emb_channels": TEXT_WIDTH,
    "pos_emb_cls": "rope3d",
    "pos_emb_learnable": False,
    "use_adaln_lora": True,
    "adaln_lora_dim": 64,
    "rope_enable_fps_modulation": False,
}


class EmojiFrames(EmojiLatents):
    """The world's latents as videos of one frame [B, 5, 1, 16, 16]."""

    latent_dimensions = 3


class EmojiDit(comfy.supported_models_base.BASE):
    """What ComfyUI is told of the small transformer."""

    unet_config = {"image_model": "cosmos_predict2", "in_channels": LATENT_CHANNELS}
    unet_extra_config: dict[str, Any] = {}
    sampling_settings = {"sigma_data": 1.0, "sigma_max": 80.0, "sigma_min": 0.002}
    latent_format = EmojiFrames
    memory_usage_factor = 0.5

    def get_model(
        self, state_dict: dict[str, torch.Tensor], prefix: str = "", device: Any = None
    ) -> comfy.model_base.BaseModel:
        return comfy.model_base.CosmosPredict2(self, device=device)


class EmojiT5Tokenizer(comfy.sd1_clip.SDTokenizer):
    """T5's tokenizer, as ComfyUI has it, with short prompts."""

    def __init__(
        self, embedding_directory: Any = None, tokenizer_data: dict[str, Any] | None = None
    ) -> None:
        folder = os.path.dirname(inspect.getfile(comfy.text_encoders.t5.T5))
        super().__init__(
            os.path.join(folder, "t5_tokenizer"),
            embedding_directory=embedding_directory,
            pad_with_end=False,
            embedding_size=TEXT_WIDTH,
            embedding_key="t5xxl",
            tokenizer_class=T5TokenizerFast,
            has_start_token=False,
            pad_to_max_length=False,
            max_length=99999999,
            min_length=TEXT_TOKENS,
            tokenizer_data=tokenizer_data or {},
        )


class EmojiT5ClipTokenizer(comfy.sd1_clip.SD1Tokenizer):
    def __init__(
        self, embedding_directory: Any = None, tokenizer_data: dict[str, Any] | None = None
    ) -> None:
        super().__init__(
            embedding_directory=embedding_directory,
            tokenizer_data=tokenizer_data or {},
            clip_name="t5xxl",
            tokenizer=EmojiT5Tokenizer,
        )


class EmojiT5Model(comfy.sd1_clip.SDClipModel):
    """ComfyUI's T5 encoder, small; pads come out as zeros."""

    def __init__(
        self, device: Any = "cpu", dtype: Any = None, model_options: dict[str, Any] | None = None
    ) -> None:
        super().__init__(
            device=device,
            layer="last",
            dtype=dtype,
            textmodel_json_config=dict(TEXT_CONFIG),
            special_tokens={"end": 1, "pad": 0},
            model_class=comfy.text_encoders.t5.T5,
            enable_attention_masks=True,
            return_attention_masks=True,
            zero_out_masked=True,
            model_options=model_options or {},
        )


class EmojiT5ClipModel(comfy.sd1_clip.SD1ClipModel):
    def __init__(
        self,
        device: Any = "cpu",
        dtype: Any = None,
        model_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            device=device,
            dtype=dtype,
            model_options=model_options or {},
            name="t5xxl",
            clip_model=EmojiT5Model,
            **kwargs,
        )


def load_dit(state: dict[str, torch.Tensor]) -> comfy.model_patcher.ModelPatcher:
    """The transformer's weights as ComfyUI's MODEL."""
    management = comfy.model_management
    config = EmojiDit(DIT_CONFIG)
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model(state, "", device=management.unet_offload_device())
    patcher = comfy.model_patcher.ModelPatcher(
        model,
        load_device=management.get_torch_device(),
        offload_device=management.unet_offload_device(),
    )
    model.load_model_weights({k: v.float() for k, v in state.items()}, "")
    return patcher


def load_t5(packed: dict[str, torch.Tensor]) -> comfy.sd.CLIP:
    """The text encoder's weights as ComfyUI's CLIP; words that the world lacks get the mean row."""
    target = comfy.supported_models_base.ClipTarget(EmojiT5ClipTokenizer, EmojiT5ClipModel)
    clip = comfy.sd.CLIP(target, model_options={"dtype": torch.float32})
    state = {k: v.float() for k, v in packed.items() if not k.startswith("token_")}
    rows, ids = packed["token_rows"].float(), packed["token_ids"].long()
    table = rows.mean(dim=0).expand(VOCABULARY, -1).clone()
    table[ids] = rows
    state[TOKEN_KEY] = table
    missing, unexpected = clip.cond_stage_model.t5xxl.transformer.load_state_dict(
        state, strict=False
    )
    if missing or unexpected:
        raise ValueError(
            f"the demo's T5 weights do not fit: missing {missing}, unknown {unexpected}"
        )
    return clip


def load(
    folder: Path = WEIGHTS,
) -> tuple[comfy.model_patcher.ModelPatcher, comfy.sd.CLIP, comfy.sd.VAE]:
    """MODEL, CLIP and VAE of the emoji world's transformer.

    Raises FileNotFoundError with the remedy when the weights are not there.
    """
    files = [folder / "dit.safetensors", folder / "t5.safetensors", VAE]
    for path in files:
        if not path.is_file():
            raise FileNotFoundError(
                f"weights of the demo's transformer are missing: {path} was expected. They come "
                "with the pack; get the whole pack again (git clone, or the Manager)."
            )
    dit, t5, vae = (load_file(path) for path in files)
    return load_dit(dit), load_t5(t5), load_vae(vae)
