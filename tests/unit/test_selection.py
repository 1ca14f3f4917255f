"""Validation: what is painted and scored, and which step and settings come out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from perfusion_core.concept.concept import Concept
from perfusion_core.concept.concept_file import load_concept, save_concept
from perfusion_core.method.settings import ConceptSettings
from perfusion_core.method.templates import validation_prompts
from perfusion_core.method.validation import BIASES, MAX_LOOKS, TEMPERATURES, Score, Validation

MakeConcept = Callable[..., Concept]
PROMPTS = ("a {} on a beach", "a {} in the snow")


@dataclass
class Judge:
    """Paints step, bias and temperature into the picture, and likes one of each best."""

    step: int = 60
    bias: float = 0.7
    temperature: float = 0.1
    name: str = "judge"
    asked: list[tuple[str, ...]] = field(default_factory=list)
    said: list[tuple[str, ...]] = field(default_factory=list)

    def paint(self, concept: Concept, settings: ConceptSettings, prompts: Sequence[str]) -> Tensor:
        self.asked.append(tuple(prompts))
        colour = [concept.training["steps_done"] / 1000, settings.bias, settings.temperature]
        return torch.tensor(colour).expand(len(prompts), 8, 8, 3)

    def score(self, pictures: Tensor, prompts: Sequence[str]) -> Score:
        self.said.append(tuple(prompts))
        step, bias, temperature = pictures[0, 0, 0].tolist()
        off = abs(step * 1000 - self.step) / 100
        identity = 1 - off - abs(bias - self.bias)
        return Score(identity, 1 - abs(temperature - self.temperature))


@pytest.fixture
def at_step(make_concept: MakeConcept) -> Callable[[int], Concept]:
    def make(step: int) -> Concept:
        return make_concept(seed=step, bias=0.6, temperature=0.15, training={"steps_done": step})

    return make


def test_the_best_step_is_kept_with_the_settings_that_score_best(
    at_step: Callable[[int], Concept], tmp_path: Path
) -> None:
    judge = Judge()
    validation = Validation(PROMPTS, judge.paint, judge)
    for step in (20, 40, 60, 80):
        validation.look(step, at_step(step))
    told: list[tuple[int, int]] = []
    concept = validation.tuned(lambda look, done, total: told.append((done, total)))
    assert concept is not None
    assert concept.hash == at_step(60).hash
    assert (concept.bias, concept.temperature) == (0.7, 0.1)
    # What is usual has been scored already.
    count = len(BIASES) + len(TEMPERATURES) - 2
    assert told == [(n + 1, count) for n in range(count)]
    notes = concept.training
    assert notes["steps_done"] == notes["selected_step"] == 60
    assert notes["selected_by"] == "judge"
    assert [row[0] for row in notes["validation"]] == [20, 40, 60, 80]
    assert [row[0] for row in notes["validation_bias"]] == list(BIASES)
    assert [row[0] for row in notes["validation_temperature"]] == list(TEMPERATURES)
    assert max(notes["validation_bias"], key=lambda row: row[1] * row[2])[0] == 0.7
    json.dumps(dict(notes))
    save_concept(concept, tmp_path / "c.safetensors")
    assert load_concept(tmp_path / "c.safetensors").settings == ConceptSettings(0.7, 0.1)


def test_pictures_are_painted_of_the_placeholder_and_judged_by_the_superclass(
    at_step: Callable[[int], Concept],
) -> None:
    judge = Judge()
    look = Validation(PROMPTS, judge.paint, judge).look(20, at_step(20))
    assert judge.asked == [("a berry* on a beach", "a berry* in the snow")]
    assert judge.said == [("a teddy on a beach", "a teddy in the snow")]
    assert look.pictures.shape == (2, 8, 8, 3)


def test_a_cancel_keeps_the_best_so_far_as_it_was_scored(
    at_step: Callable[[int], Concept],
) -> None:
    judge = Judge(step=20)
    validation = Validation(PROMPTS, judge.paint, judge)
    for step in (20, 40):
        validation.look(step, at_step(step))
    concept = validation.kept()
    assert concept is not None
    assert (concept.hash, concept.bias) == (at_step(20).hash, 0.6)
    assert "validation_bias" not in concept.training

    class Stopped(Exception):
        pass

    def stop(*_: object) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        validation.tuned(stop)


def test_of_two_steps_alike_the_later_and_of_two_settings_the_usual(
    at_step: Callable[[int], Concept],
) -> None:
    class Indifferent(Judge):
        def score(self, pictures: Tensor, prompts: Sequence[str]) -> Score:
            return Score(0.0, 1.0)

    judge = Indifferent()
    validation = Validation(PROMPTS, judge.paint, judge)
    for step in (20, 40):
        validation.look(step, at_step(step))
    concept = validation.tuned()
    assert concept is not None
    assert concept.hash == at_step(40).hash
    assert concept.settings == ConceptSettings(0.6, 0.15)


def test_without_a_scorer_nothing_is_selected(at_step: Callable[[int], Concept]) -> None:
    validation = Validation(PROMPTS, Judge().paint)
    look = validation.look(20, at_step(20))
    assert look.score is None
    assert validation.looks == [look]
    assert validation.best is validation.tuned() is validation.kept() is None
    assert not validation.scores


@pytest.mark.parametrize("best", [1, 397, 1000])
def test_of_very_many_looks_some_are_kept_evenly_with_the_best_and_the_last(
    best: int, at_step: Callable[[int], Concept]
) -> None:
    judge = Judge(step=best)
    validation = Validation(PROMPTS, judge.paint, judge)
    most = 0
    for step in range(1, 1001):
        validation.look(step, at_step(step))
        most = max(most, len(validation.looks))
        assert validation.looks[-1].step == step
    assert most <= MAX_LOOKS + 2
    kept = [look.step for look in validation.looks]
    assert kept == sorted(set(kept))
    even = [step for step in kept if step not in (best, 1000)]
    assert {b - a for a, b in pairwise(even)} <= {32, 64}
    assert len(even) >= MAX_LOOKS // 2 - 2
    concept = validation.kept()
    assert concept is not None
    assert concept.training["selected_step"] == best
    assert len(concept.training["validation"]) == len(kept)


def test_large_pictures_are_kept_small(at_step: Callable[[int], Concept]) -> None:
    def paint(*_: object) -> Tensor:
        return torch.rand(1, 512, 768, 3)

    look = Validation(PROMPTS[:1], paint).look(1, at_step(1))  # type: ignore[arg-type]
    assert look.pictures.shape == (1, 171, 256, 3)


def test_neither_figure_stands_in_for_the_other() -> None:
    assert Score(0.6, 0.6).total > Score(1.0, 0.3).total
    assert Score(-0.1, -0.5).total == 0


def test_the_built_in_prompts_take_the_article_of_the_word() -> None:
    assert validation_prompts("teddy")[1] == "a photo of a {} in the snow"
    assert validation_prompts("apple")[1] == "a photo of an {} in the snow"
    assert all(prompt.count("{}") == 1 for prompt in validation_prompts("cat"))
