"""The embedded default: a small text-to-image model of ComfyUI's own classes, and how to load it.

Import this only where ComfyUI is importable (inside it, or after `open_comfyui()` of the lab).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models_base
import torch
from safetensors.torch import load_file

WEIGHTS = Path(__file__).with_name("weights")

TEXT_WIDTH = 192
TEXT_TOKENS = 32  # tokens a chunk; ComfyUI repeats chunks for longer prompts
VOCABULARY = 49408  # CLIP's
LATENT_CHANNELS = 5

UNET_CONFIG: dict[str, Any] = {
    "image_size": 16,
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "model_channels": 64,
    "channel_mult": [1, 2, 3],
    "num_res_blocks": [1, 1, 1],
    "transformer_depth": [0, 1, 1],
    "transformer_depth_output": [0, 0, 1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "num_head_channels": 32,
    "context_dim": TEXT_WIDTH,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": False,
    "adm_in_channels": None,
    "use_temporal_attention": False,
    "legacy": False,
}

TEXT_CONFIG: dict[str, Any] = {
    "hidden_size": TEXT_WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "intermediate_size": 4 * TEXT_WIDTH,
    "hidden_act": "quick_gelu",
    "max_position_embeddings": TEXT_TOKENS,
    "eos_token_id": 49407,
    "vocab_size": VOCABULARY,
}


class EmojiLatents(comfy.latent_formats.LatentFormat):
    """Latents of the world's own autoencoder.

    Of unit variance on average, so no scale is needed.
    """

    scale_factor = 1.0
    latent_channels = LATENT_CHANNELS


class EmojiWorld(comfy.supported_models_base.BASE):
    """What ComfyUI is told of the small model: a v-predicting UNet with zero terminal SNR."""

    unet_config = {"context_dim": TEXT_WIDTH, "model_channels": UNET_CONFIG["model_channels"]}
    unet_extra_config: dict[str, Any] = {}
    sampling_settings = {"zsnr": True}
    latent_format = EmojiLatents
    memory_usage_factor = 0.5

    def inpaint_model(self) -> bool:
        return False  # ComfyUI takes more than four input channels for an inpainting model

    def model_type(
        self, state_dict: dict[str, torch.Tensor], prefix: str = ""
    ) -> comfy.model_base.ModelType:
        return comfy.model_base.ModelType.V_PREDICTION


class EmojiTokenizer(comfy.sd1_clip.SDTokenizer):
    """CLIP's tokenizer with shorter chunks."""

    def __init__(
        self, embedding_directory: Any = None, tokenizer_data: dict[str, Any] | None = None
    ) -> None:
        super().__init__(
            max_length=TEXT_TOKENS,
            embedding_directory=embedding_directory,
            embedding_size=TEXT_WIDTH,
            embedding_key="clip_l",
            tokenizer_data=tokenizer_data or {},
        )


class EmojiClipTokenizer(comfy.sd1_clip.SD1Tokenizer):
    def __init__(
        self, embedding_directory: Any = None, tokenizer_data: dict[str, Any] | None = None
    ) -> None:
        super().__init__(
            embedding_directory=embedding_directory,
            tokenizer_data=tokenizer_data or {},
            tokenizer=EmojiTokenizer,
        )


class EmojiTextModel(comfy.sd1_clip.SDClipModel):
    """ComfyUI's CLIP text model (causal), small."""

    def __init__(
        self, device: Any = "cpu", dtype: Any = None, model_options: dict[str, Any] | None = None
    ) -> None:
        super().__init__(
            device=device,
            max_length=TEXT_TOKENS,
            dtype=dtype,
            textmodel_json_config=dict(TEXT_CONFIG),
            return_projected_pooled=False,
            model_options=model_options or {},
        )


class EmojiClipModel(comfy.sd1_clip.SD1ClipModel):
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
            clip_model=EmojiTextModel,
            **kwargs,
        )


TOKEN_KEY = "text_model.embeddings.token_embedding.weight"


def pack_text_weights(
    state: dict[str, torch.Tensor], token_ids: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Keep only the trained rows of the token table; `unpack_text_weights` is the inverse."""
    packed = dict(state)
    packed["token_rows"] = packed.pop(TOKEN_KEY)[token_ids]
    packed["token_ids"] = token_ids.to(torch.int32)
    return packed


def unpack_text_weights(packed: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The full token table [49408, width]; words that the world does not know get the mean row."""
    state = dict(packed)
    rows, ids = state.pop("token_rows"), state.pop("token_ids").long()
    table = rows.float().mean(dim=0).to(rows.dtype).expand(VOCABULARY, -1).clone()
    table[ids] = rows
    state[TOKEN_KEY] = table
    return state


def load_unet(
    state: dict[str, torch.Tensor], disable_dynamic: bool = False
) -> comfy.model_patcher.ModelPatcher:
    """The UNet's weights as ComfyUI's MODEL.

    Args:
        disable_dynamic: see `_patcher_class`.
    """
    management = comfy.model_management
    config = EmojiWorld(UNET_CONFIG)
    device = management.get_torch_device()
    dtype = management.unet_dtype(
        model_params=sum(v.numel() for v in state.values()),
        supported_dtypes=[torch.float32]
        if device.type == "cpu"
        else [torch.float16, torch.float32],
    )
    config.set_inference_dtype(dtype, None)
    model = config.get_model(state, "", device=management.unet_offload_device())
    patcher = _patcher_class(disable_dynamic)(
        model, load_device=device, offload_device=management.unet_offload_device()
    )
    # In the dtype that it computes in: where dynamic VRAM is on, ComfyUI keeps that of the file,
    # also in a model that is without it, and casts nothing there.
    assign = {"assign": True} if _is_dynamic(patcher) else {}
    model.load_model_weights({k: v.to(dtype) for k, v in state.items()}, "", **assign)
    return patcher


def load_clip(packed: dict[str, torch.Tensor], disable_dynamic: bool = False) -> comfy.sd.CLIP:
    """The text encoder's weights as ComfyUI's CLIP.

    Args:
        disable_dynamic: as of `load_unet`; asked for by newer versions of ComfyUI alone.
    """
    target = comfy.supported_models_base.ClipTarget(EmojiClipTokenizer, EmojiClipModel)
    static = {"disable_dynamic": True} if disable_dynamic else {}
    clip = comfy.sd.CLIP(target, model_options={"dtype": torch.float32}, **static)
    weights = {k: v.float() for k, v in unpack_text_weights(packed).items()}
    missing, unexpected = clip.load_sd(weights)
    if missing or unexpected:
        raise ValueError(
            f"the demo's text weights do not fit: missing {missing}, unknown {unexpected}"
        )
    return clip


def load_vae(state: dict[str, torch.Tensor]) -> comfy.sd.VAE:
    """The autoencoder's weights as ComfyUI's VAE."""
    return comfy.sd.VAE(sd={k: v.float() for k, v in state.items()})


def load(
    folder: Path = WEIGHTS,
) -> tuple[comfy.model_patcher.ModelPatcher, comfy.sd.CLIP, comfy.sd.VAE]:
    """MODEL, CLIP and VAE of the emoji world.

    Raises FileNotFoundError with the remedy when the weights are not there.
    """
    files = {part: folder / f"{part}.safetensors" for part in ("unet", "clip", "vae")}
    for part, path in files.items():
        if not path.is_file():
            raise FileNotFoundError(
                f"the demo model's {part} weights are missing: {path} was expected. They come "
                "with the pack; get the whole pack again (git clone, or the Manager)."
            )
    model = load_unet(load_file(files["unet"]))
    clip = load_clip(load_file(files["clip"]))
    vae = load_vae(load_file(files["vae"]))
    _let_load_again(model, _unet_again, files["unet"])
    _let_load_again(clip.patcher, _clip_again, files["clip"])
    _let_load_again(vae.patcher, _vae_again, files["vae"])
    return model, clip, vae


def _patcher_class(disable_dynamic: bool) -> Any:
    """ComfyUI's class of a MODEL, as its own loaders choose it.

    Args:
        disable_dynamic: whether weights are to be held as ever where ComfyUI's default is dynamic
            VRAM (ComfyUI 0.16 and newer, on NVIDIA cards).
    """
    module = comfy.model_patcher
    if disable_dynamic:
        return module.ModelPatcher
    return getattr(module, "CoreModelPatcher", module.ModelPatcher)


def _is_dynamic(patcher: Any) -> bool:
    asked = getattr(patcher, "is_dynamic", None)
    return asked is not None and bool(asked())


def _let_load_again(patcher: Any, loader: Callable[..., Any], file: Path) -> None:
    """Tells newer versions of ComfyUI how to get a copy weights of its own, as their loaders do.

    They ask for it where a copy must not share weights: their LoRA training, TorchCompileModel and
    LoRA hooks under dynamic VRAM, a model on several GPUs.
    """
    if hasattr(patcher, "cached_patcher_init"):
        patcher.cached_patcher_init = (loader, (file,))


def _unet_again(file: Path, disable_dynamic: bool = False) -> Any:
    return load_unet(load_file(file), disable_dynamic)


def _clip_again(file: Path, disable_dynamic: bool = False) -> Any:
    return load_clip(load_file(file), disable_dynamic).patcher


def _vae_again(file: Path, disable_dynamic: bool = False) -> Any:
    # ComfyUI's VAE chooses by itself.
    return load_vae(load_file(file)).patcher
