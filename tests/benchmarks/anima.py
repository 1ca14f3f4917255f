"""Steps of Anima at its true widths, with few of its blocks: sampling and training.

Random weights. What the edit does once a pass, for all layers, weighs the more the fewer blocks
there are: with all 28 the ratios are smaller.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice, pairwise
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.sd
import comfy.supported_models
import torch
from torch import Tensor
from true_models import CPU, fill, random_concept, true_model

from perfusion_core.comfy.backbone import training_backbone
from perfusion_core.comfy.concept_entry import ConceptEntry
from perfusion_core.comfy.differentiable import Differentiable
from perfusion_core.comfy.models import detect_family, layers_of
from perfusion_core.comfy.stack import apply_stack
from perfusion_core.comfy.training_pass import conditions, prediction_errors, transformer_options
from perfusion_core.families.anima import ROWS
from perfusion_core.method.batches import PictureGroup, batches
from perfusion_core.method.covariance import Covariance
from perfusion_core.method.settings import ConceptSettings
from perfusion_core.method.training import Training
from perfusion_core.method.training_settings import TrainingSettings

from .measure import Result, in_turn

BLOCKS = 3
WORDS = 40  # rows of a prompt's context that are no pads
STEPS = 3  # of each round; the first one is not counted
PICTURES = 2  # a training step


class Anima:
    """A model of random weights, what its layers see of two prompts, and concepts for it."""

    def __init__(self, pixels: int, concepts: int) -> None:
        self.model = true_model("Anima", CPU, num_blocks=BLOCKS)
        self.family = detect_family(self.model)
        outs = {path: layer.out for path, layer in layers_of(self.model, self.family).items()}
        self.concepts = [
            random_concept(self.family, outs, f"word{j}*", seed=j) for j in range(concepts)
        ]
        contexts = torch.zeros(2, 1, ROWS, self.family.context_width)
        contexts[:, :, :WORDS] = torch.randn(2, 1, WORDS, self.family.context_width)
        contexts[0, 0, 5] = self.concepts[0].target_input
        self.prompts = [[[context, {}]] for context in contexts]
        self.side = pixels // self.family.pixels

    def carrying(self, concepts: int) -> Any:
        entries = [ConceptEntry(c, ConceptSettings()) for c in self.concepts[:concepts]]
        return apply_stack(self.model, entries)

    def sampling(self, model: Any) -> list[float]:
        """Seconds of each step of sampling but the first, cond and uncond in one batch."""
        latent = torch.zeros(1, 16, 1, self.side, self.side)
        ends: list[float] = []
        with torch.inference_mode():
            comfy.sample.sample(
                model,
                torch.randn_like(latent),
                STEPS,
                4.0,
                "euler",
                "simple",
                *self.prompts,
                latent,
                callback=lambda *_: ends.append(time.perf_counter()),
                disable_pbar=True,
                seed=1,
            )
        return [after - before for before, after in pairwise(ends)]

    def clip(self) -> comfy.sd.CLIP:
        """Its CLIP, cut in depth: it encodes before the first step alone."""
        target = comfy.supported_models.Anima({}).clip_target()
        cut = {"num_hidden_layers": 1}
        options = {"dtype": torch.float32, "qwen3_06b_model_config": cut}
        clip = comfy.sd.CLIP(target, model_options=options)
        fill(clip.cond_stage_model)
        return clip

    def group(self) -> PictureGroup:
        return PictureGroup(torch.randn(PICTURES, 16, 1, self.side, self.side))

    def training(self, clip: Any, tell: Callable[[], None]) -> None:
        """Perfusion's, with the embedding as it is."""
        group, width = self.group(), self.family.context_width
        shape = group.latents.shape
        with (
            torch.inference_mode(),
            training_backbone(self.model, clip, shape, "off", once=True) as backbone,
        ):
            for _ in Training(
                backbone,
                [group],
                placeholder="teddy*",
                superclass="teddy",
                covariance=Covariance(torch.eye(width), 1000, self.family.id),
                settings=TrainingSettings(steps=STEPS, batch_size=PICTURES, embedding_rate=0.0),
            ):
                tell()

    def floor(self, clip: Any, tell: Callable[[], None]) -> None:
        """Forward and backward of the bare network to the keys and values of the text."""
        group, base = self.group(), self.model.model
        shape = group.latents.shape
        layers = layers_of(self.model, self.family).values()
        handles = [
            module.register_forward_hook(_leaf)
            for layer in layers
            for module in (layer.key, layer.value)
        ]
        try:
            with training_backbone(self.model, clip, shape, "off", once=True) as backbone:
                word = backbone.superclass_embeddings("teddy")
                with torch.no_grad():
                    texts = ["a photo of a teddy*"] * PICTURES
                    prompts = backbone.encode(texts, "teddy*", word, "teddy")
                backbone.retire_encoder()
                sampling = base.model_sampling
                drawn = batches([group], "teddy*", "teddy", PICTURES, seed=0)
                for batch in islice(drawn, STEPS):
                    clean = base.process_latent_in(batch.latents)
                    sigmas = torch.stack([torch.as_tensor(1 - float(t)) for t in batch.times])
                    noisy = sampling.noise_scaling(sigmas, batch.noise, clean, False)
                    arguments = conditions(base, self.family, prompts, noisy)
                    with Differentiable():
                        denoised = base.apply_model(
                            noisy,
                            sigmas,
                            transformer_options=transformer_options(self.model),
                            **arguments,
                        )
                    errors = prediction_errors(sampling, sigmas, denoised, clean)
                    errors.square().mean().backward()
                    tell()
        finally:
            for handle in handles:
                handle.remove()


def _leaf(_: Any, __: Any, output: Tensor) -> Tensor:
    """Backward ends here."""
    return output.detach().requires_grad_()


def _spent(loop: Callable[[Callable[[], None]], None]) -> list[float]:
    """Seconds of every step of a loop but the first."""
    ends: list[float] = []
    loop(lambda: ends.append(time.perf_counter()))
    return [after - before for before, after in pairwise(ends)]


def measure(pixels: int, runs: int) -> Iterator[Result]:
    """A step of sampling with 1 and 4 concepts against none, and one of training."""
    if not hasattr(comfy.supported_models, "Anima"):
        return
    anima, counts = Anima(pixels, 4), (1, 4)
    what = f"Anima at true widths, {BLOCKS} of its 28 blocks, {pixels} px, fp32"
    models = {"stock": anima.model, **{str(n): anima.carrying(n) for n in counts}}
    found = in_turn({k: partial(anima.sampling, m) for k, m in models.items()}, runs)
    for count in counts:
        yield Result(
            f"anima_step_{pixels}" + ("" if count == 1 else f"_{count}"),
            f"{what}, CFG, {count} concepts",
            1000 * found[str(count)],
            1000 * found["stock"],
            "the step without concepts",
            runs=runs * (STEPS - 1),
        )
    clip = anima.clip()
    loops = {"ours": partial(anima.training, clip), "floor": partial(anima.floor, clip)}
    found = in_turn({k: partial(_spent, loop) for k, loop in loops.items()}, runs)
    yield Result(
        f"anima_train_step_{pixels}",
        f"a training step, {what}, batch {PICTURES}, the embedding as it is",
        1000 * found["ours"],
        1000 * found["floor"],
        "forward and backward of the bare network to its keys and values",
        runs=runs * (STEPS - 1),
    )
    # Gigabytes, before the next model comes.
    del anima, models, clip, loops
    comfy.model_management.unload_all_models()
    gc.collect()
