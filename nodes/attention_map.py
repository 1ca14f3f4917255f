"""PerfusionAttentionMap: where in a picture a concept's word attends."""

from __future__ import annotations

from collections.abc import Sequence

from comfy import model_management
from comfy.utils import ProgressBar
from comfy_api.latest import io, ui
from torch import Tensor

from ..perfusion_core.comfy.attention_recorder import AttentionScope, attention_maps
from ..perfusion_core.comfy.models import ComfyMismatch
from ..perfusion_core.comfy.pictures import in_colour
from ..perfusion_core.comfy.protocols import Conditioning, Latent, Model
from ..perfusion_core.method.settings import GROUPS
from .types import CATEGORY, for_page

DEFAULTS = AttentionScope()
ALL = "all"


class PerfusionAttentionMap(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="PerfusionAttentionMap",
            display_name="Perfusion Attention Map",
            category=CATEGORY,
            description="Shows where in a finished picture each concept's word attends, as a heat "
            "map over it. Connect what the sampler had and what it gave; the sampler itself runs "
            "as without this node.",
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The model that the sampler had, with concepts."),
                io.Conditioning.Input(
                    "positive", tooltip="The prompt that the sampler had, with the placeholder."
                ),
                io.Latent.Input(
                    "latent",
                    tooltip="What the sampler gave. Any other latents of the model's kind work "
                    "too, such as an encoded photo.",
                ),
                io.Image.Input("image", tooltip="The same as pictures, decoded."),
                io.Int.Input(
                    "steps",
                    default=DEFAULTS.steps,
                    min=1,
                    max=100,
                    tooltip="At how many amounts of noise to look, evenly spaced over the part of "
                    "the sampling below. Each costs about half a sampling step.",
                ),
                io.Float.Input(
                    "start",
                    default=DEFAULTS.start,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Where in the sampling to begin looking: 0 at the first step, when the "
                    "picture is all noise.",
                ),
                io.Float.Input(
                    "end",
                    default=DEFAULTS.end,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Where in the sampling to stop looking: 1 after the last step.",
                ),
                io.Combo.Input(
                    "layers",
                    options=[ALL, *GROUPS],
                    default=ALL,
                    tooltip="Which layers to average: all, or those on the way down, in the middle "
                    "or on the way up (in a transformer: its thirds). The middle is coarse; the "
                    "way up is usually the clearest.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="picture",
                    tooltip="A strip for each picture: the picture, then each concept's map on it. "
                    "In full colour where its word attends most; the label gives the lowest and "
                    "the highest share of attention.",
                ),
                io.Mask.Output(
                    display_name="masks",
                    tooltip="The maps alone, each from 0 where its word attends least to 1 where "
                    "it attends most: picture by picture, concept by concept.",
                ),
                io.String.Output(
                    display_name="table",
                    tooltip="Each map's lowest, mean and highest share of attention, columns apart "
                    "by tabs.",
                ),
            ],
        )
        return for_page(
            schema,
            aliases=["heat map", "cross attention", "where a word looks"],
            advanced=["start", "end", "layers"],
        )

    @classmethod
    def execute(
        cls,
        model: Model,
        positive: Conditioning,
        latent: Latent,
        image: Tensor,
        steps: int,
        start: float,
        end: float,
        layers: str,
    ) -> io.NodeOutput:
        shape = latent["samples"].shape
        image = in_colour(image, "pictures")
        if len(shape) not in (4, 5) or not shape[0]:
            raise ComfyMismatch(
                f"The latents have the shape {list(shape)}; expected [pictures, channels, height, "
                "width], or with frames before the height, with at least one picture: connect "
                "those of a sampler."
            )
        count = shape[0] * (shape[2] if len(shape) == 5 else 1)
        image = _of_latents(image, shape)
        if len(image) != count:
            raise ComfyMismatch(
                f"There are {count} latents and {len(image)} pictures: connect the latents and the "
                "pictures that were decoded from them."
            )
        bar = ProgressBar(steps)

        def on_step(done: int, total: int) -> None:
            bar.update_absolute(done, total)
            model_management.throw_exception_if_processing_interrupted()

        scope = AttentionScope(steps, start, end, "" if layers == ALL else layers)
        maps = attention_maps(model, positive, latent, scope, on_step)
        title = f"attention, {layers} layers, {steps} steps from {start:g} to {end:g}"
        picture = maps.picture(image, title)
        masks = maps.masks(*image.shape[1:3])
        return io.NodeOutput(picture, masks, maps.table(), ui=ui.PreviewImage(picture, cls=cls))


def _of_latents(image: Tensor, shape: Sequence[int]) -> Tensor:
    """The picture of each frame of latents, where the autoencoder makes several of one."""
    videos, frames = shape[0], shape[2] if len(shape) == 5 else 1
    if frames == 1 or len(image) % videos or len(image) // videos <= frames:
        return image
    last = len(image) // videos - 1
    chosen = [round(n * last / (frames - 1)) for n in range(frames)]
    return image.reshape(videos, -1, *image.shape[1:])[:, chosen].flatten(0, 1)
