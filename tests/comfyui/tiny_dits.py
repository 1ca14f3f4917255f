"""Small transformers of ComfyUI's own classes, with small text encoders of its classes.

The families that they are of are the true ones at small widths: a true text encoder has a
table of its words that takes hundreds of megabytes alone.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import comfy.model_base
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.supported_models
import comfy.supported_models_base
import sentencepiece
import torch
from tiny_models import CPU, loaded_again_by, randomise

from perfusion_core import families
from perfusion_core.families import ModelFamily
from perfusion_core.families.anima import ANIMA as TRUE_ANIMA
from perfusion_core.families.captions import ordinary_captions
from perfusion_core.families.cosmos import COSMOS2
from perfusion_core.families.hunyuan_dit import HUNYUAN_DIT
from perfusion_core.families.ltxv import LTXV
from perfusion_core.families.pixart import PIXART_ALPHA, PIXART_SIGMA
from perfusion_core.families.wan import WAN21, WAN22

WIDTH, BLOCKS, HEADS, HIDDEN = 48, 3, 2, 32

NETWORK: dict[str, Any] = {
    "max_img_h": 240,
    "max_img_w": 240,
    "max_frames": 128,
    "in_channels": 16,
    "out_channels": 16,
    "patch_spatial": 2,
    "patch_temporal": 1,
    "model_channels": HIDDEN,
    "concat_padding_mask": True,
    "crossattn_emb_channels": WIDTH,
    "pos_emb_cls": "rope3d",
    "pos_emb_learnable": True,
    "pos_emb_interpolation": "crop",
    "min_fps": 1,
    "max_fps": 30,
    "use_adaln_lora": True,
    "adaln_lora_dim": 8,
    "num_blocks": BLOCKS,
    "num_heads": HEADS,
    "extra_per_block_abs_pos_emb": False,
    "rope_h_extrapolation_ratio": 4.0,
    "rope_w_extrapolation_ratio": 4.0,
    "rope_t_extrapolation_ratio": 1.0,
    "rope_enable_fps_modulation": False,
}

WAN_NETWORK: dict[str, Any] = {
    "image_model": "wan2.1",
    "model_type": "t2v",
    "patch_size": (1, 2, 2),
    "text_len": 512,
    "in_dim": 16,
    "dim": 96,
    "ffn_dim": 64,
    "freq_dim": 32,
    "text_dim": WIDTH,
    "out_dim": 16,
    "num_heads": 4,
    "num_layers": BLOCKS,
}

# Below 33 cells ComfyUI's position embedding of PixArt divides by zero.
PIXART_SIDE = 36
PIXART_NETWORK: dict[str, Any] = {
    "image_model": "pixart_alpha",
    "hidden_size": 72,
    "depth": BLOCKS,
    "num_heads": HEADS,
    "caption_channels": WIDTH,
    "micro_condition": True,
}

LTX_NETWORK: dict[str, Any] = {
    "image_model": "ltxv",
    "num_layers": BLOCKS,
    "num_attention_heads": 4,
    "attention_head_dim": 16,
    "cross_attention_dim": 64,
    "caption_channels": WIDTH,
}

T5: dict[str, Any] = {"d_model": WIDTH, "d_ff": 64, "d_kv": 16, "num_heads": 2, "num_layers": 2}
# Another width, to be told from the first text's.
SECOND = 32
HUNYUAN_NETWORK: dict[str, Any] = {
    "image_model": "hydit",
    "hidden_size": 64,
    "depth": 4,  # it joins the blocks of its halves
    "num_heads": 4,
    "text_states_dim": WIDTH,
    "text_states_dim_t5": SECOND,
}
BERT: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
}

QWEN: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


@dataclass(frozen=True)
class TinyDit:
    """A family at small widths, and how its models are made.

    Attributes:
        family: its id in concept files is the true one's with "tiny_" before it.
        config: name of ComfyUI's config class.
        encoders: text encoder -> its configuration.
        network: arguments of its network.
        hidden: width of its layers.
        spiece: name of the tokenizer that comes with the weights; "" for none.
        channels: of its latents.
        side: of its latents, in cells.
        blocks: how many it has.
        stem: where its blocks are in the network.
        rows: of a prompt's context at least; 0: as many as the prompt has.
    """

    family: ModelFamily
    config: str
    encoders: dict[str, dict[str, Any]]
    network: dict[str, Any] = field(default_factory=lambda: NETWORK)
    hidden: int = HIDDEN
    spiece: str = ""
    channels: int = 16
    side: int = 8
    blocks: int = BLOCKS
    stem: str = "blocks"
    rows: int = 512

    @property
    def here(self) -> bool:
        """Whether this ComfyUI has it."""
        return hasattr(comfy.supported_models, self.config)

    def shape(self, pictures: int = 1, frames: int = 1) -> tuple[int, ...]:
        """Of latents of some pictures, or videos."""
        return (pictures, self.channels, *(frames,) * self.family.frames, self.side, self.side)

    @property
    def layers(self) -> list[str]:
        """Paths of its layers."""
        return [f"{self.stem}.{n}.{self.family.attention.layer}" for n in range(self.blocks)]

    def model(self, seed: int = 0, dtype: torch.dtype = torch.float32, **network: Any) -> Any:
        """A MODEL with random weights."""
        unet = {"image_model": "", **self.network, **network, "dtype": dtype}
        config = getattr(comfy.supported_models, self.config)(unet)
        config.set_inference_dtype(dtype, None)
        with small_adapter():
            base = config.get_model({}, "", device=CPU)
        fill(base.diffusion_model, seed)
        patcher = comfy.model_patcher.ModelPatcher(base, load_device=CPU, offload_device=CPU)

        def again(disable_dynamic: bool = False) -> Any:
            return self.model(seed, dtype, **network)

        return loaded_again_by(patcher, again)

    def clip(self, seed: int = 1) -> comfy.sd.CLIP:
        """Its CLIP: ComfyUI's tokenizers, small encoders."""
        config = getattr(comfy.supported_models, self.config)({**self.network})
        options: dict[str, Any] = {"dtype": torch.float32}
        for name, changes in self.encoders.items():
            options[f"{name}_model_config"] = changes
        data = {self.spiece: small_spiece()} if self.spiece else {}
        clip = comfy.sd.CLIP(config.clip_target(), model_options=options, tokenizer_data=data)
        for name in self.encoders:
            held = name if hasattr(clip.tokenizer, name) else f"clip_{name}"
            getattr(clip.tokenizer, held).embedding_size = self.family.encoders[name]
        fill(clip.cond_stage_model, seed)
        return clip


@cache
def small_spiece() -> torch.Tensor:
    """A tokenizer of sentencepiece, as a model's file holds it: of a few hundred pieces."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*ordinary_captions(), "a photo of a teddy, on a hill"]),
        model_writer=written,
        vocab_size=400,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return torch.frombuffer(bytearray(written.getvalue()), dtype=torch.uint8)


@contextmanager
def small_adapter() -> Iterator[None]:
    """Within this context Anima's adapter is small: its sizes are defaults of its class."""
    try:
        from comfy.ldm.anima.model import LLMAdapter
    except ImportError:
        yield
        return
    before = LLMAdapter.__init__.__defaults__
    names = LLMAdapter.__init__.__code__.co_varnames[1 : 1 + len(before)]
    small = {"source_dim": WIDTH, "target_dim": WIDTH, "model_dim": HIDDEN, "num_layers": 2}
    small["num_heads"] = HEADS
    values = [small.get(n, value) for n, value in zip(names, before, strict=True)]
    LLMAdapter.__init__.__defaults__ = tuple(values)
    try:
        yield
    finally:
        LLMAdapter.__init__.__defaults__ = before


def fill(network: torch.nn.Module, seed: int) -> None:
    """Random weights; what is computed, such as frequencies, stays."""
    computed = [buffer.clone() for buffer in network.buffers()]
    randomise(network, seed)
    with torch.no_grad():
        for buffer, before in zip(network.buffers(), computed, strict=True):
            buffer.copy_(before)


def _small(family: ModelFamily, **changes: Any) -> ModelFamily:
    encoders = dict.fromkeys(family.encoders, WIDTH)
    made = {"encoders": encoders, "resolution": 64, **changes}
    return replace(family, id=f"tiny_{family.id}", **made)


COSMOS = TinyDit(_small(COSMOS2), "CosmosT2IPredict2", {"t5xxl": T5})
WAN = TinyDit(
    _small(WAN21),
    "WAN21_T2V",
    {"umt5xxl": {**T5, "vocab_size": 400}},
    network=WAN_NETWORK,
    hidden=96,
    spiece="spiece_model",
)
WAN_5B = replace(
    WAN,
    family=_small(WAN22),
    config="WAN22_T2V",
    network={**WAN_NETWORK, "in_dim": 48, "out_dim": 48},
    channels=48,
)
PIXART = TinyDit(
    _small(PIXART_ALPHA, resolution=8 * PIXART_SIDE),
    "PixArtAlpha",
    {"t5xxl": T5},
    network=PIXART_NETWORK,
    hidden=72,
    channels=4,
    side=PIXART_SIDE,
    rows=0,
)
SIGMA = replace(
    PIXART,
    family=_small(PIXART_SIGMA, resolution=8 * PIXART_SIDE),
    config="PixArtSigma",
    network={**PIXART_NETWORK, "image_model": "pixart_sigma", "micro_condition": False},
)
LTX = TinyDit(
    _small(LTXV, resolution=8 * 32),
    "LTXV",
    {"t5xxl": T5},
    network=LTX_NETWORK,
    hidden=64,
    channels=128,
    rows=128,
    stem="transformer_blocks",
)
HUNYUAN = TinyDit(
    _small(HUNYUAN_DIT, encoders={"hydit_clip": WIDTH, "mt5xl": SECOND}),
    "HunyuanDiT",
    {"hydit_clip": BERT, "mt5xl": {**T5, "d_model": SECOND, "vocab_size": 400}},
    network=HUNYUAN_NETWORK,
    hidden=64,
    spiece="mt5xl.spiece_model",
    channels=4,
    blocks=4,
    rows=77 + 256,
)
ANIMA = TinyDit(_small(TRUE_ANIMA), "Anima", {"qwen3_06b": QWEN})


def tiny_dit(family: ModelFamily) -> TinyDit:
    """The one of a small family."""
    every = [value for value in globals().values() if isinstance(value, TinyDit)]
    return next(dit for dit in every if dit.family is family)


@contextmanager
def registered(family: ModelFamily) -> Iterator[None]:
    """Within this context the pack knows a small family."""
    if families.FAMILIES.get(family.id) is family:
        yield
        return
    families.register(family)
    try:
        yield
    finally:
        del families._families[family.id]


class TinyVae:
    """In place of ComfyUI's VAE; of a video model's, which takes pictures for a video's frames."""

    def __init__(self, dit: TinyDit) -> None:
        self._dit = dit

    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        small = torch.nn.functional.avg_pool2d(pictures.movedim(-1, 1), self._dit.family.pixels)
        channels = self._dit.channels
        latents = torch.cat([small] * (channels // 3 + 1), dim=1)[:, :channels] * 4 - 2
        return latents.movedim(0, 1)[None] if self._dit.family.frames else latents

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        videos = latents if self._dit.family.frames else latents[:, :, None]
        frames = videos[:, :3].movedim(2, 1)
        cell = self._dit.family.pixels
        pixels = frames.repeat_interleave(cell, -1).repeat_interleave(cell, -2)
        shown = ((pixels + 2) / 4).clamp(0, 1).movedim(2, -1)
        return shown if self._dit.family.frames else shown[:, 0]
