"""Manifests: what they say, and errors that name the line and the remedy."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fleet.errors import FleetError
from fleet.jobs import Job, jobs_of, read_inputs
from fleet.ledger import Ledger
from fleet.lines import line_of
from fleet.manifest import Manifest, ledger_of, read_manifest

TEXT = """\
ledger = "out"

[defaults]
model = "demo"
steps = 4
captions = ["a {} here", "a {} there"]

[grid]
seed = [1, 2]

[concepts.anna]
pictures = "anna"
placeholder = "anna*"
superclass = "person"

[concepts."b o"]
pictures = ["anna/1.png"]
captions = ["a {}"]
placeholder = "bo*"
superclass = "dog"
seed = 7
grid = { value_rate = [0.03, 0.1] }
"""

Read = Callable[..., Manifest]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Reads `TEXT`, with pairs of old and new text put in place."""

    def reader(*changes: tuple[str, str]) -> Manifest:
        (tmp_path / "anna").mkdir(exist_ok=True)
        for number in (1, 2):
            path = tmp_path / "anna" / f"{number}.png"
            if not path.exists():
                path.write_bytes(bytes([number]))
        text = TEXT
        for old, new in changes:
            assert old in text
            text = text.replace(old, new, 1)
        (tmp_path / "m.toml").write_text(text, encoding="utf-8")
        return read_manifest(tmp_path / "m.toml")

    return reader


def test_a_manifest_gives_a_concept_for_every_combination_of_its_grid(
    read: Read, tmp_path: Path
) -> None:
    manifest = read()
    assert manifest.ledger == tmp_path / "out" == ledger_of(tmp_path / "m.toml")
    found = {one.name: dict(one.settings) for one in manifest.concepts}
    assert found == {
        "anna-seed1": {"steps": 4, "seed": 1},
        "anna-seed2": {"steps": 4, "seed": 2},
        # Its own seed is not spread by the grid above it.
        "b o-value_rate0.03": {"steps": 4, "seed": 7, "value_rate": 0.03},
        "b o-value_rate0.1": {"steps": 4, "seed": 7, "value_rate": 0.1},
    }
    anna = manifest.concepts[0]
    assert [path.name for path in anna.pictures] == ["1.png", "2.png"]
    assert anna.captions == ["a {} here", "a {} there"]


def test_a_text_beside_a_picture_is_its_caption(read: Read, tmp_path: Path) -> None:
    read()
    (tmp_path / "anna" / "2.txt").write_text("\ufeffa {}\nat night ü\n", encoding="utf-8")
    assert read().concepts[0].captions == ["", "a {} at night ü"]
    own = ("[concepts.anna]", '[concepts.anna]\ncaptions = ["one {}", "two {}"]')
    assert read(own).concepts[0].captions == ["one {}", "two {}"]


def test_masks_are_found_by_the_names_of_the_pictures(read: Read, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    (masks / "1.png").write_bytes(b"1")
    named = ('pictures = "anna"', 'pictures = "anna"\nmasks = "masks"')
    with pytest.raises(FleetError, match=r"line 13: concepts.anna.masks has no mask for 2.png"):
        read(named)
    (masks / "2.jpg").write_bytes(b"2")
    assert [path.name for path in read(named).concepts[0].masks] == ["1.png", "2.jpg"]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("[defaults]", "[defaults", r"is not TOML: .*line 3"),
        ("steps = 4", "step = 4", r'line 5: defaults.step is not known; did you mean "steps"'),
        ("steps = 4", 'steps = "4"', r"line 5: defaults.steps is '4'; expected a whole number"),
        ("steps = 4", "steps = true", r"line 5: defaults.steps is True; expected a whole"),
        ("steps = 4", "steps = 0", r"line 5: defaults.steps of \"anna\" cannot be: steps is 0"),
        ("seed = [1, 2]", "seed = 1", r"line 9: grid.seed is 1; expected a list"),
        ("seed = [1, 2]", "sed = [1]", r'line 9: grid.sed is not known; did you mean "seed"'),
        ('model = "demo"', 'model = "sd"', r'line 4: defaults.model is "sd".*name one of demo'),
        ('superclass = "person"\n', "", r"line 11: concepts.anna has no superclass: add one"),
        ('"anna*"', '"two words"', r'line 13: concepts.anna.placeholder is "two words"'),
        ('pictures = "anna"', 'pictures = "ana"', r'line 12: .*names "ana", and there is no '),
        ('pictures = "anna"\n', "", r"line 11: concepts.anna has no pictures: name a folder"),
        ('"a {} there"]', "]", r"line 6: defaults.captions has 1 captions for the 2 pictures"),
        ("[0.03, 0.1]", "[0.03, -1]", r'line 22: concepts.b o.grid.value_rate of "b o" cannot'),
        ("[concepts.anna]", '[concepts."../anna"]', r"line 11: .*cannot be a file's name"),
        ("ledger", "ledgr", r'line 1: ledgr is not known; did you mean "ledger"'),
        ("[grid]", "[models.x]\nunet = 'm.toml'\n[grid]", r"line 8: models.x names no whole model"),
        ("[grid]", "[models.x]\ncheckpoint = 'no'\n[grid]", r"line 9: models.x.checkpoint names"),
    ],
)
def test_an_error_names_the_line_and_what_to_do(read: Read, old: str, new: str, told: str) -> None:
    with pytest.raises(FleetError, match=told):
        read((old, new))


def test_a_manifest_that_is_not_there_or_empty_is_told(tmp_path: Path) -> None:
    with pytest.raises(FleetError, match="there is no manifest"):
        read_manifest(tmp_path / "no.toml")
    (tmp_path / "m.toml").write_text("")
    with pytest.raises(FleetError, match=r"line 1: concepts has no concept: add a table"):
        read_manifest(tmp_path / "m.toml")
    (tmp_path / "m.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(FleetError, match="cannot be read"):
        read_manifest(tmp_path / "m.toml")


def test_a_line_is_found_in_quoted_and_dotted_names() -> None:
    text = "a = 1\n[x.\"b c\"]  # as it is\nd.e = 2\n'f' = 3\n"
    assert line_of(text, ["x", "b c", "d", "e"]) == 3
    assert line_of(text, ["x", "b c", "f"]) == 4
    assert line_of(text, ["x", "b c", "nothing"]) == 2
    assert line_of(text, ["nothing"]) == 1


# --- jobs


def ids(manifest: Manifest) -> dict[str, str]:
    return {name: job.id for job in jobs_of(manifest) for name in job.names}


@pytest.mark.parametrize(
    ("change", "others"),
    [
        (("steps = 4", "steps = 5"), 0),
        (('"anna*"', '"ann*"'), 2),
        (('superclass = "person"', 'superclass = "woman"'), 2),
        (("a {} here", "the {} here"), 2),
        (("seed = [1, 2]", "seed = [3, 4]"), 2),
        (('pictures = "anna"', 'pictures = "anna"\nflip = true'), 2),
        (('pictures = "anna"', 'pictures = "anna"\nresolution = 64'), 2),
        (('pictures = "anna"', 'pictures = "anna"\nmasks = "anna"'), 2),
    ],
)
def test_what_decides_the_result_makes_another_job(
    read: Read, change: tuple[str, str], others: int
) -> None:
    before, after = ids(read()), ids(read(change))
    assert len({*before.values()} & {*after.values()}) == others


def test_a_changed_picture_or_caption_makes_another_job_of_that_concept(
    read: Read, tmp_path: Path
) -> None:
    before = ids(read())
    (tmp_path / "anna" / "2.png").write_bytes(b"other")
    after = ids(read())
    assert {name for name in before if before[name] != after[name]} == {"anna-seed1", "anna-seed2"}


def test_names_and_places_do_not_decide_the_result(read: Read, tmp_path: Path) -> None:
    before = ids(read())
    shutil.copytree(tmp_path / "anna", tmp_path / "moved")
    changes = [('pictures = "anna"', 'pictures = "moved"'), ("[concepts.anna]", "[concepts.eve]")]
    changes.append(("steps = 4", 'steps = 4\ncheckpointing = "on"'))
    after = ids(read(*changes))
    assert after["eve-seed1"] == before["anna-seed1"]


def test_what_is_asked_for_twice_is_one_job(read: Read) -> None:
    copy = TEXT[TEXT.index("[concepts.anna]") : TEXT.index('[concepts."b o"]')]
    again = copy.replace("concepts.anna", "concepts.again")
    jobs = jobs_of(read(("[concepts.anna]", f"{again}\n[concepts.anna]")))
    assert [job.names for job in jobs][:2] == [
        ("again-seed1", "anna-seed1"), ("again-seed2", "anna-seed2"),
    ]  # fmt: skip


def test_the_hash_of_a_large_file_is_kept_until_it_changes(
    read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fleet.jobs._LARGE", 1)
    manifest = read()
    Ledger(manifest.ledger)
    before = ids(manifest)
    opened: list[Path] = []
    original = Path.open
    monkeypatch.setattr(
        Path, "open", lambda self, *a, **k: opened.append(self) or original(self, *a, **k)
    )

    def pictures() -> list[str]:
        return [path.name for path in opened if path.parent.name == "anna"]

    assert ids(manifest) == before
    assert pictures() == []
    (tmp_path / "anna" / "2.png").write_bytes(b"another")
    assert ids(manifest) != before
    assert pictures().count("2.png") == 2  # written, and read once


def test_a_picture_that_changed_after_the_plan_is_not_learned_from(
    read: Read, tmp_path: Path
) -> None:
    job: Job = jobs_of(read())[0]
    read_all: Any = dict(read_inputs(job.spec))
    assert read_all == {"1.png": b"\x01", "2.png": b"\x02"}
    (tmp_path / "anna" / "2.png").write_bytes(b"other")
    with pytest.raises(FleetError, match=r"2\.png was changed since"):
        list(read_inputs(job.spec))
    (tmp_path / "anna" / "2.png").unlink()
    with pytest.raises(FleetError, match=r"2\.png cannot be read"):
        list(read_inputs(job.spec))
