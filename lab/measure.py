"""Trains what is asked for once, samples it, has it marked, and keeps all of it."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from PIL import Image

from .ablations import Variant
from .cache import Cache
from .figures import Point
from .groups import Fate, fates, individual_of
from .judge import Judge
from .local_comfyui import CFG, STEPS, LocalComfyUI
from .marking import Marking
from .methods import Method
from .prompts import Prompt, group_prompts
from .subjects import Subject

SAMPLE_SEED = 1000
Group = Sequence[Subject]
"""Subjects that are asked for in one picture."""


@dataclass(frozen=True)
class Training:
    """What one training left, and what it took."""

    file: Path
    seconds: float

    @property
    def bytes(self) -> int:
        return self.file.stat().st_size


@dataclass(frozen=True)
class Together:
    """What became of groups of subjects.

    Attributes:
        point: (text alignment, whether all are there) of every picture [groups, pictures, 2].
        fates: of each group, how many of its subjects had which `Fate` (by its value).
    """

    point: Point
    fates: Sequence[Counter[str]]

    @property
    def shares(self) -> dict[str, float]:
        """Share of all subjects in all pictures that had each fate."""
        total: Counter[str] = sum(self.fates, Counter())
        return {fate.value: round(total[fate.value] / total.total(), 4) for fate in Fate}


class Clock:
    """Says how long what is still to be done will take, from what was done so far.

    Attributes:
        todo: how many of each kind ("point", "train LoRA" ...) are to come.
    """

    def __init__(self) -> None:
        self.todo: Counter[str] = Counter()
        self._done: dict[str, list[float]] = {}

    def finish(self, kind: str, seconds: float, told: str) -> None:
        """One of a kind is done."""
        self.todo[kind] = max(0, self.todo[kind] - 1)
        self._done.setdefault(kind, []).append(seconds)
        print(f"  {told}: {seconds:.0f} s; {self._left()}", flush=True)

    def _left(self) -> str:
        usual = mean(s for seconds in self._done.values() for s in seconds)
        left = sum(n * mean(self._done.get(kind, [usual])) for kind, n in self.todo.items())
        return f"{self.todo.total()} to do, about {left / 60:.0f} min left"


class Lab:
    """Trains and measures.

    Args:
        repeats: pictures of each prompt.
    """

    def __init__(
        self,
        comfyui: LocalComfyUI,
        judge: Judge,
        marking: Marking,
        subjects: Sequence[Subject],
        repeats: int,
        cache: Cache,
    ) -> None:
        self.comfyui = comfyui
        self.judge = judge
        self.marking = marking
        self.subjects = list(subjects)
        self.repeats = repeats
        self.cache = cache
        self.clock = Clock()
        self._points: dict[str, Point] = {}

    def expect(self, variants: Iterable[Variant], groups: int) -> None:
        """Tell the clock what will be asked for; what is in the cache takes no time."""
        trainings: dict[Path, str] = {}
        points: set[Path] = set()
        for variant in variants:
            for subject in self.subjects:
                training = self._training_key(variant.method, subject)
                if self._file(training) is None:
                    trainings[self.cache.path(training)] = _kind(variant.method)
                keys = [self._point_key(variant, [subject], n) for n in range(self.repeats)]
                if not all(map(self.cache.has, keys)):
                    points.add(self.cache.path(keys[0]))
        self.clock.todo = Counter({**Counter(trainings.values()), "point": len(points)})
        self.clock.todo["group"] = groups

    def learned(self, method: Method, subject: Subject) -> Training:
        """The subject as the method learned it: from the cache, or trained now."""
        key = self._training_key(method, subject)
        file = self._file(key)
        if file is None:
            file = self.cache.path(key, ".safetensors")
            partial = file.with_name(f"{file.name}.partial")
            begin = time.monotonic()
            method.train(self.comfyui, subject, partial)
            seconds = round(time.monotonic() - begin, 1)
            os.replace(partial, file)
            self.cache.put(key, seconds, seconds)
            self.clock.finish(_kind(method), seconds, f"{_kind(method)} {subject.name}")
        return Training(file, self.cache.get(key))

    def point(self, variant: Variant) -> Point:
        """A variant's marks on every subject."""
        if variant.name not in self._points:
            marks = [self._marks(variant, [subject], self.repeats) for subject in self.subjects]
            self._points[variant.name] = Point(variant.name, np.array(marks))
        return self._points[variant.name]

    def together(self, variant: Variant, groups: Sequence[Group]) -> Together:
        """Subjects that were trained apart, in one picture."""
        judged = [self._marks(variant, group, self.repeats) for group in groups]
        marks = np.array([[picture[:2] for picture in of_group] for of_group in judged], float)
        became = [Counter(fate for picture in of_group for fate in picture[2:])
                  for of_group in judged]  # fmt: skip
        return Together(Point(variant.name, marks), became)

    def strip(self, variant: Variant, subjects: Sequence[Subject]) -> list[Image.Image]:
        """The first picture of every prompt, as it was measured."""
        with Image.open(self.cache.path(self._point_key(variant, subjects, 0), ".png")) as strip:
            side = strip.height
            return [strip.crop((x, 0, x + side, side)) for x in range(0, strip.width, side)]

    def _marks(self, variant: Variant, subjects: Sequence[Subject], repeats: int) -> list[Any]:
        """Of every picture, those of one repeat of the prompts after those of another."""
        keys = [self._point_key(variant, subjects, n) for n in range(repeats)]
        missing = [n for n, key in enumerate(keys) if not self.cache.has(key)]
        if missing:
            learned = [(s, self.learned(variant.method, s).file) for s in subjects]
            begin = time.monotonic()
            asked = self.asked(variant, subjects)
            prompts = [prompt.text for prompt in asked]
            with torch.inference_mode():
                model, clip = variant.method.apply(self.comfyui, learned, prompts, **variant.use)
            for n in missing:
                started = time.monotonic()
                pictures = self.comfyui.draw(model, clip, prompts, SAMPLE_SEED + n)
                marks = self._judged(subjects, pictures, asked)
                if n == 0:
                    _save_strip(pictures, self.cache.path(keys[n], ".png"))
                self.cache.put(keys[n], marks, time.monotonic() - started)
            told = f"{variant.name}, {' with '.join(s.name for s in subjects)}"
            kind = "point" if len(subjects) == 1 else "group"
            self.clock.finish(kind, time.monotonic() - begin, told)
        return [marks for key in keys for marks in self.cache.get(key) or ()]

    def asked(self, variant: Variant, subjects: Sequence[Subject]) -> list[Prompt]:
        """The prompts for one subject, or for two in one picture."""
        phrases = [variant.method.phrase(subject) for subject in subjects]
        if len(subjects) == 1:
            return self.marking.prompts(subjects[0], phrases[0])
        return group_prompts(phrases, [subject.superclass for subject in subjects])

    def _judged(
        self,
        subjects: Sequence[Subject],
        pictures: Sequence[Image.Image],
        asked: Sequence[Prompt],
    ) -> list[Any]:
        if len(subjects) == 1:
            marks: list[Any] = self.marking.marks(subjects[0], pictures, asked).tolist()
            return marks
        group = [individual_of(subject.name) for subject in subjects]
        judged = []
        for verdict, prompt in zip(self.judge.look_at(list(pictures)), asked, strict=True):
            became = fates(verdict, group)
            shown = prompt.shown(verdict.objects, verdict.background)
            every = all(fate is Fate.THERE for fate in became)
            judged.append([float(shown), float(every), *(fate.value for fate in became)])
        return judged

    def _file(self, training: Mapping[str, Any]) -> Path | None:
        """What a training left, or None when it has not run to its end."""
        file = self.cache.path(training, ".safetensors")
        return file if file.is_file() and self.cache.has(training) else None

    def _training_key(self, method: Method, subject: Subject) -> dict[str, Any]:
        return {"trained": method.key, "subject": subject.fingerprint, "name": subject.name}

    def _point_key(
        self, variant: Variant, subjects: Sequence[Subject], repeat: int
    ) -> dict[str, Any]:
        """Of one picture of each prompt: a larger run takes over what a smaller one has made."""
        return {
            "subjects": [self._training_key(variant.method, subject) for subject in subjects],
            "prompts": [prompt.text for prompt in self.asked(variant, subjects)],
            "use": dict(variant.use),
            "marking": [type(self.marking).__name__, SAMPLE_SEED + repeat, STEPS, CFG],
        }


def _save_strip(pictures: Sequence[Image.Image], path: Path) -> None:
    width, height = pictures[0].size
    strip = Image.new("RGB", (width * len(pictures), height))
    for n, picture in enumerate(pictures):
        strip.paste(picture, (n * width, 0))
    strip.save(path)


def _kind(method: Method) -> str:
    return f"train {method.title}"
