"""PerfusionGateInspector: what a concept answers to in a prompt."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..perfusion_core.comfy.concept_entry import ConceptEntry, ConceptStack
from ..perfusion_core.comfy.gates_of_prompt import gates_of_prompt
from ..perfusion_core.comfy.protocols import Clip, Model
from .types import CATEGORY, ConceptType, StackType, for_page


class PerfusionGateInspector(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="PerfusionGateInspector",
            display_name="Perfusion Gate Inspector",
            category=CATEGORY,
            description="Shows, token by token, how alike a prompt is to each concept and how far "
            "that opens its gate: why a concept is too strong or too weak.",
            is_output_node=True,
            inputs=[
                io.MultiType.Input(
                    "stack",
                    [StackType, ConceptType],
                    tooltip="A concept of a Perfusion Concept Loader, or a stack of Perfusion "
                    "Combine Concepts, with its settings.",
                ),
                io.Clip.Input("clip", tooltip="The model's text encoder."),
                io.String.Input(
                    "text",
                    default="a photo of a teddy* on a beach",
                    multiline=True,
                    tooltip="The prompt to look at, with placeholders in it.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The model that the concept is for. Only needed for Anima, whose text "
                    "passes through a part of the model.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="picture",
                    tooltip="A bar for each token's gate, a mark at its similarity, a line at the "
                    "bias.",
                ),
                io.String.Output(
                    display_name="table", tooltip="The same in numbers, columns apart by tabs."
                ),
            ],
        )
        return for_page(schema, aliases=["gates", "token similarity", "concept too weak"])

    @classmethod
    def execute(
        cls,
        stack: ConceptStack | ConceptEntry,
        clip: Clip,
        text: str,
        model: Model | None = None,
    ) -> io.NodeOutput:
        entries = (stack,) if isinstance(stack, ConceptEntry) else stack
        gates = gates_of_prompt(clip, text, entries, model)
        picture = gates.picture()
        return io.NodeOutput(picture, gates.table(), ui=ui.PreviewImage(picture, cls=cls))
