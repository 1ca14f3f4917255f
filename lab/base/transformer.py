"""What the emoji world's transformer is: Cosmos-Predict2's class and a T5, small.

It paints the same world from the same latents as the UNet, but reads prompts with a T5, in which
every word's encoding depends on the words after it too, and attends to them behind a norm of the
keys. `train_dit.py` trains it; no weights are shipped yet. Import this only after `open_comfyui()`.
"""

from __future__ import annotations

import inspect
import os
from typing import Any

import comfy.sd1_clip
import comfy.text_encoders.t5
from transformers import T5TokenizerFast

from demo.model import LATENT_CHANNELS

TEXT_WIDTH = 192
TEXT_TOKENS = 80  # of every prompt at least: shorter ones are padded with rows of zeros
VOCABULARY = 32128  # T5's

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
    "model_channels": 192,
    "num_blocks": 8,
    "num_heads": 6,
    "mlp_ratio": 4.0,
    "crossattn_emb_channels": TEXT_WIDTH,
    "pos_emb_cls": "rope3d",
    "pos_emb_learnable": False,
    "use_adaln_lora": True,
    "adaln_lora_dim": 64,
    "rope_enable_fps_modulation": False,
}


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
