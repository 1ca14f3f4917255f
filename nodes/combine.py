"""PerfusionCombineConcepts: several concepts as one stack."""

from __future__ import annotations

from comfy_api.latest import io

from ..perfusion_core.comfy.concept_entry import ConceptEntry, ConceptStack
from ..perfusion_core.comfy.models import ComfyMismatch
from ..perfusion_core.comfy.stack import extend_stack
from .types import CATEGORY, ConceptType, StackType, for_page

CONCEPTS = 8


class PerfusionCombineConcepts(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="PerfusionCombineConcepts",
            display_name="Perfusion Combine Concepts",
            category=CATEGORY,
            description="Puts concepts that were trained apart into one stack. For more than "
            f"{CONCEPTS}, connect one such node's stack to the next one's.",
            inputs=[
                StackType.Input(
                    "stack", optional=True, tooltip="Concepts that were combined before."
                ),
                *(
                    ConceptType.Input(
                        f"concept_{n}",
                        optional=True,
                        tooltip="A concept of a loader or of training, with its settings.",
                    )
                    for n in range(1, CONCEPTS + 1)
                ),
            ],
            outputs=[
                StackType.Output(
                    display_name="stack", tooltip="All of them, for Perfusion Apply Concepts."
                )
            ],
        )
        return for_page(schema, aliases=["several concepts", "two characters"])

    @classmethod
    def execute(cls, stack: ConceptStack = (), **concepts: ConceptEntry | None) -> io.NodeOutput:
        names = [f"concept_{n}" for n in range(1, CONCEPTS + 1)]
        entries = [entry for name in names if (entry := concepts.get(name)) is not None]
        combined = extend_stack(tuple(stack or ()), entries)
        if not combined:
            raise ComfyMismatch(
                "There is nothing to combine: connect at least one concept of a Perfusion Concept "
                "Loader or of Perfusion Train Concept."
            )
        return io.NodeOutput(combined)
