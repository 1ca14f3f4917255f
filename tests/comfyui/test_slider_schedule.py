"""Sliders that move while ComfyUI samples: the same picture as by any other way to that end."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from comfy.sd import CLIP
from tiny_models import patched_modules, sample

from perfusion_core.comfy.concept_entry import ConceptEntry
from perfusion_core.comfy.prompts import add_concepts
from perfusion_core.comfy.stack import apply_stack, extend_stack, stack_of, tune
from perfusion_core.concept.concept import Concept
from perfusion_core.method.settings import ConceptSettings
from perfusion_core.method.slider_schedule import (
    LiveSliders,
    RecordedSliders,
    Sliders,
    parse_recorded,
)

Model = Any
ON = ConceptSettings(bias=0.3, temperature=0.2)
FULL, OFF = Sliders(0.3, 0.2, 1.0), Sliders(0.3, 0.2, 0.0)


def moving(model: Model, teddy: Concept, schedule: Any, settings: ConceptSettings = ON) -> Model:
    return apply_stack(model, [ConceptEntry(teddy, settings, schedule)])


def test_sliders_that_stand_still_are_the_settings(
    model: Model, clip: CLIP, teddy: Concept
) -> None:
    knowing = add_concepts(clip, [teddy])
    still = sample(apply_stack(model, [ConceptEntry(teddy, ON)]), knowing)
    # Those of the schedule hold, whatever the settings say.
    other = replace(ON, bias=0.9, strength=0.0)
    assert torch.equal(
        sample(moving(model, teddy, RecordedSliders((), FULL), other), knowing), still
    )
    stock = sample(model, knowing)
    assert torch.equal(sample(moving(model, teddy, RecordedSliders((), OFF)), knowing), stock)
    assert not torch.equal(still, stock)
    assert patched_modules(model) == []


@pytest.mark.parametrize("first_on", [True, False])
def test_a_concept_that_is_moved_off_or_on_is_one_that_ends_or_starts(
    model: Model, clip: CLIP, teddy: Concept, first_on: bool
) -> None:
    knowing = add_concepts(clip, [teddy])
    middle = float(model.get_model_object("model_sampling").percent_to_sigma(0.5))
    first, last, range_ = (FULL, OFF, {"end": 0.5}) if first_on else (OFF, FULL, {"start": 0.5})
    expected = apply_stack(model, [ConceptEntry(teddy, replace(ON, **range_))])
    moved = moving(model, teddy, RecordedSliders(((middle, first),), last))
    picture = sample(moved, knowing, steps=6)
    assert torch.equal(picture, sample(expected, knowing, steps=6))
    assert not torch.equal(picture, sample(moving(model, teddy, None), knowing, steps=6))


class Hand:
    """Moves live sliders once the noise is low enough, as somebody at the page would."""

    def __init__(self, below: float) -> None:
        self.live = LiveSliders(FULL)
        self._below = below

    def at(self, sigma: float) -> Sliders:
        if sigma < self._below:
            self.live.offer(Sliders(0.6, 0.1, 0.5))
        return self.live.at(sigma)


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm_2", "euler_ancestral", "uni_pc"])
def test_a_live_run_is_done_again_from_what_it_wrote(
    model: Model, clip: CLIP, teddy: Concept, sampler: str
) -> None:
    knowing = add_concepts(clip, [teddy])
    hand = Hand(float(model.get_model_object("model_sampling").percent_to_sigma(0.4)))
    live = sample(moving(model, teddy, hand), knowing, steps=6, sampler=sampler)
    assert len(hand.live.recorded.earlier) == 1
    again = parse_recorded(hand.live.recorded.text(), hand.live.recorded.last)
    assert torch.equal(sample(moving(model, teddy, again), knowing, steps=6, sampler=sampler), live)
    still = sample(moving(model, teddy, None), knowing, steps=6, sampler=sampler)
    assert not torch.equal(still, live)


def test_each_concept_has_its_own_course(
    model: Model, clip: CLIP, teddy: Concept, pot: Concept
) -> None:
    schedule = RecordedSliders((), FULL)
    both = apply_stack(model, extend_stack((), [ConceptEntry(teddy, ON), ConceptEntry(pot, ON)]))
    one = tune(both, "teddy*", lambda s: s, schedule)
    other = tune(one, "pot*", lambda s: replace(s, bias=0.5))
    assert [entry.schedule for entry in stack_of(other)] == [schedule, None]
    # Tuned anew without a schedule, its sliders stand still again.
    assert [entry.schedule for entry in stack_of(tune(other, "", lambda s: s))] == [None, None]
