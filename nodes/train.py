"""PerfusionTrainConcept: a concept from a few pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from comfy_api.latest import io, ui
from torch import Tensor

from ..perfusion_core.comfy.backbone import CHECKPOINTING
from ..perfusion_core.comfy.concept_entry import ConceptEntry, recommended
from ..perfusion_core.comfy.protocols import Clip, Model, Vae
from ..perfusion_core.comfy.scores import AUTO
from ..perfusion_core.concept.concept import Concept
from ..perfusion_core.draw.contact_sheet import contact_sheet
from ..perfusion_core.draw.plots import loss_plot
from ..perfusion_core.learn.plan import Learned, Plan
from ..perfusion_core.learn.session import learn
from ..perfusion_core.method.covariance import Covariance
from ..perfusion_core.method.training_settings import TrainingSettings
from .lists import single_values
from .train_inputs import ADVANCED, DEFAULTS, training_inputs
from .training_progress import NodeProgress
from .types import CATEGORY, ConceptType, for_page


class PerfusionTrainConcept(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="PerfusionTrainConcept",
            display_name="Perfusion Train Concept",
            category=CATEGORY,
            description="Learns a concept from a few pictures: one word for the text encoder and "
            "one vector per cross-attention layer. The model itself does not change.",
            # Lists come together; otherwise each picture would train a concept of its own.
            is_input_list=True,
            hidden=[io.Hidden.unique_id],
            inputs=training_inputs(),
            outputs=[
                ConceptType.Output(
                    display_name="concept",
                    tooltip="The concept, to save, to combine or to apply at once.",
                ),
                io.Image.Output(
                    display_name="loss_plot",
                    tooltip="The loss of every step and its running mean. It should fall, then "
                    "level out.",
                ),
                io.Image.Output(
                    display_name="contact_sheet",
                    tooltip="The validation pictures over the steps, with their scores where there "
                    "are any.",
                ),
            ],
        )
        return for_page(
            schema,
            aliases=[
                "personalize",
                "personalization",
                "learn concept",
                "textual inversion",
                "dreambooth",
                "train lora",
                "key-locking",
            ],
            advanced=ADVANCED,
        )

    @classmethod
    def execute(
        cls,
        images: Sequence[Tensor],
        masks: Sequence[Tensor | None] = (),
        captions: Sequence[str] = (),
        validation: Sequence[str] = (),
        **others: Sequence[Any],
    ) -> io.NodeOutput:
        return cls._learn(images, masks, captions, validation, **single_values(others))

    @classmethod
    def _learn(
        cls,
        images: Sequence[Tensor],
        masks: Sequence[Tensor | None],
        captions: Sequence[str],
        validation: Sequence[str],
        *,
        model: Model,
        clip: Clip,
        vae: Vae,
        placeholder: str,
        superclass: str,
        steps: int,
        batch_size: int,
        seed: int,
        covariance: Covariance | None = None,
        embedding_rate: float = DEFAULTS.embedding_rate,
        value_rate: float = DEFAULTS.value_rate,
        train_bias: float = DEFAULTS.bias,
        train_temperature: float = DEFAULTS.temperature,
        ema: float = DEFAULTS.ema,
        vectors: int = DEFAULTS.vectors,
        resolution: int = 0,
        flip: bool = False,
        on_cancel: str = "discard",
        save_every: int = 0,
        resume: ConceptEntry | None = None,
        key_mode: str = DEFAULTS.key_mode,
        checkpointing: str = CHECKPOINTING[0],
        preview_every: int = 50,
        select: bool = False,
        scorer: str = AUTO,
    ) -> io.NodeOutput:
        plan = Plan(
            placeholder,
            superclass,
            TrainingSettings(
                steps=steps,
                batch_size=batch_size,
                seed=seed,
                vectors=vectors,
                embedding_rate=embedding_rate,
                value_rate=value_rate,
                bias=train_bias,
                temperature=train_temperature,
                ema=ema,
                key_mode=key_mode,
            ),
            covariance=covariance,
            start=None if resume is None else resume.concept,
            resolution=resolution,
            flip=flip,
            checkpointing=checkpointing,
            look_every=preview_every,
            prompts="\n".join(validation),
            select=select,
            scorer=scorer,
            save_every=save_every,
            keep=on_cancel == "keep",
        )
        progress = NodeProgress(cls.hidden.unique_id, steps)
        learned = learn(model, clip, vae, images, masks, captions, plan, progress)
        chosen = learned.concept.training.get("selected_step")
        return io.NodeOutput(
            recommended(learned.concept),
            loss_plot(learned.losses),
            contact_sheet(learned.looks, learned.prompts, chosen),
            ui=ui.PreviewText(
                "\n".join([_summary(learned) + _selection(learned.concept), *learned.notes])
            ),
        )


def _summary(learned: Learned) -> str:
    losses, sizes = learned.losses, learned.sizes
    steps = f"{len(losses)} steps" + ("" if learned.finished else ", then cancelled")
    if not losses:
        return f"{steps}; pictures: {sizes}"
    tenth = max(1, len(losses) // 10)
    first, last = (sum(part) / tenth for part in (losses[:tenth], losses[-tenth:]))
    return f"{steps}, loss {first:.4f} to {last:.4f}; pictures: {sizes}"


def _selection(concept: Concept) -> str:
    step = concept.training.get("selected_step")
    if step is None:
        return ""
    by = concept.training["selected_by"]
    return (
        f"; selected by {by}: step {step}, bias {concept.bias:g}, temperature "
        f"{concept.temperature:g}"
    )
