"""PerfusionSweep: one picture for every bias and temperature, in a labelled grid."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import comfy.sample
import comfy.samplers
import latent_preview
import torch
from comfy.utils import ProgressBar
from comfy_api.latest import io, ui

from ..perfusion_core.comfy.models import ComfyMismatch
from ..perfusion_core.comfy.painter import decoded_pictures
from ..perfusion_core.comfy.protocols import Conditioning, Latent, Model, Vae
from ..perfusion_core.comfy.stack import tune
from ..perfusion_core.concept.safetensors_file import shortened
from ..perfusion_core.draw.plots import labelled_grid
from ..perfusion_core.limits import MAX_CELLS, MAX_FIELD
from ..perfusion_core.method.settings import ConceptSettings
from .types import CATEGORY, for_page


class PerfusionSweep(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="PerfusionSweep",
            display_name="Perfusion Sweep",
            category=CATEGORY,
            description="Samples the same noise at every bias and temperature and shows the "
            "pictures in one labelled grid. Prompts are encoded once, the model is loaded once.",
            inputs=[
                io.Model.Input("model", tooltip="A model with concepts."),
                io.Vae.Input("vae", tooltip="The model's autoencoder."),
                io.Conditioning.Input("positive", tooltip="The prompt, with the placeholder."),
                io.Conditioning.Input("negative", tooltip="What to avoid."),
                io.Latent.Input(
                    "latent_image", tooltip="What to start from; the first of a batch is used."
                ),
                io.String.Input(
                    "biases",
                    default="0.4, 0.6, 0.8",
                    tooltip="The columns: biases, apart by commas.",
                ),
                io.String.Input(
                    "temperatures",
                    default="0.1, 0.15, 0.3",
                    tooltip="The rows: temperatures, apart by commas.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Of the noise; the same for every picture.",
                ),
                io.Int.Input("steps", default=20, min=1, max=1000, tooltip="Steps a picture."),
                io.Float.Input(
                    "cfg",
                    default=7.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="How closely to follow the prompt (CFG).",
                ),
                io.Combo.Input(
                    "sampler_name",
                    options=comfy.samplers.KSampler.SAMPLERS,
                    default="euler",
                    tooltip="The sampler.",
                ),
                io.Combo.Input(
                    "scheduler",
                    options=comfy.samplers.KSampler.SCHEDULERS,
                    default="normal",
                    tooltip="How noise is taken away over the steps.",
                ),
                io.String.Input(
                    "concept",
                    default="",
                    optional=True,
                    tooltip="Placeholder or name of the one concept to sweep. Empty: all of them.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="grid", tooltip="All pictures, axes labelled."),
                io.Image.Output(
                    display_name="pictures", tooltip="The pictures alone, row by row, as a batch."
                ),
            ],
        )
        return for_page(schema, aliases=["xy plot", "grid", "compare bias"], advanced=["concept"])

    @classmethod
    def execute(
        cls,
        model: Model,
        vae: Vae,
        positive: Conditioning,
        negative: Conditioning,
        latent_image: Latent,
        biases: str,
        temperatures: str,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        concept: str = "",
    ) -> io.NodeOutput:
        columns, rows = numbers("biases", biases), numbers("temperatures", temperatures)
        if len(columns) * len(rows) > MAX_CELLS:
            raise ComfyMismatch(
                f"{len(columns)} biases and {len(rows)} temperatures are "
                f"{len(columns) * len(rows)} pictures; at most {MAX_CELLS} fit in one grid."
            )
        if not len(latent_image["samples"]):
            raise ComfyMismatch(
                "The latents are an empty batch: connect at least one, such as Empty Latent "
                "Image's."
            )
        # Refused before anything takes long: a temperature of 0, a concept that is not there.
        tuned = [_tuned(model, concept, bias, softness) for softness in rows for bias in columns]
        start = comfy.sample.fix_empty_latent_channels(model, latent_image["samples"][:1])
        # As KSampler: the noise of that place in a batch, and what of the picture is to change.
        numbered, mask = latent_image.get("batch_index"), latent_image.get("noise_mask")
        noise = comfy.sample.prepare_noise(start, seed, numbered[:1] if numbered else None)
        previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)
        bar = ProgressBar(len(tuned) * steps)
        sampled = []
        for number, one in enumerate(tuned):

            def on_step(step: int, x0: Any, _x: Any, _n: int, before: int = number * steps) -> None:
                shown = previewer.decode_latent_to_preview_image("JPEG", x0) if previewer else None
                bar.update_absolute(before + step + 1, len(tuned) * steps, shown)

            latents = comfy.sample.sample(
                one,
                noise,
                steps,
                cfg,
                sampler_name,
                scheduler,
                positive,
                negative,
                start,
                noise_mask=None if mask is None else mask[:1],
                callback=on_step,
                disable_pbar=True,
                seed=seed,
            )
            sampled.append(latents)
        # After the last one: where both do not fit, the autoencoder would push the model off the
        # device for every picture.
        cells = torch.cat([decoded_pictures(vae, latents)[:1] for latents in sampled])
        grid = labelled_grid(
            cells,
            [f"bias {bias:g}" for bias in columns],
            [f"temp {softness:g}" for softness in rows],
            f"seed {seed}, {steps} steps, CFG {cfg:g}",
        )
        return io.NodeOutput(grid, cells, ui=ui.PreviewImage(grid, cls=cls))


def _tuned(model: Model, concept: str, bias: float, temperature: float) -> Model:
    def change(settings: ConceptSettings) -> ConceptSettings:
        return replace(settings, bias=bias, temperature=temperature)

    return tune(model, concept, change)


def numbers(name: str, text: str) -> list[float]:
    """Numbers apart by commas. Raises ComfyMismatch that names what is none."""
    if len(text) > MAX_FIELD:
        raise ComfyMismatch(
            f"{name} has {len(text)} letters; at most {MAX_CELLS} pictures fit in one grid."
        )
    found = []
    for part in filter(None, (p.strip() for p in text.replace(";", ",").split(","))):
        try:
            value = float(part)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ComfyMismatch(
                f'"{shortened(part, 60)}" in {name} is not a number; write them as 0.4, 0.6, 0.8.'
            )
        found.append(value)
    if not found:
        raise ComfyMismatch(f"There is no number in {name}; write them as 0.4, 0.6, 0.8.")
    return found
