"""The lab's results as a page: from lab.json alone, and what docs/ shows is what lab.json holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lab import __main__ as command
from lab.publish import BUDGET, DOCS, publish, results
from lab.tables import LORA, tables
from lab.world.vocabulary import CONCEPTS, REPORTED

FOUND: dict[str, Any] = {
    "command": 'make lab ARGS="--full --publish"',
    "date": "2026-01-02",
    "machine": "a machine (2 cores), torch 2.9",
    "subjects": ["berry (teddy)", "royal (teapot)"],
    "pictures_a_point": 96,
    "steps": 200,
    "batch": 4,
    "seconds": 60,
    "seconds_of_work": 4321,
    "from_other_code": 0,
    "identity": "identity (share of pictures)",
    "ablations": [
        {
            "name": "mask",
            "claims": [
                {
                    "claim": "a mask helps text alignment",
                    "measure": "text",
                    "difference": -0.0213,
                    "interval": [-0.05, 0.01],
                    "by_subject": [-0.05, 0.01],
                    "verdict": "not decided",
                }
            ],
        }
    ],
    "methods": [
        {
            "name": name,
            "hypervolume": volume,
            "hypervolume_interval": [volume - 0.1, volume + 0.1],
            "best": {"name": f"{name}, bias 0.6", "identity": 0.9, "text_alignment": 0.8},
            "train_seconds": seconds,
            "file_bytes": size,
            "both_identities": both,
            "both_identities_interval": [both - 0.1, both + 0.1],
            "both_pictures": 96,
        }
        for name, volume, seconds, size, both in (
            ("Perfusion", 0.8, 30.0, 6000, 0.5),
            (LORA, 0.4, 50.0, 200_000, 0.2),
            ("DreamBooth", 0.5, 20.0, 9_000_000, 0.1),
        )
    ],
    "comparison": {
        "best_rival": "DreamBooth",
        "volume_ratio": 1.6,
        "volume_ratio_interval": [1.25, 2.0],
        "volume_difference": 0.3,
        "volume_difference_interval": [0.2, 0.4],
        "bytes_ratio": 0.0007,
        "volume_reached": True,
        "both_ratio": 2.5,
        "both_ratio_interval": None,
        "both_reached": True,
    },
    "plots": ["lab_mask.png", "lab_sheet.jpg"],
}


def written(out: Path, found: dict[str, Any], plot: int = 100) -> Path:
    """What a run of the lab leaves."""
    out.mkdir(exist_ok=True)
    (out / "lab.json").write_text(json.dumps(found))
    for name in found["plots"]:
        (out / name).write_bytes(b"x" * plot)
    return out


def test_a_page_says_how_it_was_measured_and_what_was_found() -> None:
    page = results(FOUND)
    for part in (
        '`make lab ARGS="--full --publish"`, 2026-01-02, a machine (2 cores), torch 2.9',
        "berry (teddy), royal (teapot); 96 pictures a point",
        "| a mask helps text alignment | not decided | -0.021 text alignment "
        "| -0.050 to +0.010 | 1 of 2 |",
        "| LoRA | 0.400 (0.300 to 0.500) | 0.90, 0.80 (LoRA, bias 0.6) "
        "| 0.200 (0.100 to 0.300) of 96 | 50 | 200,000 |",
        "Trained for less time than Perfusion: DreamBooth.",
        "is 1.60 times (1.25 to 2.00) that of the best rival (DreamBooth)",
        "Asked for: 1.2 times at 0.1 of the bytes; reached.",
        "in 2.50 times as many composed pictures as with stacked LoRAs. Asked for: 2 times",
        "![lab_sheet.jpg](lab_sheet.jpg)",
    ):
        assert part in page


def test_what_was_not_measured_and_ratios_to_0_are_said() -> None:
    assert "what is claimed" not in tables({**FOUND, "ablations": []})
    assert "method" not in tables({**FOUND, "methods": [], "comparison": {}})
    nothing = {
        **FOUND["comparison"],
        "volume_ratio": None,
        "volume_ratio_interval": None,
        "both_ratio": None,
        "both_reached": False,
    }
    page = tables({**FOUND, "comparison": nothing})
    assert "is beyond any ratio to that of the best rival" in page
    assert "there is no ratio. Asked for: 2 times; not reached." in page


def test_publishing_takes_the_place_of_what_was_there(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    assert publish(written(tmp_path / "first", FOUND), docs) == 200
    fewer = {**FOUND, "plots": ["lab_key_lock.png"]}
    publish(written(tmp_path / "second", fewer), docs)
    names = sorted(path.name for path in docs.iterdir())
    assert names == ["lab.json", "lab_key_lock.png", "results.md"]
    assert json.loads((docs / "lab.json").read_text()) == fewer
    assert (docs / "results.md").read_text() == results(fewer)


def test_a_part_that_is_measured_again_takes_the_place_of_itself_alone(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    publish(written(tmp_path / "first", FOUND), docs)
    (claim,) = FOUND["ablations"][0]["claims"]
    part = {
        **FOUND,
        "command": 'make lab ARGS="--full --only mask bias"',
        "date": "2026-02-03",
        "ablations": [
            {"name": "mask", "claims": [{**claim, "difference": 0.5}]},
            {"name": "bias", "claims": [{**claim, "claim": "a bias does something"}]},
        ],
        "methods": [],
        "comparison": {},
        "plots": ["lab_mask.png", "lab_bias.png"],
        "only": ["mask", "bias"],
    }
    assert publish(written(tmp_path / "again", part, plot=70), docs) == 70 + 70 + 100
    found = json.loads((docs / "lab.json").read_text())
    assert found["methods"] == FOUND["methods"]
    assert [a["name"] for a in found["ablations"]] == ["mask", "bias"]
    page = (docs / "results.md").read_text()
    assert page == results(found)
    assert "| a mask helps text alignment | not decided | +0.500" in page
    assert "| a bias does something" in page
    assert 'Of another run (`make lab ARGS="--full --only mask bias"`, 2026-02-03' in page
    assert '`make lab ARGS="--full --publish"`, 2026-01-02' in page
    assert {path.name for path in docs.glob("lab_*")} == set(found["plots"])

    rivals = {**FOUND, "date": "2026-03-04", "ablations": [], "only": ["rivals"]}
    rivals |= {"methods": FOUND["methods"][:2], "plots": ["lab_sheet.jpg"]}
    publish(written(tmp_path / "rivals", rivals), docs)
    later = json.loads((docs / "lab.json").read_text())
    assert later["ablations"] == found["ablations"]
    assert later["methods"] == FOUND["methods"][:2]
    assert "2026-03-04, a machine (2 cores), torch 2.9): the methods." in results(later)

    with pytest.raises(ValueError, match="pictures_a_point differ"):
        publish(written(tmp_path / "unlike", {**part, "pictures_a_point": 16}), docs)
    assert json.loads((docs / "lab.json").read_text()) == later


def test_pictures_too_large_for_a_repository_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="more than the 1,500,000"):
        publish(written(tmp_path / "out", FOUND, plot=BUDGET // 2 + 1), tmp_path / "docs")
    assert not (tmp_path / "docs").exists()


def test_what_docs_show_is_what_the_lab_wrote() -> None:
    if not DOCS.is_dir():
        pytest.skip("no results have been published yet: make lab ARGS='--full --publish'")
    found = json.loads((DOCS / "lab.json").read_text(encoding="utf-8"))
    assert (DOCS / "results.md").read_text(encoding="utf-8") == results(found)
    assert {path.name for path in DOCS.glob("lab_*")} == set(found["plots"])


def test_the_full_lab_has_the_concepts_that_it_promises() -> None:
    full = command.FULL_CONCEPTS
    assert len(set(full)) >= 24
    assert len({REPORTED[name].object for name in full}) == 12
    assert set(command.QUICK_CONCEPTS) < set(full)
    assert not set(CONCEPTS) & set(full)  # defaults are chosen on none that is reported
