"""PerfusionTrainingPictures: pictures of one thing, collected for training."""

from __future__ import annotations

from collections.abc import Sequence

from comfy_api.latest import io
from torch import Tensor

from ..perfusion_core.method.batches import TrainingError
from .types import CATEGORY, for_page

PICTURES = 8


class PerfusionTrainingPictures(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="PerfusionTrainingPictures",
            display_name="Perfusion Training Pictures",
            category=CATEGORY,
            description="Collects pictures of one thing for training, each at its own size: "
            "nothing is cropped or scaled here. For more than "
            f"{PICTURES}, connect one such node's pictures to the next one's.",
            # Lists come together; otherwise each picture would make a collection of its own.
            is_input_list=True,
            inputs=[
                io.Image.Input(
                    "pictures",
                    optional=True,
                    tooltip="Pictures that were collected before, a batch or a list; they come "
                    "first.",
                ),
                *(
                    io.Image.Input(
                        f"picture_{n}",
                        optional=True,
                        tooltip="A picture of the thing, such as a Load Image node's.",
                    )
                    for n in range(1, PICTURES + 1)
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="pictures",
                    is_output_list=True,
                    tooltip="All pictures in order, as a list, for Perfusion Train Concept.",
                )
            ],
        )
        return for_page(schema, aliases=["batch images", "image list", "training images"])

    @classmethod
    def execute(
        cls, pictures: Sequence[Tensor | None] = (), **more: Sequence[Tensor | None]
    ) -> io.NodeOutput:
        inputs = [pictures, *(more.get(f"picture_{n}", ()) for n in range(1, PICTURES + 1))]
        batches = [batch for batches in inputs for batch in batches if batch is not None]
        if not batches:
            raise TrainingError(
                "There is no picture to collect: connect at least one, such as a Load Image node's."
            )
        return io.NodeOutput([picture[None] for batch in batches for picture in batch])
