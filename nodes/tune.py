"""PerfusionTune: the sliders, just before the sampler."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from ..perfusion_core.bridge import layer_paths, tune
from ..perfusion_core.settings import (
    MAX_STRENGTH,
    ConceptSettings,
    LayerWeights,
    parse_layer_weights,
)
from .types import CATEGORY, sliders

_WHERE = {"down": "on the way down", "middle": "in the middle", "up": "on the way up"}


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
                io.Float.Input(
                    "start",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="Where in the sampling the concept sets in: 0 at the first step. "
                    "Later: the prompt alone decides the layout of the picture.",
                ),
                io.Float.Input(
                    "end",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="Where in the sampling the concept stops: 1 after the last step. "
                    "Earlier: the model alone finishes the details.",
                ),
                *(
                    io.Float.Input(
                        group,
                        default=1.0,
                        min=0.0,
                        max=MAX_STRENGTH,
                        step=0.01,
                        optional=True,
                        tooltip=f"What the strength is multiplied by in the layers {where}. 0: "
                        "these layers are as without the concept.",
                    )
                    for group, where in _WHERE.items()
                ),
                io.String.Input(
                    "layers",
                    default="",
                    optional=True,
                    tooltip="Weights of single layers, in place of their group's: the layers' "
                    "numbers as Perfusion Concept Info lists them, such as 1-4: 0.5, 9: 0. Empty: "
                    "the three weights above for all.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with the new settings.")
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        bias: float,
        temperature: float,
        strength: float,
        concept: str = "",
        start: float = 0.0,
        end: float = 1.0,
        down: float = 1.0,
        middle: float = 1.0,
        up: float = 1.0,
        layers: str = "",
    ) -> io.NodeOutput:
        single = parse_layer_weights(layers, layer_paths(model)) if layers.strip() else {}
        weights = LayerWeights(down, middle, up, single)

        def change(settings: ConceptSettings) -> ConceptSettings:
            return replace(
                settings,
                bias=bias,
                temperature=temperature,
                strength=strength,
                start=start,
                end=end,
                layers=weights,
            )

        return io.NodeOutput(tune(model, concept, change))
