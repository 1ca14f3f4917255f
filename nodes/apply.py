"""PerfusionApplyConcepts: a stack of concepts onto a model and its text encoder."""

from __future__ import annotations

from comfy_api.latest import io

from ..perfusion_core.comfy.concept_entry import ConceptEntry, ConceptStack
from ..perfusion_core.comfy.metadata import note_applied
from ..perfusion_core.comfy.prompts import add_concepts
from ..perfusion_core.comfy.protocols import Clip, Model
from ..perfusion_core.comfy.stack import apply_stack
from ..perfusion_core.page.prompt_similarities import remember_encoder
from .types import CATEGORY, ConceptType, StackType, for_page


class PerfusionApplyConcepts(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="PerfusionApplyConcepts",
            display_name="Perfusion Apply Concepts",
            category=CATEGORY,
            description="Applies concepts, each with its own settings. The same as a chain of "
            "loaders.",
            inputs=[
                io.Model.Input("model", tooltip="The diffusion model to apply the concepts to."),
                io.Clip.Input("clip", tooltip="The model's text encoder."),
                io.MultiType.Input(
                    "stack",
                    [StackType, ConceptType],
                    tooltip="A stack of Perfusion Combine Concepts, or a single concept.",
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with the concepts."),
                io.Clip.Output(
                    display_name="clip", tooltip="The text encoder that knows the placeholders."
                ),
            ],
        )
        return for_page(schema, aliases=["use concept"])

    @classmethod
    def execute(cls, model: Model, clip: Clip, stack: ConceptStack | ConceptEntry) -> io.NodeOutput:
        entries = (stack,) if isinstance(stack, ConceptEntry) else stack
        concepts = [entry.concept for entry in entries]
        remember_encoder(clip, concepts)
        hidden = cls.hidden
        note_applied(concepts, hidden.unique_id, hidden.prompt, hidden.extra_pnginfo)
        locks = [entry.settings.key_lock for entry in entries]
        return io.NodeOutput(apply_stack(model, entries), add_concepts(clip, concepts, locks))
