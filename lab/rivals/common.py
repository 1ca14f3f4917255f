"""What the rivals share: the denoising loss without any edit, trigger words, files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from perfusion_core.comfy.prompts import Word, tokenizers_of, with_words, word_tokens
from perfusion_core.method.batches import Batch

from ..local_comfyui import LocalComfyUI
from ..subjects import Subject
from ..world.vocabulary import OBJECTS, PAINTS, PATTERNS

Words = Mapping[str, Tensor]
"""Text encoder -> the vectors [n, w] of a word."""


def denoising_loss(base: Any, batch: Batch, context: Tensor, device: torch.device) -> Tensor:
    """The error of a model on a batch, as Perfusion's training has it, without an edit.

    Args:
        base: the model object of a MODEL, its weights on `device`.
        context: text encodings of the batch's prompts [B, T, d].

    Returns the squared error [B, C, H, W] of what the model predicts.
    """
    sampling = base.model_sampling
    clean = base.process_latent_in(batch.latents.to(device))
    percents = (1 - batch.times.double()).clamp(1e-5, 1 - 1e-5).tolist()
    sigmas = torch.tensor([sampling.percent_to_sigma(p) for p in percents], device=device)
    noisy = sampling.noise_scaling(sigmas, batch.noise.to(device), clean, False)
    denoised = base.apply_model(
        noisy, sigmas, c_crossattn=context.to(device), transformer_options={}
    )
    zero = torch.zeros_like(noisy[:, :1, :1, :1])
    factor = sampling.calculate_denoised(sigmas, zero + 1, zero)
    errors: Tensor = (denoised.float() - clean) / factor
    return errors.square()


MOVED = 0.3  # of the spread of the words that the world's encoder knows


def trigger(comfyui: LocalComfyUI, subject: Subject) -> dict[str, Tensor]:
    """A word of its own for each subject, for methods that leave the text encoder alone.

    In a real model that is a rare token, beside which the superclass stays what it is. Beside a
    token that this world has not taught, nothing is painted. So it is the superclass's own vector,
    moved a little at random: beside it the base model paints the plain superclass.
    """
    seed = int(hashlib.sha256(subject.name.encode()).hexdigest()[:8], 16)
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name, tokenizer in tokenizers_of(comfyui.clip).items():
        table = getattr(comfyui.clip.cond_stage_model, name).transformer.get_input_embeddings()
        known = (*OBJECTS, *PAINTS, *PATTERNS, subject.superclass)
        ids = torch.tensor([word_tokens(tokenizer, word)[-1] for word in known])
        rows = table.weight.detach()[ids.to(table.weight.device)].float().cpu()
        noise = torch.randn(1, rows.shape[1], generator=generator)
        superclass = rows[-1:]
        made[name] = superclass + MOVED * rows.std(dim=0) * noise
    return made


def knowing(clip: Any, words: Sequence[tuple[Subject, Words]]) -> Any:
    """A clone of a CLIP in which the subjects' placeholders stand for vectors."""
    listed: dict[str, list[Word]] = {}
    for subject, vectors in words:
        for encoder, rows in vectors.items():
            own = Word(subject.placeholder, rows.detach().cpu().float(), owner=subject.name)
            listed.setdefault(encoder, []).append(own)
    return with_words(clip, listed)


def tuned(method: str, what: str = "rate") -> float:
    """A rate of a rival in rates.json, which is where the result of `--tune` goes."""
    text = Path(__file__).with_name("rates.json").read_text(encoding="utf-8")
    rate: float = json.loads(text)[method][what]
    return rate


WORD = "word."


def save(file: Path, words: Words, weights: Mapping[str, Tensor]) -> None:
    """A word and changes of weights in half precision, as such files are passed around."""
    parts = {**{WORD + name: vectors for name, vectors in words.items()}, **weights}
    half = {name: t.detach().cpu().half().contiguous() for name, t in parts.items()}
    save_file(half, file)


def load(file: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(the word, the changes of weights) of a file that `save` wrote."""
    parts = load_file(file)
    words = {k.removeprefix(WORD): v.float() for k, v in parts.items() if k.startswith(WORD)}
    return words, {k: v for k, v in parts.items() if not k.startswith(WORD)}
