"""PerfusionCovariance: the second moment of a text encoder's encodings."""

from __future__ import annotations

from collections.abc import Sequence

from comfy import model_management
from comfy.utils import ProgressBar
from comfy_api.latest import io

from ..perfusion_core.comfy.clip_covariance import covariance_of
from ..perfusion_core.comfy.protocols import Clip, Model
from .lists import the_one
from .types import CATEGORY, CovarianceType, for_page


class PerfusionCovariance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="PerfusionCovariance",
            display_name="Perfusion Covariance",
            category=CATEGORY,
            description="Learns from captions which directions are common to all texts, so that a "
            "concept answers to its own word alone. Only needed for captions of your own: training "
            "makes one from built-in captions by itself.",
            # A list of captions comes together; otherwise each would make a covariance of its own.
            is_input_list=True,
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder of the model to train on."),
                io.String.Input(
                    "captions",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="One caption a line, some hundreds of varied ones; or a list of them. "
                    "Empty: the built-in captions.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The model to train on. Only needed for Anima, whose text passes "
                    "through a part of the model.",
                ),
            ],
            outputs=[
                CovarianceType.Output(
                    display_name="covariance", tooltip="For Perfusion Train Concept."
                )
            ],
        )
        return for_page(schema, aliases=["second moment", "caption statistics"])

    @classmethod
    def execute(
        cls,
        clip: Sequence[Clip],
        captions: Sequence[str] = (),
        model: Sequence[Model | None] = (),
    ) -> io.NodeOutput:
        found = (line.strip() for text in captions for line in text.splitlines())
        lines = [line for line in found if line]
        bar = ProgressBar(1)

        def on_captions(done: int, total: int) -> None:
            bar.update_absolute(done, total)
            model_management.throw_exception_if_processing_interrupted()

        connected = the_one("model", model) if model else None
        return io.NodeOutput(
            covariance_of(the_one("clip", clip), lines or None, on_captions, connected)
        )
