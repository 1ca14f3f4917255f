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

from ..exam import pair_questions
from ..judge import Judge
from ..studio import CFG, STEPS, Studio
from .ablations import Variant
from .cache import Cache
from .exams import Exam, follows
from .figures import Point
from .methods import Method
from .subjects import Subject

SAMPLE_SEED = 1000
Couple = tuple[Subject, Subject]


@dataclass(frozen=True)
class Training:
    """What one training cost."""

    method: Method
    subject: str
    file: Path
    seconds: float

    @property
    def bytes(self) -> int:
        return self.file.stat().st_size


class Clock:
    """Says how long what is still to be done will take, from what was done so far.

    Attributes:
        todo: how many of each kind ("point", "train Lora" ...) are to come.
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
        studio: Studio,
        judge: Judge,
        exam: Exam,
        subjects: Sequence[Subject],
        repeats: int,
        cache: Cache,
    ) -> None:
        self.studio = studio
        self.judge = judge
        self.exam = exam
        self.subjects = list(subjects)
        self.repeats = repeats
        self.cache = cache
        self.clock = Clock()
        self.trainings: dict[str, Training] = {}
        self._points: dict[str, Point] = {}

    def expect(self, variants: Iterable[Variant], couples: int) -> None:
        """Tell the clock what will be asked for; what is in the cache takes no time."""
        trainings: dict[Path, str] = {}
        points: set[Path] = set()
        for variant in variants:
            for subject in self.subjects:
                training = self._training_key(variant.method, subject)
                if self._file(training) is None:
                    trainings[self.cache.path(training)] = _kind(variant.method)
                point = self._point_key(variant, subject)
                if self.cache.get(point) is None:
                    points.add(self.cache.path(point))
        self.clock.todo = Counter({**Counter(trainings.values()), "point": len(points)})
        self.clock.todo["pair"] = couples

    def learned(self, method: Method, subject: Subject) -> Training:
        """The subject as the method learned it: from the cache, or trained now."""
        key = self._training_key(method, subject)
        file = self._file(key)
        if file is None:
            file = self.cache.path(key, ".safetensors")
            partial = file.with_name(f"{file.name}.partial")
            begin = time.monotonic()
            method.train(self.studio, subject, partial)
            seconds = round(time.monotonic() - begin, 1)
            os.replace(partial, file)
            self.cache.put(key, seconds)
            self.clock.finish(_kind(method), seconds, f"{_kind(method)} {subject.name}")
        training = Training(method, subject.name, file, self.cache.get(key))
        self.trainings.setdefault(file.name, training)
        return training

    def point(self, variant: Variant) -> Point:
        """A variant's marks on every subject."""
        if variant.name not in self._points:
            marks = [self._marks(variant, subject) for subject in self.subjects]
            self._points[variant.name] = Point(variant.name, np.array(marks))
        return self._points[variant.name]

    def _marks(self, variant: Variant, subject: Subject) -> Any:
        key = self._point_key(variant, subject)
        found = self.cache.get(key)
        if found is None:
            asked = [
                question
                for question in self.exam.questions(subject, variant.method.phrase(subject))
                for _ in range(self.repeats)
            ]
            training = self.learned(variant.method, subject)
            begin = time.monotonic()
            pictures = self._paint(variant, [(subject, training.file)], [q.prompt for q in asked])
            found = self.exam.marks(subject, pictures, asked).tolist()
            self._keep_strip(key, pictures)
            self.cache.put(key, found)
            told = f"{variant.name}, {subject.name}"
            self.clock.finish("point", time.monotonic() - begin, told)
        return found

    def both(self, variant: Variant, couples: Sequence[Couple]) -> Point:
        """Two subjects, trained apart, in one picture: (text alignment, both identities)."""
        marks = [self._both(variant, couple) for couple in couples]
        return Point(variant.name, np.array(marks))

    def _both(self, variant: Variant, couple: Couple) -> Any:
        key = {**self._point_key(variant, couple[0]), "with": couple[1].fingerprint}
        found = self.cache.get(key)
        if found is None:
            one, other = couple
            phrases = [variant.method.phrase(subject) for subject in couple]
            asked = [
                question
                for question in pair_questions(
                    phrases[0], one.superclass, phrases[1], other.superclass
                )
                for _ in range(self.repeats)
            ]
            learned = [(s, self.learned(variant.method, s).file) for s in couple]
            begin = time.monotonic()
            pictures = self._paint(variant, learned, [q.prompt for q in asked])
            names = {one.name, other.name}
            found = [
                [float(follows(v.objects, v.background, q)), float(names <= v.concepts)]
                for v, q in zip(self.judge.look_at(pictures), asked, strict=True)
            ]
            self._keep_strip(key, pictures)
            self.cache.put(key, found)
            told = f"{variant.name}, {one.name} with {other.name}"
            self.clock.finish("pair", time.monotonic() - begin, told)
        return found

    def strip(self, variant: Variant, subject: Subject) -> list[Image.Image]:
        """The first picture of every prompt, as it was measured."""
        return self._read_strip(self._point_key(variant, subject))

    def strip_of_both(self, variant: Variant, couple: Couple) -> list[Image.Image]:
        """The same of two subjects in one picture."""
        key = {**self._point_key(variant, couple[0]), "with": couple[1].fingerprint}
        return self._read_strip(key)

    def _paint(
        self, variant: Variant, learned: Sequence[tuple[Subject, Path]], prompts: Sequence[str]
    ) -> list[Image.Image]:
        with torch.inference_mode():
            model, clip = variant.method.apply(self.studio, learned, prompts, **variant.use)
        return self.studio.draw(model, clip, prompts, SAMPLE_SEED)

    def _keep_strip(self, key: Mapping[str, Any], pictures: Sequence[Image.Image]) -> None:
        chosen = pictures[:: self.repeats]
        width, height = chosen[0].size
        strip = Image.new("RGB", (width * len(chosen), height))
        for n, picture in enumerate(chosen):
            strip.paste(picture, (n * width, 0))
        strip.save(self.cache.path(key, ".png"))

    def _read_strip(self, key: Mapping[str, Any]) -> list[Image.Image]:
        with Image.open(self.cache.path(key, ".png")) as strip:
            side = strip.height
            return [strip.crop((x, 0, x + side, side)) for x in range(0, strip.width, side)]

    def _file(self, training: Mapping[str, Any]) -> Path | None:
        """What a training left, or None when it has not run to its end."""
        file = self.cache.path(training, ".safetensors")
        return file if file.is_file() and self.cache.get(training) is not None else None

    def _training_key(self, method: Method, subject: Subject) -> dict[str, Any]:
        return {"trained": method.key, "subject": subject.fingerprint, "name": subject.name}

    def _point_key(self, variant: Variant, subject: Subject) -> dict[str, Any]:
        return {
            **self._training_key(variant.method, subject),
            "use": dict(variant.use),
            "exam": [type(self.exam).__name__, self.repeats, SAMPLE_SEED, STEPS, CFG],
        }


def _kind(method: Method) -> str:
    return f"train {type(method).__name__}"
