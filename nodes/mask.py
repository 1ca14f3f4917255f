"""PerfusionZeroShotMask: where a word is in a picture."""

from __future__ import annotations

from comfy import model_management
from comfy.utils import ProgressBar
from comfy_api.latest import io, ui
from torch import Tensor

from ..perfusion_core.comfy.masks import mask_models, zero_shot_masks
from .types import CATEGORY, for_page

NOTHING = "(no model in models/clipseg)"


class PerfusionZeroShotMask(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="PerfusionZeroShotMask",
            display_name="Perfusion Zero-Shot Mask",
            category=CATEGORY,
            description="Finds a thing in pictures by its word (CLIPSeg), as soft masks for "
            "Perfusion Train Concept: what lies outside is not learned.",
            inputs=[
                io.Image.Input("image", tooltip="The training pictures."),
                io.String.Input(
                    "word",
                    default="teddy",
                    tooltip="What to look for; for training, the superclass.",
                ),
                io.Combo.Input(
                    "model",
                    options=list(mask_models()) or [NOTHING],
                    tooltip="A CLIPSeg model: a folder in models/clipseg with config.json and "
                    "model.safetensors, such as CIDAS/clipseg-rd64-refined. Refresh (R) to find "
                    "new ones.",
                ),
            ],
            outputs=[
                io.Mask.Output(
                    display_name="mask",
                    tooltip="One soft mask for each picture; 1 where the word surely is.",
                )
            ],
        )
        return for_page(schema, aliases=["clipseg", "text to mask", "segment by word"])

    @classmethod
    def execute(cls, image: Tensor, word: str, model: str) -> io.NodeOutput:
        bar = ProgressBar(len(image))

        def on_picture(done: int, total: int) -> None:
            bar.update_absolute(done, total)
            model_management.throw_exception_if_processing_interrupted()

        masks = zero_shot_masks(model, image, word, on_picture)
        return io.NodeOutput(masks, ui=ui.PreviewMask(masks))
