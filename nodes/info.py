"""PerfusionConceptInfo: everything a concept says of itself."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..perfusion_core.bridge import ConceptEntry
from ..perfusion_core.concept import Concept
from ..perfusion_core.families import FAMILIES, in_order
from .types import CATEGORY, ConceptType


class PerfusionConceptInfo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PerfusionConceptInfo",
            display_name="Perfusion Concept Info",
            category=CATEGORY,
            description="Says what a concept holds: placeholder, superclass, model family, "
            "recommended settings, training, size, author and licence.",
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
            ],
        )

    @classmethod
    def execute(cls, concept: ConceptEntry) -> io.NodeOutput:
        it = concept.concept
        text = describe(it)
        return io.NodeOutput(text, it.placeholder, it.superclass, ui=ui.PreviewText(text))


def describe(concept: Concept) -> str:
    """A concept in lines of "entry: value"; what is not known is left out."""
    numbers = sum(tensor.numel() for tensor in concept.tensors().values())
    entries = {
        "name": concept.name,
        "placeholder": concept.placeholder,
        "superclass": concept.superclass,
        "family": f"{FAMILIES[concept.family].title} (text width {concept.width})",
        "recommended bias": f"{concept.bias:g}",
        "recommended temperature": f"{concept.temperature:g}",
        "vectors": str(concept.vectors),
        "layers": str(len(concept.values)),
        "numbers": str(numbers),
        **{f"training {key}": _short(value) for key, value in concept.training.items()},
        "author": concept.author,
        "licence": concept.licence,
        "covariance": concept.covariance_fingerprint[:16],
        "hash": concept.hash[:16],
    }
    layers = in_order(concept.layers)
    entries |= {f"layer {n}": path for n, path in enumerate(layers, start=1)}
    return "\n".join(f"{key}: {value}" for key, value in entries.items() if value != "")


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
