"""PerfusionConceptLoader: a concept file onto a model and its text encoder."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..perfusion_core.comfy.concept_entry import ConceptEntry
from ..perfusion_core.comfy.concept_folder import (
    concept_names,
    concept_path,
    file_fingerprint,
    folder_fingerprint,
)
from ..perfusion_core.comfy.live import running_node
from ..perfusion_core.comfy.metadata import note_applied
from ..perfusion_core.comfy.prompts import add_concepts
from ..perfusion_core.comfy.protocols import Clip, Model
from ..perfusion_core.comfy.stack import apply_stack
from ..perfusion_core.concept.concept import ConceptError
from ..perfusion_core.concept.concept_file import load_concept
from ..perfusion_core.method.settings import ConceptSettings, KeyLock
from ..perfusion_core.page.prompt_similarities import remember_encoder, renamed
from .types import CATEGORY, ConceptType, for_page, sliders


class PerfusionConceptLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="PerfusionConceptLoader",
            display_name="Perfusion Concept Loader",
            category=CATEGORY,
            description="Loads a concept: its placeholder, written in a prompt, becomes the thing "
            "that was learned. Chain several loaders to use several concepts in one picture.",
            inputs=[
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The diffusion model to apply the concept to. It may carry other "
                    "concepts and LoRAs.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The model's text encoder. Encode your prompts with the CLIP that "
                    "comes out, which knows the placeholder.",
                ),
                io.Combo.Input(
                    "file",
                    options=concept_names(),
                    tooltip="A concept file in models/perfusion. Refresh (R) to find new ones.",
                ),
                *sliders(),
                io.Combo.Input(
                    "key_lock",
                    options=[lock.value for lock in KeyLock],
                    default=KeyLock.LOCAL.value,
                    optional=True,
                    tooltip="Where the picture's layout comes from. local: the concept's word is "
                    "laid out as its superclass. global: the whole prompt is laid out as if it "
                    "named the superclass; freer scenes, best with a bias of 0.4 to 0.6.",
                ),
                io.String.Input(
                    "placeholder",
                    default="",
                    optional=True,
                    tooltip="Another word for the concept in prompts, for when two concepts have "
                    "the same. Empty: the word in the file.",
                ),
            ],
            # Not the id: results would not be shared by nodes that load the same any more.
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with the concept."),
                io.Clip.Output(
                    display_name="clip", tooltip="The text encoder that knows the placeholder."
                ),
                ConceptType.Output(
                    display_name="concept",
                    tooltip="The concept with these settings, for Perfusion Combine Concepts.",
                ),
            ],
        )
        return for_page(
            schema,
            aliases=[
                "load concept",
                "apply concept",
                "personalization",
                "lora loader",
                "embedding loader",
            ],
            advanced=["key_lock", "placeholder"],
        )

    @classmethod
    def validate_inputs(cls, file: str | None) -> bool | str:
        if file is None:  # another node gives it when it runs
            return True
        try:
            concept_path(file)
        except ConceptError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, file: str | None, **_: Any) -> str:
        return folder_fingerprint() if file is None else file_fingerprint(file)

    @classmethod
    def execute(
        cls,
        file: str,
        bias: float,
        temperature: float,
        strength: float,
        model: Model | None = None,
        clip: Clip | None = None,
        key_lock: str = KeyLock.LOCAL.value,
        placeholder: str = "",
    ) -> io.NodeOutput:
        remember_encoder(clip)
        concept = renamed(load_concept(concept_path(file)), placeholder)
        run = running_node()
        if run is not None:
            graph, extra = cls.hidden.prompt, cls.hidden.extra_pnginfo
            note_applied([concept], run.node_id, graph, extra, file)
        lock = KeyLock(key_lock)
        entry = ConceptEntry(concept, ConceptSettings(bias, temperature, strength, key_lock=lock))
        return io.NodeOutput(
            _unconnected("model") if model is None else apply_stack(model, [entry]),
            _unconnected("clip") if clip is None else add_concepts(clip, [concept], [lock]),
            entry,
        )


def _unconnected(name: str) -> ExecutionBlocker:
    return ExecutionBlocker(
        f'The "{name}" output of a Perfusion Concept Loader is in use, but its "{name}" input is '
        "not connected."
    )
