"""`make lab`: the paper's ablations in the emoji world, with confidence intervals and plots.

Writes demo/output/lab.json and a Pareto plot of each ablation beside it. The quick version
samples 16 pictures of each concept at each point, --full 64; neither has been timed yet.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..exam import Question, questions
from ..hosting import import_host
from ..judge import Judge, load_judge
from ..world.render import SIZE, Scene, Thing, draw_background, render
from ..world.vocabulary import CONCEPTS, Individual
from .ablations import ABLATIONS, Ablation, Variant
from .points import Point

OUTPUT = Path(__file__).parents[1] / "output"
PICTURES = Path(__file__).parents[1] / "concepts"
NAMES = ("berry", "royal", "mint", "candy", "taxi", "plum")  # six concepts, five superclasses
TRAINING = {"steps": 200, "batch_size": 8, "seed": 1}


def mask_of(concept: Individual, picture: Image.Image, number: int) -> np.ndarray:
    """Where the concept is in its `number`th training picture: drawn with it and without."""
    from ..pictures import BACKGROUNDS

    rng = random.Random(concept.name)
    for count, background in enumerate(BACKGROUNDS):
        state = rng.getstate()
        scene = Scene((Thing(concept.object, concept.look),), "alone", background)
        drawn = np.array(render(scene, rng), dtype=int)
        if count == number:
            assert np.array_equal(drawn, np.array(picture, dtype=int))
            rng.setstate(state)
            empty = np.array(draw_background(background, rng), dtype=int)
            return (np.abs(drawn - empty).max(axis=-1) > 6).astype(np.float32)
    raise ValueError(f"{concept.name} has no picture {number}")


class Lab:
    """Trains each way once for each concept, and measures."""

    def __init__(self, judge: Judge, names: Sequence[str], seeds: int, steps: int) -> None:
        from ..studio import Studio

        self.studio = Studio()
        self.judge = judge
        self.names = names
        self.seeds = seeds
        self.training = {**TRAINING, "steps": steps}
        self._learned: dict[str, Any] = {}
        self._measured: dict[str, Point] = {}
        self.train_seconds: list[float] = []

    def concept(self, name: str, variant: Variant) -> Any:
        """The concept, trained as the variant says; once."""
        from perfusion_core.training import TrainingSettings

        from ..studio import read_folder

        key = f"{name} {sorted(variant.training.items())} {variant.pictures} {variant.masked}"
        if key not in self._learned:
            one = CONCEPTS[name]
            pictures = read_folder(PICTURES / name)[: variant.pictures or None]
            masks = [mask_of(one, p, n) for n, p in enumerate(pictures)] if variant.masked else None
            settings = TrainingSettings(**{**self.training, **variant.training})
            start = time.monotonic()
            self._learned[key] = self.studio.learn(pictures, one.object, settings, masks).concept
            self.train_seconds.append(round(time.monotonic() - start, 1))
        return self._learned[key]

    def measure(self, name: str, variant: Variant) -> Point:
        """Pictures of every concept on the exam's prompts, judged; once for each variant."""
        from ..studio import entry_of, placeholder

        key = repr(variant)
        if key not in self._measured:
            identity, alignment, concepts = [], [], []
            for concept_name in self.names:
                one = CONCEPTS[concept_name]
                entry = entry_of(self.concept(concept_name, variant), **variant.use)
                asked = [
                    q for q in questions(placeholder(one.object), one.object)
                    for _ in range(self.seeds)
                ]  # fmt: skip
                pictures = self.studio.sample([entry], [q.prompt for q in asked], seed=1000)
                for verdict, question in zip(self.judge.look_at(pictures), asked, strict=True):
                    identity.append(one.name in verdict.concepts)
                    alignment.append(fits(verdict, question))
                    concepts.append(one.name)
            self._measured[key] = Point(name, identity, alignment, concepts)
        return replace(self._measured[key], name=name)

    def run(self, ablation: Ablation) -> dict[str, Any]:
        """The ablation's points, and whether the paper's direction holds."""
        figures = {
            name: self.measure(name, variant).as_dict()
            for name, variant in ablation.variants.items()
        }
        return {
            "name": ablation.name,
            "claim": ablation.claim,
            "holds": bool(ablation.holds(figures)),
            "points": list(figures.values()),
        }


def fits(verdict: Any, question: Question) -> bool:
    """Whether the judge sees all that the prompt names beside the identity."""
    return bool(verdict.background == question.background and question.objects <= verdict.objects)


def main() -> None:
    parser = argparse.ArgumentParser(prog="make lab", description=__doc__)
    parser.add_argument("--full", action="store_true", help="64 samples of each concept, not 16")
    parser.add_argument("--steps", type=int, default=TRAINING["steps"], help="of each training")
    parser.add_argument("--only", choices=[a.name for a in ABLATIONS], help="one ablation alone")
    parser.add_argument("--concepts", nargs="+", choices=sorted(CONCEPTS), default=list(NAMES))
    args = parser.parse_args()
    import_host()
    begun = time.monotonic()
    lab = Lab(load_judge(), args.concepts, seeds=8 if args.full else 2, steps=args.steps)
    OUTPUT.mkdir(exist_ok=True)
    from .plots import pareto

    results = []
    for ablation in ABLATIONS:
        if args.only in (None, ablation.name):
            print(f"{ablation.name} ...", flush=True)
            results.append(lab.run(ablation))
            pareto(
                ablation.name,
                results[-1]["points"],
                OUTPUT / f"lab_{ablation.name.replace(' ', '_')}.png",
            )
    report = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores",
        "concepts": list(args.concepts),
        "picture": SIZE,
        "training": lab.training,
        "train_seconds": lab.train_seconds,
        "seconds": round(time.monotonic() - begun),
        "ablations": results,
    }
    (OUTPUT / "lab.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    for result in results:
        print(f"\n{result['name']}: {result['claim']}: {'holds' if result['holds'] else 'FAILS'}")
        for point in result["points"]:
            print("  {name:20} identity {identity:.2f} {identity_interval}  text "
                  "{text_alignment:.2f} {text_alignment_interval}".format(**point))  # fmt: skip
    print(f"\n{report['seconds']} s; look at {OUTPUT}/lab_*.png")


if __name__ == "__main__":
    main()
