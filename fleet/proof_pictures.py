"""The pictures, gates and scores of a report, made in ComfyUI: one job of a ledger."""

from __future__ import annotations

import base64
import io
import json
import platform
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from perfusion_core.concept.concept import Concept
from perfusion_core.concept.concept_file import load_concept

from .comfyui import Models, open_comfyui
from .sampling import Sampling, decoded, encoded
from .sweep_pictures import setter
from .sweep_table import best_settings
from .training import forget_peak, peak, pixels
from .worker import JobContext, Stopped

SHOWN = 512  # pixels: the longest side of a picture on the page
THUMBNAIL = 192  # of a training picture
PAIRS = ("a photo of a {1} next to a {2}", "a {1} and a {2} on a beach")


class ProofTrainer:
    """Makes a report's pictures in this process, which opens ComfyUI.

    Args:
        arguments: of ComfyUI's command line.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        open_comfyui(arguments)
        self._arguments = list(arguments)
        self._models = Models()

    def train(
        self, spec: Mapping[str, Any], inputs: Sequence[tuple[str, bytes]], context: JobContext
    ) -> tuple[bytes, dict[str, Any]]:
        """All that the page shows, as JSON with its pictures in it. See `Trainer`."""
        import torch

        given = list(_concepts(spec, inputs))
        forget_peak()
        begun = time.monotonic()
        with torch.inference_mode():  # as ComfyUI runs its nodes
            parts = self._models.get(spec["model"])
            made = _Made(parts, spec, context)
            scorers, told = _scorers(given)
            found: dict[str, Any] = {
                "format": "perfusion-report",
                "version": 1,
                "model": {"name": spec["model"]["name"], **_about(parts[0])},
                "scored_by": told,
                "concepts": [
                    made.concept(*one, scorer) for one, scorer in zip(given, scorers, strict=True)
                ],
            }
            if len(given) == 2:
                biases = [one["best"]["bias"] for one in found["concepts"]]
                found["pairs"] = made.pairs([one[0] for one in given], biases, scorers)
        spent = round(time.monotonic() - begun, 3)
        found["looking"] = {"seconds": spent, "peak_bytes": peak(), **_sampler(spec)}
        found["versions"] = _versions(self._arguments)
        return json.dumps(found).encode(), {"steps": 0, "peak_bytes": peak()}


def _concepts(
    spec: Mapping[str, Any], inputs: Sequence[tuple[str, bytes]]
) -> Iterator[tuple[Concept, list[Any]]]:
    """Each concept with the pictures [1, H, W, 3] that it was learned from."""
    rest = list(inputs)
    for count in spec["counts"]:
        with tempfile.TemporaryDirectory(prefix="fleet-") as folder:
            path = Path(folder) / "concept.safetensors"
            path.write_bytes(rest[0][1])
            concept = load_concept(path)
        yield concept, [pixels(*one) for one in rest[1 : count + 1]]
        rest = rest[count + 1 :]


def _scorers(given: Sequence[tuple[Concept, list[Any]]]) -> tuple[list[Any], str]:
    """What scores each concept's pictures, and its name; None where there is no CLIP model."""
    from perfusion_core.comfy.scores import ClipScorer, score_models

    if not score_models():
        return [None] * len(given), ""
    scorers = [ClipScorer([p[0].movedim(-1, 0) for p in pictures]) for _, pictures in given]
    return scorers, scorers[0].name


class _Made:
    """Makes the pictures of one MODEL, CLIP and VAE."""

    def __init__(
        self, parts: tuple[Any, Any, Any], spec: Mapping[str, Any], context: JobContext
    ) -> None:
        self._model, self._clip, self._vae = parts
        self._spec = spec
        self._context = context
        self._sampling = Sampling(self._model, spec)
        self._done = 0
        cells = len(spec["prompts"]) * len(spec["seeds"]) * (len(spec["biases"]) + 1)
        both = len(PAIRS) * len(spec["pair_seeds"]) * 2 if len(spec["counts"]) == 2 else 0
        self._total = cells * len(spec["counts"]) + both

    def concept(self, concept: Concept, pictures: Sequence[Any], scorer: Any) -> dict[str, Any]:
        """One concept: at every bias, the ordinary word beside it, and the gates of a prompt."""
        from perfusion_core.comfy.concept_entry import recommended
        from perfusion_core.comfy.prompts import add_concepts
        from perfusion_core.comfy.stack import apply_stack, tune

        carrying = apply_stack(self._model, [recommended(concept)])
        knowing = add_concepts(self._clip, [concept])
        empty = encoded(knowing, "")
        rows: list[dict[str, Any]] = []
        latents: list[Any] = []
        for prompt in self._spec["prompts"]:
            own = encoded(knowing, prompt.replace("{}", concept.placeholder))
            word = encoded(self._clip, prompt.replace("{}", concept.superclass))
            for seed in self._spec["seeds"]:
                rows.append({"prompt": prompt, "seed": seed, "bias": None})
                latents.append(self._sampled(self._model, word, empty, seed))
                for bias in self._spec["biases"]:
                    tuned = tune(carrying, "", setter(bias, concept.temperature))
                    rows.append({"prompt": prompt, "seed": seed, "bias": bias})
                    latents.append(self._sampled(tuned, own, empty, seed))
        for row, picture in zip(rows, decoded(self._vae, latents), strict=True):
            score = None
            if scorer is not None:
                text = row["prompt"].replace("{}", concept.superclass)
                score = scorer.score(picture, [text])
            row["identity"] = None if score is None else round(score.identity, 4)
            row["text"] = None if score is None else round(score.text, 4)
            row["picture"] = _webp(picture)
        best = _best(concept, [row for row in rows if row["bias"] is not None])
        text = self._spec["prompts"][0].replace("{}", concept.placeholder)
        return {
            "placeholder": concept.placeholder,
            "superclass": concept.superclass,
            "family": concept.family,
            "vectors": concept.vectors,
            "layers": len(concept.values),
            "hash": concept.hash,
            "learned_from": [_webp(picture, THUMBNAIL) for picture in pictures],
            "rows": rows,
            "best": best,
            "gates": self._gates(text, [concept], [best["bias"]]),
        }

    def pairs(
        self, concepts: Sequence[Concept], biases: Sequence[float], scorers: Sequence[Any]
    ) -> dict[str, Any]:
        """Both things in one picture: as concepts, and in ordinary words."""
        from perfusion_core.comfy.concept_entry import ConceptEntry
        from perfusion_core.comfy.prompts import add_concepts
        from perfusion_core.comfy.stack import apply_stack

        entries = [
            ConceptEntry(concept, replace(concept.settings, bias=bias))
            for concept, bias in zip(concepts, biases, strict=True)
        ]
        carrying = apply_stack(self._model, entries)
        knowing = add_concepts(self._clip, concepts)
        empty = encoded(knowing, "")
        rows: list[dict[str, Any]] = []
        latents: list[Any] = []
        for prompt in PAIRS:
            own = encoded(knowing, _both(prompt, [c.placeholder for c in concepts]))
            words = encoded(self._clip, _both(prompt, [c.superclass for c in concepts]))
            for seed in self._spec["pair_seeds"]:
                for learned in (True, False):
                    rows.append({"prompt": prompt, "seed": seed, "learned": learned})
                    model, positive = (carrying, own) if learned else (self._model, words)
                    latents.append(self._sampled(model, positive, empty, seed))
        for row, picture in zip(rows, decoded(self._vae, latents), strict=True):
            if scorers[0] is not None:
                text = _both(row["prompt"], [c.superclass for c in concepts])
                found = [scorer.score(picture, [text]) for scorer in scorers]
                row["identity"] = [round(score.identity, 4) for score in found]
                row["text"] = round(found[0].text, 4)
            row["picture"] = _webp(picture)
        text = _both(PAIRS[0], [c.placeholder for c in concepts])
        return {"rows": rows, "biases": list(biases), "gates": self._gates(text, concepts, biases)}

    def _sampled(self, model: Any, positive: Any, negative: Any, seed: int) -> Any:
        if self._context.stop_asked():
            raise Stopped
        latent = self._sampling.latent(model, positive, negative, seed)
        self._done += 1
        self._context.at(self._done, self._total, 0.0)
        return latent

    def _gates(
        self, text: str, concepts: Sequence[Concept], biases: Sequence[float]
    ) -> dict[str, Any]:
        """Similarity and gate of every word of a prompt to each concept."""
        from perfusion_core.comfy.concept_entry import ConceptEntry
        from perfusion_core.comfy.gates_of_prompt import gates_of_prompt

        entries = [
            ConceptEntry(concept, replace(concept.settings, bias=bias))
            for concept, bias in zip(concepts, biases, strict=True)
        ]
        gates = gates_of_prompt(self._clip, text, entries, self._model)
        # The end token and the pads behind it are no words.
        count = next((n for n, word in enumerate(gates.words) if word == "<end>"), len(gates.words))
        return {
            "prompt": text,
            "words": list(gates.words[:count]),
            "names": list(gates.names),
            "similarities": _rounded(gates.similarities[:count]),
            "gates": _rounded(gates.gates[:count]),
        }


def _best(concept: Concept, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The bias that scores best; where nothing scored, the concept's own."""
    told = [{**row, "temperature": concept.temperature} for row in rows]
    found = best_settings(told)
    bias = concept.bias if found is None else found[0]
    score = None if found is None else round(found[2], 4)
    return {"bias": bias, "temperature": concept.temperature, "score": score}


def _both(prompt: str, words: Sequence[str]) -> str:
    return prompt.replace("{1}", words[0]).replace("{2}", words[1])


def _rounded(numbers: Any) -> list[list[float]]:
    return [[round(value, 4) for value in row] for row in numbers.float().tolist()]


def _webp(picture: Any, side: int = SHOWN) -> str:
    """A picture [1, H, W, 3] as a data URI, no larger than `side`."""
    import torch
    from PIL import Image, ImageOps

    array = (picture[0].nan_to_num().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    image = Image.fromarray(array)
    if max(image.size) > side:
        image = ImageOps.contain(image, (side, side))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=85)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _about(model: Any) -> dict[str, Any]:
    """What kind of model it is."""
    from perfusion_core.comfy.models import compute_dtype, detect_family

    base = model.model
    weights = next(iter(base.diffusion_model.parameters())).dtype
    return {
        "family": detect_family(model).title,
        "class": type(base).__name__,
        "weights": str(weights).removeprefix("torch."),
        "computes_in": str(compute_dtype(base)).removeprefix("torch."),
    }


def _sampler(spec: Mapping[str, Any]) -> dict[str, Any]:
    return {key: spec[key] for key in ("steps", "cfg", "sampler", "scheduler", "side")}


def _versions(arguments: Sequence[str]) -> dict[str, str]:
    """What all of it ran on."""
    import comfyui_version
    import torch
    from comfy import model_management

    device = model_management.get_torch_device()
    total = model_management.get_total_memory(device)
    named = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "perfusion": _own_version(),
        "ComfyUI": str(comfyui_version.__version__),
        "torch": torch.__version__,
        "Python": platform.python_version(),
        "system": platform.platform(terse=True),
        "device": f"{named}, {total / 1e9:.0f} GB",
        "options": " ".join(arguments) or "none",
    }


def _own_version() -> str:
    import tomllib

    path = Path(__file__).resolve().parent.parent / "pyproject.toml"
    try:
        return str(tomllib.loads(path.read_text(encoding="utf-8"))["project"]["version"])
    except (OSError, KeyError, tomllib.TOMLDecodeError):
        return "unknown"
