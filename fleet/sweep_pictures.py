"""One job of a sweep in ComfyUI: a concept at all settings, as a contact sheet and figures."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from perfusion_core.concept.concept_file import load_concept

from .comfyui import Models, open_comfyui
from .errors import FleetError
from .sampling import Sampling, decoded, encoded
from .training import pixels
from .worker import JobContext, Stopped


class SweepTrainer:
    """Makes sheets in this process, which opens ComfyUI.

    Args:
        arguments: of ComfyUI's command line.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        open_comfyui(arguments)
        self._models = Models()

    def train(
        self, spec: Mapping[str, Any], inputs: Sequence[tuple[str, bytes]], context: JobContext
    ) -> tuple[bytes, dict[str, Any]]:
        """The sheet as PNG, and "rows": one for each picture. See `Trainer`."""
        import torch

        from perfusion_core.comfy.scores import REMEDY, ClipScorer, score_models

        if spec["must_score"] and not score_models():
            raise FleetError(f"there is no CLIP model to score with, so no best bias. {REMEDY}")
        with tempfile.TemporaryDirectory(prefix="fleet-") as folder:
            path = Path(folder) / "concept.safetensors"
            path.write_bytes(inputs[0][1])
            concept = load_concept(path)
        with torch.inference_mode():  # as ComfyUI runs its nodes
            rows, pictures = _painted(self._models.get(spec["model"]), concept, spec, context)
            scorer = None
            references = [pixels(*one)[0].movedim(-1, 0) for one in inputs[1:]]
            if not references and concept.preview is not None:
                references = [pixels("its preview", concept.preview)[0].movedim(-1, 0)]
            if references and score_models():
                scorer = ClipScorer(references)
            for row, picture in zip(rows, pictures, strict=True):
                score = None
                if scorer is not None:
                    text = row["prompt"].replace("{}", concept.superclass)
                    score = scorer.score(picture, [text])
                row["identity"] = None if score is None else round(score.identity, 5)
                row["text"] = None if score is None else round(score.text, 5)
        told = "" if scorer is None else scorer.name
        return _sheet(rows, pictures, spec, concept.placeholder), {"rows": rows, "scored_by": told}


def _painted(
    parts: tuple[Any, Any, Any], concept: Any, spec: Mapping[str, Any], context: JobContext
) -> tuple[list[dict[str, Any]], list[Any]]:
    """A row and a picture [1, H, W, 3] for each prompt, seed, temperature and bias, in that order.

    Of one prompt and seed all start from the same noise.
    """
    from perfusion_core.comfy.concept_entry import recommended
    from perfusion_core.comfy.prompts import add_concepts
    from perfusion_core.comfy.stack import apply_stack, tune

    model, clip, vae = parts
    carrying = apply_stack(model, [recommended(concept)])
    knowing = add_concepts(clip, [concept])
    negative = encoded(knowing, "")
    sampling = Sampling(model, spec)
    rows, latents = [], []
    total = len(spec["prompts"]) * len(spec["seeds"])
    total *= len(spec["temperatures"]) * len(spec["biases"])
    for prompt in spec["prompts"]:
        positive = encoded(knowing, prompt.replace("{}", concept.placeholder))
        for seed in spec["seeds"]:
            for temperature in spec["temperatures"]:
                for bias in spec["biases"]:
                    if context.stop_asked():
                        raise Stopped
                    tuned = tune(carrying, "", setter(bias, temperature))
                    latents.append(sampling.latent(tuned, positive, negative, seed))
                    setting = {"bias": bias, "temperature": temperature, "seed": seed}
                    rows.append({"prompt": prompt, **setting})
                    context.at(len(rows), total, 0.0)
    return rows, decoded(vae, latents)


def setter(bias: float, temperature: float) -> Any:
    """What `tune` changes settings by."""
    return lambda settings: replace(settings, bias=bias, temperature=temperature)


def _sheet(
    rows: Sequence[Mapping[str, Any]],
    pictures: Sequence[Any],
    spec: Mapping[str, Any],
    placeholder: str,
) -> bytes:
    """A grid for each prompt, one below the other, as PNG: biases across, the others down."""
    import torch
    from PIL import Image

    from perfusion_core.draw.plots import labelled_grid

    columns = [f"bias {bias:g}" for bias in spec["biases"]]
    down = [
        f"temp {temperature:g}\nseed {seed}"
        for seed in spec["seeds"]
        for temperature in spec["temperatures"]
    ]
    each = len(columns) * len(down)
    grids = []
    for first in range(0, len(rows), each):
        cells = torch.cat(list(pictures[first : first + each]))
        title = rows[first]["prompt"].replace("{}", placeholder)
        grids.append(labelled_grid(cells, columns, down, title))
    sheet = (torch.cat(grids, dim=1)[0].clamp(0, 1) * 255).round().to(torch.uint8)
    buffer = io.BytesIO()
    Image.fromarray(sheet.numpy()).save(buffer, "PNG")
    return buffer.getvalue()
