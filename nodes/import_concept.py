"""PerfusionImport: what another program has learned, as a concept."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..perfusion_core.comfy.concept_entry import recommended
from ..perfusion_core.comfy.foreign_concept import concept_of
from ..perfusion_core.comfy.foreign_folder import (
    foreign_fingerprint,
    foreign_names,
    foreign_path,
)
from ..perfusion_core.comfy.protocols import Clip, Model
from ..perfusion_core.concept.concept import ConceptError
from ..perfusion_core.concept.foreign import load_foreign
from .types import CATEGORY, ConceptType, for_page


class PerfusionImport(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="PerfusionImport",
            display_name="Perfusion Import",
            category=CATEGORY,
            description="Makes a concept of what another program has learned: a textual inversion, "
            "as a start for training; or a concept of ChenDarYen's implementation or of "
            "perfusion-pytorch. Only numbers are read, no code of the file runs.",
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model that the file was learned on, without other concepts; for a "
                    "textual inversion the one to train on.",
                ),
                io.Clip.Input("clip", tooltip="The model's text encoder."),
                io.Combo.Input(
                    "file",
                    options=foreign_names(),
                    tooltip="A file in models/embeddings, or one of .ckpt, .pt, .pth or .bin in "
                    "models/perfusion. Refresh (R) to find new ones.",
                ),
                io.String.Input(
                    "placeholder",
                    default="",
                    tooltip="The new word for prompts, such as teddy*. Empty: the superclass with "
                    "a star.",
                ),
                io.String.Input(
                    "superclass",
                    default="",
                    tooltip="The ordinary word for what it is, such as teddy. Empty: the word in "
                    "the file, where it has one.",
                ),
            ],
            outputs=[
                ConceptType.Output(
                    display_name="concept",
                    tooltip="A textual inversion: for resume of Perfusion Train Concept. A "
                    "concept: for Perfusion Save Concept, or to apply at once.",
                )
            ],
        )
        return for_page(
            schema, aliases=["convert", "textual inversion", "load embedding", "perfusion-pytorch"]
        )

    @classmethod
    def validate_inputs(cls, file: str | None) -> bool | str:
        if file is None:  # another node gives it when it runs
            return True
        try:
            foreign_path(file)
        except ConceptError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, file: str | None, **_: Any) -> str:
        return "" if file is None else foreign_fingerprint(file)

    @classmethod
    def execute(
        cls, model: Model, clip: Clip, file: str, placeholder: str, superclass: str
    ) -> io.NodeOutput:
        foreign = load_foreign(foreign_path(file))
        concept, notes = concept_of(foreign, model, clip, placeholder, superclass)
        told = f"{concept.placeholder} ({concept.superclass})"
        return io.NodeOutput(recommended(concept), ui=ui.PreviewText("\n".join([told, *notes])))
