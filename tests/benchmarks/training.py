"""One training step: ours, its floor, ComfyUI's TrainLoraNode, textual inversion.

All on one model, with as many pictures a step in one precision, side by side in one run. All but
the floor are the loops that users run, timed from the end of one step to the end of the next;
set-up is in none of them.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise
from typing import Any

import comfy.model_management
import torch
from torch import Tensor
from true_models import CPU, true_clip, true_model

from demo import model as small
from lab.rivals.common import denoising_loss
from lab.rivals.lora import encoded, train_lora
from lab.rivals.textual_inversion import learn_word
from perfusion_core.comfy.backbone import training_backbone
from perfusion_core.comfy.models import detect_family, layers_of
from perfusion_core.method.batches import PictureGroup, batches
from perfusion_core.method.covariance import Covariance
from perfusion_core.method.training import Training
from perfusion_core.method.training_settings import TrainingSettings

from .measure import Result, in_turn

STEPS = 3  # of each round; the clock begins when the first one ends
PICTURES = 4  # to train on
PLACEHOLDER, SUPERCLASS = "teddy*", "teddy"
PROMPT = "a photo of a {}"

Tell = Callable[..., None]


@dataclass(frozen=True)
class Setting:
    """What is trained on: MODEL, CLIP, pictures in latents, pictures a step."""

    model: Any
    clip: Any
    group: PictureGroup
    size: int

    def ours(self, tell: Tell) -> None:
        """Perfusion's training as the node runs it."""
        family = detect_family(self.model)
        settings = TrainingSettings(steps=STEPS, batch_size=self.size)
        shape = (self.size, *self.group.latents.shape[1:])
        with torch.inference_mode(), training_backbone(self.model, self.clip, shape) as backbone:
            for _ in Training(
                backbone,
                [self.group],
                placeholder=PLACEHOLDER,
                superclass=SUPERCLASS,
                covariance=Covariance(torch.eye(family.context_width), 1000, family.id),
                settings=settings,
            ):
                tell()

    def floor(self, tell: Tell) -> None:
        """Forward and backward of the bare UNet, to the keys and values of the text."""
        shape = (self.size, *self.group.latents.shape[1:])
        drawn = batches([self.group], SUPERCLASS, SUPERCLASS, self.size, seed=0)
        layers = layers_of(self.model, detect_family(self.model)).values()
        handles = [
            module.register_forward_hook(_leaf)
            for layer in layers
            for module in (layer.key, layer.value)
        ]
        try:
            with training_backbone(self.model, self.clip, shape) as backbone:
                words = backbone.superclass_embeddings(SUPERCLASS)
                prompts = [PROMPT.format(PLACEHOLDER)] * self.size
                context = backbone.encode(prompts, PLACEHOLDER, words).context.detach()
                for batch in islice(drawn, STEPS):
                    loss = denoising_loss(self.model.model, batch, context, backbone.device)
                    loss.mean().backward()
                    tell()
        finally:
            for handle in handles:
                handle.remove()

    def textual_inversion(self, tell: Tell) -> None:
        learn_word(
            self.model,
            self.clip,
            [self.group],
            PLACEHOLDER,
            SUPERCLASS,
            steps=STEPS,
            size=self.size,
            rate=0.001,
            on_step=tell,
        )

    def lora(self, tell: Tell, batch: int) -> None:
        """ComfyUI's node: `batch` pictures a pass, passes for as many a step as the others."""
        # Its batches come from as many pictures at least.
        latents = self.group.latents.repeat(-(-self.size // PICTURES), 1, 1, 1)
        with torch.inference_mode():
            positive = [encoded(self.clip, PROMPT.format(SUPERCLASS))] * len(latents)
        train_lora(
            self.model,
            latents,
            positive,
            steps=STEPS,
            batch=batch,
            accumulate=self.size // batch,
            rate=0.0005,
            rank=8,
            on_step=tell,
        )


def _leaf(_: Any, __: Any, output: Tensor) -> Tensor:
    """Backward ends here."""
    return output.detach().requires_grad_()


def spent(loop: Callable[[Tell], None]) -> list[float]:
    """Seconds of every step of a loop but the first."""
    ends: list[float] = []

    def tell(*_: Any) -> None:
        ends.append(time.perf_counter())

    loop(tell)
    return [after - before for before, after in pairwise(ends)]


def demo_setting(size: int) -> Setting:
    """The demo's model, as `make demo` trains it."""
    model, clip, _ = small.load()
    return Setting(model, clip, _pictures(small.LATENT_CHANNELS, 16), size)


def sd15_setting(pixels: int, size: int) -> Setting:
    """SD 1.5 at its true size, with random weights."""
    model = true_model("SD15", CPU)
    return Setting(model, true_clip("SD15", layers=12), _pictures(4, pixels // 8), size)


def _pictures(channels: int, side: int) -> PictureGroup:
    generator = torch.Generator().manual_seed(0)
    return PictureGroup(torch.randn(PICTURES, channels, side, side, generator=generator))


def measure(make: Callable[[], Setting], called: str, what: str, runs: int) -> Iterator[Result]:
    """Ours against each of the others.

    Args:
        called: what the figures' names end with.
        what: the model and the batch, for a reader.
    """
    setting = make()
    loops: dict[str, tuple[Callable[[Tell], None], str]] = {
        "floor": (setting.floor, "forward and backward of the bare UNet to its keys and values"),
        "textual_inversion": (setting.textual_inversion, "textual inversion"),
        "lora": (
            partial(setting.lora, batch=1),
            "ComfyUI's TrainLoraNode, a picture a pass, accumulated",
        ),
    }
    if setting.size > 1:
        loops["lora_batch"] = (
            partial(setting.lora, batch=setting.size),
            "ComfyUI's TrainLoraNode, all pictures in one batch",
        )
    candidates = {name: partial(spent, loop) for name, (loop, _) in loops.items()}
    found = in_turn({"ours": partial(spent, setting.ours), **candidates}, runs)
    for name, (_, against) in loops.items():
        yield Result(
            f"train_step_vs_{name}{called}",
            f"a training step, {what}",
            1000 * found["ours"],
            1000 * found[name],
            against,
            runs=runs * (STEPS - 1),
        )
    # Gigabytes, before the next model comes.
    del setting, loops, candidates
    comfy.model_management.unload_all_models()
    gc.collect()
