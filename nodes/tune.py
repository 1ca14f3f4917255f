"""PerfusionTune: the sliders, just before the sampler."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any
from uuid import uuid4

from comfy_api.latest import io

from ..perfusion_core.comfy.live import Run, begin_live, tell_page, write_back
from ..perfusion_core.comfy.protocols import Model
from ..perfusion_core.comfy.stack import layer_paths, tune
from ..perfusion_core.method.settings import (
    MAX_STRENGTH,
    ConceptSettings,
    LayerWeights,
    parse_layer_weights,
)
from ..perfusion_core.method.slider_schedule import (
    RecordedSliders,
    Sliders,
    SliderSchedule,
    parse_recorded,
)
from .types import CATEGORY, for_page, sliders

LIVE_EVENT = "perfusion.live"

_WHERE = {
    "down": "on the way down, which in a transformer is its first third",
    "middle": "in the middle",
    "up": "on the way up, which in a transformer is its last third",
}


class PerfusionTune(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
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
                io.Boolean.Input(
                    "live",
                    default=False,
                    optional=True,
                    tooltip="On: a sampler that is running takes bias, temperature and strength "
                    "from the sliders at its next step, and every queue samples anew. What it used "
                    "is saved with the picture.",
                ),
                io.String.Input(
                    "moves",
                    default="",
                    optional=True,
                    tooltip="Recorded slider values of a live run, so that its picture can be made "
                    "again with live off. Each entry: the noise level down to which the values "
                    "applied, then bias, temperature and strength. Leave empty for sliders that "
                    "stand still.",
                ),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with the new settings.")
            ],
        )
        return for_page(
            schema,
            aliases=["bias", "temperature", "strength", "sliders", "concept weight"],
            advanced=["concept", "start", "end", *_WHERE, "layers", "moves"],
        )

    @classmethod
    def fingerprint_inputs(cls, live: bool = False, **_: Any) -> Any:
        # What a live run made depends on more than its inputs, so no later run may be given it.
        # Not NaN, which is usual for this: ComfyUI writes it into the graph that pictures carry,
        # and there it is no JSON.
        return uuid4().hex if live else ""

    @classmethod
    def execute(
        cls,
        model: Model,
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
        live: bool = False,
        moves: str = "",
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

        current = Sliders(bias, temperature, strength)
        schedule: SliderSchedule | None = None
        if live:
            schedule = begin_live(current, cls._on_move)
        elif moves.strip():
            schedule = parse_recorded(moves, current)
        return io.NodeOutput(tune(model, concept, change, schedule))

    @classmethod
    def _on_move(cls, run: Run, recorded: RecordedSliders) -> None:
        """Saves the values that were used with the run's pictures, and sends them to the page."""
        used = {**asdict(recorded.last), "moves": recorded.text()}
        # Live off: the graph of a saved picture makes that picture again.
        widgets = [i.id for i in cls.define_schema().inputs if i.id != "model"]
        values = {**used, "live": False}
        write_back(cls.hidden.prompt, cls.hidden.extra_pnginfo, run.node_id, widgets, values)
        tell_page(LIVE_EVENT, {**run._asdict(), **used})
