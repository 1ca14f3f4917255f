"""The page of a report: whole by itself, harmless whatever words are in it, its figures right."""

from __future__ import annotations

import argparse
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import tomllib

from fleet import commands as command
from fleet.errors import FleetError
from fleet.manifest import ModelEntry
from fleet.proof import manifest_text
from fleet.proof_charts import front_of
from fleet.proof_page import page

PICTURE = "data:image/webp;base64,AAAA"


def found(scored: bool = True, word: str = "teddy*") -> dict[str, Any]:
    """What a report is made of."""
    biases = (None, 0.4, 0.8)
    rows = [
        {
            "prompt": "a photo of a {} on a beach",
            "seed": seed,
            "bias": bias,
            "identity": 0.5 + (bias or 0) / 10 if scored else None,
            "text": 0.3 - (bias or 0) / 10 if scored else None,
            "picture": PICTURE,
        }
        for seed in (1, 2)
        for bias in biases
    ]
    gates = {
        "prompt": f"a photo of a {word}",
        "words": ["<start>", "a", word],
        "names": [word],
        "similarities": [[0.0], [0.1], [1.0]],
        "gates": [[0.01], [0.02], [0.97]],
    }
    best = {"bias": 0.4, "temperature": 0.15, "score": 0.14 if scored else None}
    concept = {
        "placeholder": word,
        "superclass": "teddy",
        "learned_from": [PICTURE],
        "rows": rows,
        "best": best,
        "gates": gates,
    }
    training = {
        "steps": 200,
        "train_seconds": 100.0,
        "loss": 0.1,
        "losses": [0.3, 0.2, 0.1],
        "peak_bytes": 5_000_000_000,
        "files": ["1.png"],
        "sizes": "512 x 512",
        "captions": False,
        "settings": {"steps": 200},
        "notes": [],
    }
    return {
        "model": {"name": "v1-5", "family": "Stable Diffusion 1.x"},
        "scored_by": "clip" if scored else "",
        "concepts": [concept],
        "training": [training],
        "looking": {
            **dict.fromkeys(("steps", "cfg", "sampler", "scheduler"), 1),
            "side": 0,
            "seconds": 3.0,
        },
        "versions": {"device": "cpu, 16 GB", "ComfyUI": "0.33.0"},
    }


class Seen(HTMLParser):
    """The elements and the links of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.handlers: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href") and v]
        self.handlers += [k for k, _ in attrs if k.startswith("on")]


def seen(text: str) -> Seen:
    parser = Seen()
    parser.feed(text)
    return parser


@pytest.mark.parametrize("scored", [True, False])
def test_the_page_needs_nothing_beside_it(scored: bool) -> None:
    text = page(found(scored))
    assert all(link.startswith("data:image/") for link in seen(text).links)
    assert not re.search(r"https?://|url\(|@import", text)
    assert ("models/clip_vision" in text) is not scored
    assert ("The front" in text) is scored


def test_words_of_others_are_text_on_the_page() -> None:
    told = found(word="<img/src=x/onerror=alert(1)>")
    told["model"]["name"] = "</title><script>alert(1)</script>"
    told["training"][0]["notes"] = ["<b>bold</b>"]
    parsed = seen(page(told))
    assert parsed.tags.count("script") == 1  # the page's own
    assert not parsed.handlers
    assert "&lt;b&gt;bold&lt;/b&gt;" in page(told)


def test_the_front_is_the_mean_over_prompts_and_seeds() -> None:
    rows = found()["concepts"][0]["rows"]
    rows[1]["identity"] = 0.9
    points = {point["bias"]: point for point in front_of(rows)}
    assert set(points) == {None, 0.4, 0.8}
    assert points[0.4]["identity"] == pytest.approx((0.9 + 0.54) / 2)
    assert front_of(found(scored=False)["concepts"][0]["rows"]) == []


def options(pictures: Path, *words: str) -> argparse.Namespace:
    return command.parser().parse_args(["report", str(pictures), "teddy bear", *words])


def test_any_path_and_word_comes_through_the_manifest(tmp_path: Path) -> None:
    pictures, second = tmp_path / 'Ännes "Bären" \\ usw', tmp_path / "b"
    pictures.mkdir()
    second.mkdir()
    words = ("--second", str(second), "bear", "--steps", "7", "--resolution", "256")
    files = {"unet": [Path("u.safetensors")], "clip": [Path("l"), Path("g")], "vae": [Path("v")]}
    text = manifest_text(options(pictures, *words), ModelEntry("u", files, "sdxl"))
    manifest = tomllib.loads(text)
    assert manifest["concepts"]["first"]["pictures"] == str(pictures)
    # Both are bears, and each has a word of its own.
    assert manifest["concepts"]["first"]["placeholder"] == "bear*"
    assert manifest["concepts"]["second"]["placeholder"] == "bear2*"
    assert manifest["defaults"] == {"model": "model", "steps": 7, "resolution": 256}
    assert manifest["models"]["model"]["clip"] == ["l", "g"]
    with pytest.raises(FleetError, match="is no folder: name one with 4 to 6 pictures"):
        manifest_text(options(tmp_path / "none"), ModelEntry("demo"))
