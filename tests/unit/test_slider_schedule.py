"""Sliders that move while a picture is sampled."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfusion_core.method.settings import ConceptSettings
from perfusion_core.method.slider_schedule import (
    LiveSliders,
    RecordedSliders,
    Sliders,
    checked_sliders,
    parse_recorded,
)

A, B, C = Sliders(0.6, 0.15, 1.0), Sliders(0.5, 0.2, 0.8), Sliders(0.1, 0.3, 0.0)


def test_moves_hold_down_to_their_noise_level() -> None:
    moves = RecordedSliders(((9.0, A), (2.0, B)), C)
    found = [moves.at(sigma) for sigma in (14.0, 9.0, 8.99, 2.0, 1.0, 0.0)]
    assert found == [A, A, B, B, C, C]
    assert RecordedSliders((), A).at(5.0) == A


def test_live_sliders_take_what_is_offered_at_the_next_new_noise_level() -> None:
    seen: list[RecordedSliders] = []
    live = LiveSliders(A, seen.append)
    assert live.at(10.0) == A
    live.offer(B)
    # The same step still: ComfyUI may ask several times, for parts of one batch.
    assert live.at(10.0) == A
    assert live.at(5.0) == B
    live.offer(C)
    # A sampler that goes back up finds what it had there.
    assert live.at(10.0) == A
    assert live.at(5.0) == B
    assert live.at(1.0) == C
    assert seen == [RecordedSliders(((10.0, A),), B), RecordedSliders(((10.0, A), (5.0, B)), C)]


def test_sliders_offered_before_the_first_step_are_the_first() -> None:
    live = LiveSliders(A)
    live.offer(B)
    assert live.at(10.0) == B
    assert live.recorded == RecordedSliders((), B)


def test_the_same_sliders_again_are_no_move() -> None:
    live = LiveSliders(A, lambda moves: pytest.fail("nothing moved"))
    live.at(10.0)
    live.offer(Sliders(0.6, 0.15, 1.0))
    live.at(5.0)
    assert live.recorded == RecordedSliders((), A)


numbers = st.builds(
    Sliders,
    st.floats(-1, 2),
    st.floats(0.01, 1),
    st.floats(0, 2),
)


@given(
    st.lists(st.floats(0.125, 1024, width=32), unique=True, min_size=1, max_size=20),
    st.lists(numbers, min_size=21, max_size=21),
)
def test_what_a_live_run_did_is_done_again_from_its_text(
    sigmas: list[float], offered: list[Sliders]
) -> None:
    live = LiveSliders(offered[0])
    used = []
    for sigma, sliders in zip(sorted(sigmas, reverse=True), offered[1:], strict=False):
        used.append((sigma, live.at(sigma)))
        live.offer(sliders)
    again = parse_recorded(live.recorded.text(), live.recorded.last)
    assert again == live.recorded
    for sigma, sliders in used:
        assert again.at(sigma) == sliders


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("nonsense", '"nonsense" cannot be read'),
        ("9: 0.6, 0.15", "cannot be read"),
        ("nan: 0.6, 0.15, 1", "cannot be read"),
        ("9: 0.6, 0, 1", "temperature is 0"),
        ("9: 3, 0.15, 1", "bias is 3"),
        ("2: 0.6, 0.15, 1; 9: 0.6, 0.15, 1", "out of order"),
        (";".join(f"{n}: 0.6, 0.15, 1" for n in range(2000, 0, -1)), "at most 1000"),
    ],
)
def test_moves_that_cannot_be_done_say_why(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_recorded(text, A)


def test_no_moves_are_no_moves() -> None:
    assert parse_recorded(" ; ", A) == RecordedSliders((), A)


@pytest.mark.parametrize(
    ("name", "value"),
    [("bias", 2.5), ("bias", math.nan), ("temperature", 0), ("strength", "1"), ("strength", True)],
)
def test_sliders_that_somebody_sent_are_checked(name: str, value: object) -> None:
    sent = {"bias": 0.6, "temperature": 0.15, "strength": 1, name: value}
    with pytest.raises(ValueError, match=name):
        checked_sliders(sent)
    with pytest.raises(ValueError, match="temperature is None"):
        checked_sliders({"bias": 0.6})


def test_sliders_leave_the_other_settings_alone() -> None:
    settings = ConceptSettings(start=0.2, end=0.9)
    assert B.put_into(settings) == ConceptSettings(0.5, 0.2, 0.8, start=0.2, end=0.9)
