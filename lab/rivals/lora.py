"""ComfyUI's own LoRA training: the node TrainLoraNode, called as ComfyUI calls it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.sd
import comfy.utils
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from perfusion_core.comfy.models import compute_dtype
from perfusion_core.method.templates import templates_for

from ..local_comfyui import LocalComfyUI
from ..methods import Method, Pair
from ..recipe import BATCH, SEED
from ..subjects import Subject
from ..tables import LORA
from .common import knowing, load, save, trigger, tuned


@dataclass(frozen=True)
class Lora(Method):
    """Knob: `strength` of the LoRA, as in ComfyUI's loader.

    The node averages the predictions for all captions of a batch over every picture of it, at the
    cost of the batch squared. One picture a pass and as many passes a step give each picture its
    own caption, for the same pictures a step: that is how it is trained here.
    """

    title = LORA

    rate: float = tuned("Lora")
    rank: int = 8

    def phrase(self, subject: Subject) -> str:
        return f"{subject.placeholder} {subject.superclass}"

    def train(self, comfyui: LocalComfyUI, subject: Subject, file: Path) -> None:
        words = trigger(comfyui, subject)
        clip = knowing(comfyui.clip, [(subject, words)])
        (group,) = subject.groups(comfyui)
        templates = templates_for(subject.superclass)
        pairs = [
            (latent, caption.format(self.phrase(subject)))
            for n, latent in enumerate(group.latents)
            for caption in ([group.captions[n]] if group.captions else templates)
        ]
        with torch.inference_mode():
            positive = [encoded(clip, text) for _, text in pairs]
        lora = train_lora(
            comfyui.model,
            torch.stack([latent for latent, _ in pairs]),
            positive,
            steps=self.steps,
            batch=1,
            accumulate=BATCH,
            rate=self.rate,
            rank=self.rank,
        )
        save(file, words, lora)

    def apply(
        self,
        comfyui: LocalComfyUI,
        learned: Sequence[tuple[Subject, Path]],
        prompts: Sequence[str],
        strength: float = 1.0,
    ) -> Pair:
        model, words = comfyui.model, []
        for subject, file in learned:
            word, lora = load(file)
            model, _ = comfy.sd.load_lora_for_models(model, None, lora, strength, 0)
            words.append((subject, word))
        return model, knowing(comfyui.clip, words)


def encoded(clip: Any, text: str) -> list[Any]:
    """One entry of a CONDITIONING, as CLIPTextEncode gives it."""
    (entry,) = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    return [entry[0], entry[1]]


def train_lora(
    model: Any,
    latents: Tensor,
    positive: Sequence[Any],
    *,
    steps: int,
    batch: int,
    accumulate: int,
    rate: float,
    rank: int,
    on_step: Callable[[], None] = lambda: None,
) -> dict[str, Tensor]:
    """Runs TrainLoraNode; gives the LoRA's weights.

    In the precision that the model computes in, without checkpointing, as all that it is compared
    with.

    Args:
        latents: [N, C, H, W].
        positive: N entries of a CONDITIONING.
        accumulate: passes of `batch` pictures a step.
        on_step: called after each step.
    """
    from comfy_extras.nodes_train import TrainLoraNode

    precision = "fp32" if compute_dtype(model.model) == torch.float32 else "bf16"
    torch.manual_seed(SEED)  # the node draws from the global generator
    schema = TrainLoraNode.define_schema()
    wanted = {
        "model": model,
        "batch_size": batch,
        "steps": steps,
        "grad_accumulation_steps": accumulate,
        "learning_rate": rate,
        "rank": rank,
        "optimizer": "AdamW",
        "loss_function": "MSE",
        "seed": SEED,
        "training_dtype": precision,
        "lora_dtype": "fp32",
        "algorithm": "LoRA",
        "gradient_checkpointing": False,
        "existing_lora": "[None]",
    }
    with _told(on_step):
        # Every input is a list: the node takes lists. The latents come one by one: it trips over a
        # single batch of several (0.3.75).
        output = TrainLoraNode.execute(
            latents=[{"samples": latent[None]} for latent in latents],
            positive=[list(positive)],
            **{name: [value] for name, value in {**_by_default(schema), **wanted}.items()},
        )
    # The second of four outputs, or the first of three.
    (lora,) = (
        given
        for given, kind in zip(output.result, schema.outputs, strict=True)
        if kind.io_type == "LORA_MODEL"
    )
    return {name: t.detach().float().cpu() for name, t in lora.items()}


def _by_default(schema: Any) -> dict[str, Any]:
    """What the node takes for each of its inputs that has a default: newer versions have more."""
    defaults = {one.id: getattr(one, "default", None) for one in schema.inputs}
    return {name: default for name, default in defaults.items() if default is not None}


@contextmanager
def _told(on_step: Callable[[], None]) -> Iterator[None]:
    """Within this context every optimiser's step is told of, and ComfyUI shows no bar.

    Not from ComfyUI's bar, which moves once a step (0.3.75), or once a pass and not each time
    (0.12.1).
    """
    shown = comfy.utils.PROGRESS_BAR_ENABLED
    handle = register_optimizer_step_post_hook(lambda *_: on_step())
    comfy.utils.set_progress_bar_enabled(False)
    try:
        yield
    finally:
        comfy.utils.set_progress_bar_enabled(shown)
        handle.remove()
