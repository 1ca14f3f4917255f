"""Prompts of the lab, and what became of several concepts in one picture."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from lab.__main__ import groups_of
from lab.groups import Fate, fates, individual_of
from lab.judge import Seen, Verdict
from lab.prompts import concept_prompts, group_prompts
from lab.world.captions import LONGEST, tokens_of
from lab.world.vocabulary import CONCEPTS, CONTAINERS, OBJECTS, REPORTED, Look

BERRY, ROYAL = CONCEPTS["berry"], CONCEPTS["royal"]
OTHER = Look("red", "white", "striped")


def seen(obj: str, look: Look | None) -> Seen:
    return Seen(obj, look, 0, 0, ())


@pytest.mark.parametrize(
    ("things", "expected"),
    [
        ([("teddy", BERRY.look), ("teapot", ROYAL.look)], ["there", "there"]),
        ([("teddy", ROYAL.look), ("teapot", BERRY.look)], ["swapped", "swapped"]),
        ([("teddy", ROYAL.look), ("teapot", ROYAL.look)], ["swapped", "there"]),
        ([("teddy", OTHER), ("teapot", None)], ["blended", "plain"]),
        ([("teapot", ROYAL.look)], ["dropped", "there"]),
        ([("cat", BERRY.look)], ["dropped", "dropped"]),
    ],
)
def test_what_became_of_two(things: list[tuple[str, Look | None]], expected: list[str]) -> None:
    verdict = Verdict(tuple(seen(*thing) for thing in things), "red")
    assert [fate.value for fate in fates(verdict, [BERRY, ROYAL])] == expected


def test_one_thing_stands_for_one_concept_of_two_of_its_kind() -> None:
    one, other = REPORTED["teddy-1"], REPORTED["teddy-2"]
    alone = Verdict((seen("teddy", other.look),), "red")
    assert fates(alone, [one, other]) == [Fate.DROPPED, Fate.THERE]
    both = Verdict((seen("teddy", other.look), seen("teddy", other.look)), "red")
    assert fates(both, [one, other]) == [Fate.SWAPPED, Fate.THERE]


@pytest.mark.parametrize("superclass", OBJECTS)
def test_no_companion_is_of_the_superclass_that_is_asked_for(superclass: str) -> None:
    prompts = concept_prompts(f"{superclass}*", superclass)
    assert len({prompt.text for prompt in prompts}) == 8
    for prompt in prompts:
        plain = prompt.text.replace(f"{superclass}*", "")
        assert superclass not in plain.split()
        assert prompt.objects == {superclass} | {o for o in OBJECTS if o in plain.split()}


def test_every_reported_concept_is_in_one_group_of_each_kind() -> None:
    @dataclass(frozen=True)
    class Subject:
        name: str
        superclass: str
        of_its_kind: int = 1

    subjects = [Subject(one.name, one.object) for one in REPORTED.values()]
    groups = groups_of(subjects)  # type: ignore[arg-type]
    assert {kind: len(of_kind) for kind, of_kind in groups.items()} == {
        "couples": 12, "triples": 8, "quads": 6, "twins": 12
    }  # fmt: skip
    for kind, of_kind in groups.items():
        names = [subject.name for group in of_kind for subject in group]
        assert sorted(names) == sorted(REPORTED)
        for group in of_kind:
            classes = {subject.superclass for subject in group}
            # Twins share their superclass, so numbers tell their words apart.
            assert len(classes) == (1 if kind == "twins" else len(group))
            numbers = [1, 2] if kind == "twins" else [1] * len(group)
            assert [subject.of_its_kind for subject in group] == numbers
            individuals = [individual_of(subject.name) for subject in group]
            phrases = [f"{one.look.words()} {one.object}" for one in individuals]
            prompts = group_prompts(phrases, [one.object for one in individuals])
            assert len(prompts) == 8
            for prompt in prompts:
                # Also in words, which are longer than placeholders, it is one chunk of text.
                assert tokens_of(prompt.text) <= LONGEST
                assert all(phrase in prompt.text for phrase in phrases)


def test_only_a_container_is_asked_to_hold_something() -> None:
    for first, second in (("teddy", "teapot"), ("house", "cat"), ("frog", "apple")):
        for prompt in group_prompts([f"{first}*", f"{second}*"], [first, second]):
            head, inside, tail = prompt.text.partition(" in a ")
            if inside:
                assert tail.split("*")[0] in CONTAINERS
                assert head.endswith("*")
