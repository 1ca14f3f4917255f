"""What a method does to pictures whose prompt does not name what was learned.

It is loaded and not asked for: prompts name plain things of another superclass, or the plain
superclass itself. Compared with the base model, same prompts and noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .ablations import Variant
from .measure import SAMPLE_SEED, Lab
from .methods import Perfusion
from .prompts import concept_prompts, text_alignment
from .published import Published
from .rivals import Lora
from .subjects import Subject
from .world.vocabulary import OBJECTS


@dataclass(frozen=True)
class Change:
    """What loading did.

    Attributes:
        largest: difference of any number of the latents, which are of unit variance.
        mean: root of the mean square of all differences.
        text: text alignment with it loaded, less that of the base model.
        turned: share of the pictures that show the concept, though nobody asked for it.
    """

    largest: float
    mean: float
    text: float
    turned: float


def other_class(superclass: str) -> str:
    """A superclass that is not this one, the same for every method."""
    return OBJECTS[(OBJECTS.index(superclass) + 5) % len(OBJECTS)]


def unused(lab: Lab, variant: Variant, subject: Subject, word: str) -> Change:
    """Load a subject and ask for the plain thing that `word` names."""
    asked = concept_prompts(word, word)
    prompts = [prompt.text for prompt in asked]
    comfyui = lab.comfyui
    stock = comfyui.latents(comfyui.model, comfyui.clip, prompts, SAMPLE_SEED)
    learned = [(subject, lab.learned(variant.method, subject).file)]
    with torch.inference_mode():
        model, clip = variant.method.apply(comfyui, learned, prompts, **variant.use)
    loaded = comfyui.latents(model, clip, prompts, SAMPLE_SEED)
    before, after = (lab.judge.look_at(comfyui.decoded(z)) for z in (stock, loaded))
    difference = (loaded - stock).double()
    return Change(
        float(difference.abs().max()),
        float(difference.square().mean().sqrt()),
        text_alignment(after, asked) - text_alignment(before, asked),
        sum(subject.name in verdict.concepts for verdict in after) / len(after),
    )


def loaded(steps: int) -> dict[str, Variant]:
    """What is loaded, as it is used by default."""
    return {
        "Perfusion": Variant("Perfusion, bias 0.6", Perfusion(steps), {"bias": 0.6}),
        "Perfusion as published": Variant(
            "published edit, bias 0.6", Published(steps), {"bias": 0.6}
        ),
        "LoRA": Variant("LoRA, strength 1", Lora(steps), {"strength": 1.0}),
    }


def changes(lab: Lab, variants: Mapping[str, Variant]) -> dict[str, dict[str, dict[str, Any]]]:
    """Label -> "another thing" and "its plain superclass" -> `Change` over all subjects: the
    largest of the largest, means of the rest."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for label, variant in variants.items():
        found[label] = {}
        for what in ("another thing", "its plain superclass"):
            each = []
            for subject in lab.subjects:
                own = subject.superclass
                word = own if what == "its plain superclass" else other_class(own)
                each.append(unused(lab, variant, subject, word))
            found[label][what] = _over(each)
    return found


def _over(each: Sequence[Change]) -> dict[str, float]:
    def mean(values: Sequence[float]) -> float:
        return round(sum(values) / len(values), 4)

    return {
        "largest": round(max(c.largest for c in each), 4),
        "mean": mean([c.mean for c in each]),
        "text": mean([c.text for c in each]),
        "turned": mean([c.turned for c in each]),
    }
