"""PerfusionTune: the sliders, just before the sampler."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..perfusion_core.bridge import tune
from ..perfusion_core.edit import ConceptSettings
from .types import CATEGORY, sliders


class PerfusionTune(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PerfusionTune",
            display_name="Perfusion Tune",
            category=CATEGORY,
            description="Sets the sliders of concepts that a model carries already. Put it just "
            "before the sampler: moving a slider then runs the sampler alone and encodes no "
            "prompt again.",
            inputs=[
                io.Model.Input("model", tooltip="A model with concepts."),
                *sliders(),
                io.String.Input(
                    "concept",
                    default="",
                    optional=True,
                    tooltip="Placeholder or name of the one concept to tune. Empty: all of them.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with the new settings.")
            ],
        )

    @classmethod
    def execute(
        cls, model: Any, bias: float, temperature: float, strength: float, concept: str = ""
    ) -> io.NodeOutput:
        settings = ConceptSettings(bias, temperature, strength)
        return io.NodeOutput(tune(model, concept, lambda _: settings))
