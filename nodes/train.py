"""PerfusionTrainConcept: a concept from a few pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from comfy import model_management
from comfy.utils import ProgressBar
from comfy_api.latest import io, ui
from torch import Tensor

from ..perfusion_core.bridge import (
    covariance_of,
    join_masks,
    join_pictures,
    picture_latents,
    recommended,
    thumbnail,
    training_backbone,
)
from ..perfusion_core.concept import check_words
from ..perfusion_core.covariance import Covariance
from ..perfusion_core.training import TrainingResult, TrainingSettings, train
from .types import CATEGORY, ConceptType, CovarianceType

DEFAULTS = TrainingSettings()


class PerfusionTrainConcept(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PerfusionTrainConcept",
            display_name="Perfusion Train Concept",
            category=CATEGORY,
            description="Learns a concept from a few pictures: one word for the text encoder and "
            "one vector per cross-attention layer. The model itself does not change.",
            # Pictures of a list come together; otherwise each would train a concept of its own.
            is_input_list=True,
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model to train on, without other concepts. LoRAs on it stay in "
                    "effect.",
                ),
                io.Clip.Input("clip", tooltip="The model's text encoder."),
                io.Vae.Input("vae", tooltip="The model's autoencoder."),
                io.Image.Input(
                    "images",
                    tooltip="Pictures of the one thing to learn, all of one size; 4 to 6 are good.",
                ),
                io.String.Input(
                    "placeholder",
                    default="teddy*",
                    tooltip="The new word for prompts. One word without spaces, best not an "
                    "ordinary word, such as teddy* or <my-teddy>.",
                ),
                io.String.Input(
                    "superclass",
                    default="teddy",
                    tooltip="The ordinary word for what it is, such as teddy, cat or vase. "
                    "Training starts from it and keeps to its shape in the picture.",
                ),
                io.Int.Input(
                    "steps",
                    default=DEFAULTS.steps,
                    min=1,
                    max=100000,
                    tooltip="Training steps. More: closer to the pictures, at last too close.",
                ),
                io.Int.Input(
                    "batch_size",
                    default=DEFAULTS.batch_size,
                    min=1,
                    max=1024,
                    tooltip="Pictures a step. Lower it when memory runs out.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    tooltip="The same seed gives the same concept.",
                ),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="Where the thing is in each picture (white). One for all pictures or "
                    "one for each. Keeps backgrounds out of the concept.",
                ),
                CovarianceType.Input(
                    "covariance",
                    optional=True,
                    tooltip="Of Perfusion Covariance. Not connected: made from built-in captions, "
                    "once for each text encoder.",
                ),
                io.Float.Input(
                    "embedding_rate",
                    default=DEFAULTS.embedding_rate,
                    min=0.0,
                    max=1.0,
                    step=0.0001,
                    optional=True,
                    tooltip="Learning rate of the placeholder's token embedding.",
                ),
                io.Float.Input(
                    "value_rate",
                    default=DEFAULTS.value_rate,
                    min=0.0,
                    max=10.0,
                    step=0.0001,
                    optional=True,
                    tooltip="Learning rate of the values, relative to the size of each layer's "
                    "values. Lower it when training diverges.",
                ),
                io.Float.Input(
                    "train_bias",
                    default=DEFAULTS.bias,
                    min=-1.0,
                    max=2.0,
                    step=0.01,
                    optional=True,
                    tooltip="Bias of the gate while training.",
                ),
                io.Float.Input(
                    "train_temperature",
                    default=DEFAULTS.temperature,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="Temperature of the gate while training.",
                ),
                io.Float.Input(
                    "ema",
                    default=DEFAULTS.ema,
                    min=0.0,
                    max=0.9999,
                    step=0.0001,
                    optional=True,
                    tooltip="How slowly the concept's direction follows its word while training.",
                ),
            ],
            outputs=[
                ConceptType.Output(
                    display_name="concept",
                    tooltip="The concept, to save, to combine or to apply at once.",
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        model: list[Any],
        clip: list[Any],
        vae: list[Any],
        images: list[Tensor],
        placeholder: list[str],
        superclass: list[str],
        steps: list[int],
        batch_size: list[int],
        seed: list[int],
        masks: Sequence[Tensor | None] = (),
        covariance: Sequence[Covariance | None] = (None,),
        embedding_rate: Sequence[float] = (DEFAULTS.embedding_rate,),
        value_rate: Sequence[float] = (DEFAULTS.value_rate,),
        train_bias: Sequence[float] = (DEFAULTS.bias,),
        train_temperature: Sequence[float] = (DEFAULTS.temperature,),
        ema: Sequence[float] = (DEFAULTS.ema,),
    ) -> io.NodeOutput:
        settings = TrainingSettings(
            steps=steps[0],
            batch_size=batch_size[0],
            seed=seed[0],
            embedding_rate=embedding_rate[0],
            value_rate=value_rate[0],
            bias=train_bias[0],
            temperature=train_temperature[0],
            ema=ema[0],
        )
        word, kind = placeholder[0].strip(), superclass[0].strip()
        # Everything that can be refused is refused before anything takes long.
        check_words(word, kind)
        pictures = join_pictures(images)
        weights = join_masks(masks, pictures)
        latents = picture_latents(vae[0], pictures)
        common = covariance[0] or covariance_of(clip[0], on_captions=_stop_when_asked)
        bar = ProgressBar(settings.steps)

        def on_step(done: int, total: int, loss: float) -> None:
            bar.update_absolute(done, total)
            _stop_when_asked()

        shape = (settings.batch_size, *latents.shape[1:])
        with training_backbone(model[0], clip[0], shape) as backbone:
            result = train(
                backbone,
                latents,
                weights,
                placeholder=word,
                superclass=kind,
                covariance=common,
                settings=settings,
                on_step=on_step,
            )
        concept = replace(result.concept, preview=thumbnail(pictures[0]))
        return io.NodeOutput(recommended(concept), ui=ui.PreviewText(_summary(result)))


def _stop_when_asked(*_: Any) -> None:
    model_management.throw_exception_if_processing_interrupted()


def _summary(result: TrainingResult) -> str:
    tenth = max(1, len(result.losses) // 10)
    first, last = (sum(part) / tenth for part in (result.losses[:tenth], result.losses[-tenth:]))
    return f"{len(result.losses)} steps, loss {first:.4f} to {last:.4f}"
