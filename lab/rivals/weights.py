"""Fine-tuning of the UNet's own weights with prior preservation.

Custom Diffusion (arXiv 2212.04488): the key and value projections of the text, and a word.
DreamBooth (arXiv 2208.12242): the whole UNet, under a word of its own.

A weight's change is learned beside it, through ComfyUI's weight wrappers as its own LoRA training
does it: the model's weights are never written to, and a change is used as a patch of ComfyUI's
with a strength. Two subjects learned apart are combined by adding both changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perfusion_core.comfy.backbone import training_backbone
from perfusion_core.comfy.models import detect_family, layers_of
from perfusion_core.method.batches import PictureGroup, batches
from perfusion_core.method.templates import templates_for

from ..local_comfyui import LocalComfyUI
from ..methods import Method, Pair
from ..recipe import BATCH, SEED
from ..subjects import Subject
from .common import denoising_loss, knowing, load, save, trigger, tuned

NETWORK = "diffusion_model."
PRIOR_PICTURES, PRIOR_SEED = 32, 77


class Change(torch.nn.Module):
    """What is learned beside a weight, as ComfyUI calls it: weight -> changed weight."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.change = torch.nn.Parameter(torch.zeros(weight.shape, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        return (weight + self.change).to(weight.dtype)

    def move_to(self, device: Any) -> int:
        """ComfyUI brings it to where the weight is; returns its bytes."""
        self.to(device)
        return self.change.nelement() * self.change.element_size()


@dataclass(frozen=True)
class FineTuning(Method):
    """Knob: `strength` of the weights' change, the interpolation between base and fine-tuned.

    Attributes:
        rate: of the weights.
        word_ratio: the word's rate, as a multiple of `rate`; 0 leaves the word as it is.

    Every step sees as many pictures of the superclass, painted by the base model, as of the
    subject: the prior preservation of both papers.
    """

    rate: float = 0.0
    word_ratio: float = 0.0

    def phrase(self, subject: Subject) -> str:
        return f"{subject.placeholder} {subject.superclass}"

    def keys(self, model: Any) -> list[str]:
        """Names of the MODEL's weights that are learned."""
        raise NotImplementedError

    def train(self, comfyui: LocalComfyUI, subject: Subject, file: Path) -> None:
        words = trigger(comfyui, subject)
        changes = learn_changes(
            comfyui,
            {key: weight_of(comfyui.model, key) for key in self.keys(comfyui.model)},
            own=(subject.groups(comfyui), self.phrase(subject)),
            prior=(prior_pictures(comfyui, subject), subject.superclass),
            words={subject.placeholder: words},
            rate=self.rate,
            word_rate=self.rate * self.word_ratio,
            steps=self.steps,
        )
        save(file, words, {key: change.change for key, change in changes.items()})

    def apply(
        self,
        comfyui: LocalComfyUI,
        learned: Sequence[tuple[Subject, Path]],
        prompts: Sequence[str],
        strength: float = 1.0,
    ) -> Pair:
        model, words = comfyui.model.clone(), []
        for subject, file in learned:
            word, changes = load(file)
            model.add_patches({key: ("diff", (t,)) for key, t in changes.items()}, strength)
            words.append((subject, word))
        return model, knowing(comfyui.clip, words)


@dataclass(frozen=True)
class KeysAndValues(FineTuning):
    """Custom Diffusion: K and V of every cross-attention layer, and the word's embedding."""

    title = "Custom Diffusion"

    rate: float = tuned("KeysAndValues")
    word_ratio: float = tuned("KeysAndValues", "word_rate") / tuned("KeysAndValues")

    def keys(self, model: Any) -> list[str]:
        paths = layers_of(model, detect_family(model))
        return [f"{NETWORK}{path}.{kv}.weight" for path in paths for kv in ("to_k", "to_v")]


@dataclass(frozen=True)
class DreamBooth(FineTuning):
    """Every weight of the UNet; the word stays what it is."""

    title = "DreamBooth"

    rate: float = tuned("DreamBooth")

    def keys(self, model: Any) -> list[str]:
        return [f"{NETWORK}{name}" for name in dict(model.model.diffusion_model.named_parameters())]


def weight_of(model: Any, key: str) -> Tensor:
    """A weight of a MODEL by its name."""
    weight: Tensor = model.model.get_parameter(key)
    return weight


def prior_pictures(comfyui: LocalComfyUI, subject: Subject) -> list[PictureGroup]:
    """What the base model paints for the subject's captions with the superclass word in them."""
    wordings = cycle(subject.captions or templates_for(subject.superclass))
    captions = list(islice(wordings, PRIOR_PICTURES))
    prompts = [caption.format(subject.superclass) for caption in captions]
    painted = comfyui.draw(comfyui.model, comfyui.clip, prompts, PRIOR_SEED)
    return comfyui.groups(painted, captions=captions)


def learn_changes(
    comfyui: LocalComfyUI,
    weights: Mapping[str, Tensor],
    own: tuple[Sequence[PictureGroup], str],
    prior: tuple[Sequence[PictureGroup], str],
    words: Mapping[str, dict[str, Tensor]],
    *,
    rate: float,
    word_rate: float,
    steps: int,
    on_step: Callable[[], None] = lambda: None,
) -> dict[str, Change]:
    """Changes of `weights` that fit the subject's pictures and keep the superclass's.

    Args:
        weights: of the comfyui's model, by name.
        own: pictures of the subject, and what stands for it in a prompt.
        prior: pictures of the superclass, and its word.
        words: one placeholder and its vectors, which are learned in place when `word_rate` is not
            0.
    """
    changes = {key: Change(weight) for key, weight in weights.items()}
    model = comfyui.model.clone()
    for key, change in changes.items():
        model.add_weight_wrapper(key, change)
    ((placeholder, vectors),) = words.items()
    groups, phrase = own
    prior_groups, superclass = prior
    with training_backbone(
        model, comfyui.clip, (2 * BATCH, *groups[0].latents.shape[1:])
    ) as backbone:
        learned = {
            name: rows.to(backbone.device, copy=True).requires_grad_(word_rate > 0)
            for name, rows in vectors.items()
        }
        optimizer = torch.optim.Adam(
            [
                {"params": [change.change for change in changes.values()], "lr": rate},
                {"params": list(learned.values()), "lr": word_rate},
            ]
        )
        subject = batches(groups, phrase, superclass, BATCH, SEED)
        others = batches(prior_groups, superclass, superclass, BATCH, SEED + 1)
        for batch, kept in islice(zip(subject, others, strict=True), steps):
            context = backbone.encode(batch.prompts, placeholder, learned).context
            plain = _plain(backbone, comfyui, kept.prompts)
            optimizer.zero_grad(set_to_none=True)
            for part, encoding in ((batch, context), (kept, plain)):
                loss = denoising_loss(model.model, part, encoding, backbone.device)
                loss.mean().backward()
            optimizer.step()
            on_step()
        for name, rows in learned.items():
            vectors[name] = rows.detach().cpu()
    for change in changes.values():
        change.requires_grad_(False)
    return changes


def _plain(backbone: Any, comfyui: LocalComfyUI, prompts: Sequence[str]) -> Tensor:
    """Encodings of prompts without a placeholder."""
    from perfusion_core.comfy.prompts import encode

    with torch.no_grad():
        return encode(comfyui.clip, prompts).context
