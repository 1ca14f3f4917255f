"""PerfusionConceptInfo: everything a concept says of itself."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..perfusion_core.comfy.concept_entry import ConceptEntry
from ..perfusion_core.concept.card import card, describe
from .types import CATEGORY, ConceptType, for_page


class PerfusionConceptInfo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="PerfusionConceptInfo",
            display_name="Perfusion Concept Info",
            category=CATEGORY,
            description="Shows what a concept holds as a card: preview, placeholder, superclass, "
            "model family, recommended settings, layers, training, author, licence and hash.",
            is_output_node=True,
            inputs=[ConceptType.Input("concept", tooltip="The concept to describe.")],
            outputs=[
                io.String.Output(display_name="info", tooltip="All of it, one entry a line."),
                io.String.Output(
                    display_name="placeholder", tooltip="The word that stands for it in a prompt."
                ),
                io.String.Output(
                    display_name="superclass", tooltip="The ordinary word for what it is."
                ),
                io.Image.Output(display_name="card", tooltip="The card as a picture."),
            ],
        )
        return for_page(schema, aliases=["concept card", "metadata"])

    @classmethod
    def execute(cls, concept: ConceptEntry) -> io.NodeOutput:
        it = concept.concept
        info, picture = describe(it), card(it)
        shown = {
            **ui.PreviewImage(picture, cls=cls).as_dict(),
            **ui.PreviewText(info).as_dict(),
        }
        return io.NodeOutput(info, it.placeholder, it.superclass, picture, ui=shown)
