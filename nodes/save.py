"""PerfusionSaveConcept: a concept into a file."""

from __future__ import annotations

from dataclasses import replace

from comfy_api.latest import io, ui

from ..perfusion_core.comfy.concept_entry import ConceptEntry
from ..perfusion_core.comfy.concept_folder import checked_name, default_name, save_named, saved_name
from .types import CATEGORY, ConceptType, for_page


class PerfusionSaveConcept(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="PerfusionSaveConcept",
            display_name="Perfusion Save Concept",
            category=CATEGORY,
            description="Saves a concept into models/perfusion: one safetensors file of some tens "
            "of kilobytes. Refresh (R) and it is in the loader's list.",
            is_output_node=True,
            inputs=[
                ConceptType.Input("concept", tooltip="The concept to save."),
                io.String.Input(
                    "name",
                    default="",
                    tooltip='File name without suffix; "/" puts it into a subfolder, such as '
                    "people/anna. Empty: the concept's own name.",
                ),
                io.Boolean.Input(
                    "overwrite",
                    default=False,
                    tooltip="What happens when the name is taken. Off: a number is added to the "
                    "new file's name. On: the old file is replaced.",
                ),
                io.String.Input(
                    "author",
                    default="",
                    optional=True,
                    tooltip="Written into the file. Empty: what the concept says already.",
                ),
                io.String.Input(
                    "licence",
                    default="",
                    optional=True,
                    tooltip="Written into the file, such as CC-BY-4.0. Empty: what the concept "
                    "says already.",
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="file", tooltip="The file's name, as in the loader's list."
                )
            ],
        )
        return for_page(schema, aliases=["export concept"], advanced=["author", "licence"])

    @classmethod
    def execute(
        cls,
        concept: ConceptEntry,
        name: str,
        overwrite: bool,
        author: str = "",
        licence: str = "",
    ) -> io.NodeOutput:
        saved = concept.concept
        settings = concept.settings
        saved = replace(
            saved,
            name=checked_name(name).name if name.strip() else saved.name,
            author=author.strip() or saved.author,
            licence=licence.strip() or saved.licence,
            bias=settings.bias,
            temperature=settings.temperature,
        )
        path = save_named(saved, name.strip() or default_name(saved.name), overwrite)
        text = f"{saved_name(path)} ({path.stat().st_size / 1000:.1f} kB)"
        return io.NodeOutput(saved_name(path), ui=ui.PreviewText(text))
