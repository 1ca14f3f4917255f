"""PerfusionDemoModel: the small model that comes with the pack."""

from __future__ import annotations

from comfy_api.latest import io

from ..demo.examples import names, pictures
from ..perfusion_core.families.emoji import EMOJI
from .types import CATEGORY, for_page

CONCEPT = "berry"


class PerfusionDemoModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="PerfusionDemoModel",
            display_name="Perfusion Demo Model",
            category=CATEGORY,
            description="A small text-to-image model of an emoji world that comes with the pack, "
            "to try everything without a download. Pictures of 128 x 128; prompts such as "
            '"a photo of a teddy next to a cactus on a blue background".',
            inputs=[
                io.Combo.Input(
                    "pictures_of",
                    options=names(),
                    default=CONCEPT,
                    optional=True,
                    tooltip="Which of the world's concepts to give pictures of, to train on. "
                    "berry, candy, ember and the like are each one look of a teddy, a teapot or "
                    "another thing that the model has never seen.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The diffusion model."),
                io.Clip.Output(display_name="clip", tooltip="Its text encoder."),
                io.Vae.Output(display_name="vae", tooltip="Its autoencoder."),
                io.Image.Output(
                    display_name="pictures",
                    tooltip="The pictures of the chosen concept, for Perfusion Train Concept.",
                ),
            ],
        )
        # For the page, which can look up the families of checkpoint files alone.
        family = {"family": EMOJI.id, "title": EMOJI.title}
        schema.inputs[0].extra_dict["perfusion_family"] = family
        return for_page(schema, aliases=["example model", "try without a download", "emoji"])

    @classmethod
    def execute(cls, pictures_of: str = CONCEPT) -> io.NodeOutput:
        # Not at import: the demo needs ComfyUI's model classes, and most users never run it.
        from ..demo.model import load

        return io.NodeOutput(*load(), pictures(pictures_of))
