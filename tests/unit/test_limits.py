"""What a file, a field or a prompt says decides neither memory nor time: see `limits`."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from perfusion_core.concept.concept import Concept, ConceptError
from perfusion_core.concept.concept_file import (
    load_concept,
    read_card,
    save_concept,
    save_new_concept,
)
from perfusion_core.draw.gate_table import TokenGates
from perfusion_core.draw.plots import labelled_grid
from perfusion_core.limits import (
    MAX_BARS,
    MAX_ENTRY,
    MAX_FIELD,
    MAX_FILE,
    MAX_GRID,
    MAX_LAYERS,
    MAX_TABLED,
)
from perfusion_core.method.settings import ConceptSettings, parse_layer_weights
from perfusion_core.method.slider_schedule import Sliders, parse_recorded

MakeConcept = Callable[..., Concept]
SLIDERS = Sliders(0.6, 0.15, 1.0)


def seconds(work: Callable[[], object]) -> float:
    begun = time.process_time()
    with contextlib.suppress(ValueError):
        work()
    return time.process_time() - begun


def refusal(work: Callable[[], object]) -> str:
    """What work is refused with; "" when it is done."""
    try:
        work()
    except ValueError as error:
        return str(error)
    return ""


# --- fields


@pytest.mark.parametrize(
    "text",
    [
        " " * 2_000_000,
        " " * 2_000_000 + "x",
        "9" * 2_000_000,
        ";" * 2_000_000,
        "9: 0.6, 0.15, 1;" * 200_000,
        ":" * 2_000_000,
        "," * 2_000_000,
        "9:" + " " * 2_000_000 + ",,",
        "1-1:1," * 400_000,
        "1" * 5_000 + ": 1",
        "1-" + " " * 2_000_000,
    ],
    ids=lambda text: f"{text[:6]!r} ...",
)
@pytest.mark.parametrize("read", [parse_recorded, parse_layer_weights])
def test_a_field_of_millions_of_letters_is_refused_at_once(
    read: Callable[..., object], text: str
) -> None:
    more: object = SLIDERS if read is parse_recorded else ["a", "b"]
    assert seconds(lambda: read(text, more)) < 1.0
    said = refusal(lambda: read(text, more))
    assert len(said) < 1000
    assert "digits" not in said  # Python's own words for numbers of that length


@pytest.mark.parametrize("part", ["9: 0.6, 0.15", "9: 0.6, 0.15, 1, 1", "9, 0.6, 0.15, 1", "::::"])
def test_an_entry_of_another_form_is_named(part: str) -> None:
    with pytest.raises(ValueError, match=f'the move "{part}" cannot be read'):
        parse_recorded(part, SLIDERS)


def test_a_field_that_is_too_long_says_how_long_it_may_be() -> None:
    with pytest.raises(ValueError, match=f"at most {MAX_FIELD}"):
        parse_layer_weights("1: 1," * MAX_FIELD, ["a"])


# --- the gate inspector's table and picture


def gates(tokens: int, concepts: int) -> TokenGates:
    numbers = torch.linspace(0, 1, tokens)[:, None].expand(-1, concepts)
    words, names = [f"w{n}" for n in range(tokens)], [f"c{n}*" for n in range(concepts)]
    return TokenGates(words, names, numbers, numbers, [ConceptSettings()] * concepts)


@pytest.mark.parametrize(("tokens", "concepts"), [(50_000, 1), (50_000, 8), (300, 1000)])
def test_a_long_prompt_makes_a_picture_of_bounded_size(tokens: int, concepts: int) -> None:
    picture = gates(tokens, concepts).picture()
    assert picture.numel() * 4 < 300e6
    # As high as one of that many bars, or of one token with all concepts.
    at_most = gates(max(1, MAX_BARS // concepts), concepts).picture()
    assert picture.shape == at_most.shape


def test_the_tokens_that_open_a_gate_are_those_that_are_drawn_and_it_is_said() -> None:
    found = gates(MAX_BARS + 500, 1)
    assert found._drawn() == list(range(500, MAX_BARS + 500))
    short = gates(MAX_BARS, 1)
    assert short._drawn() == list(range(MAX_BARS))
    # The head of the picture has more to say.
    ink = [(one.picture()[0, 10:24] < 0.9).sum() for one in (found, short)]
    assert ink[0] > ink[1]


def test_a_table_ends_with_what_was_left_out() -> None:
    lines = gates(MAX_TABLED + 7, 1).table().splitlines()
    assert len(lines) == MAX_TABLED + 2
    assert lines[-1] == f"... and 7 more tokens; at most {MAX_TABLED} are listed"
    assert "more tokens" not in gates(MAX_TABLED, 1).table()


# --- grids


def test_a_grid_of_large_pictures_is_drawn_smaller_and_says_so() -> None:
    side = 2048
    cells = torch.rand(1, side, side, 3).expand(25, -1, -1, -1)
    grid = labelled_grid(cells, ["b"] * 5, ["t"] * 5, "seed 1")
    assert grid.shape[1] * grid.shape[2] < 1.5 * MAX_GRID
    small = labelled_grid(cells[:1, :64, :64], ["b"], ["t"], "seed 1")
    assert small.shape[1:3] > (64, 64)


# --- concept files


@pytest.mark.parametrize("field", ["author", "licence", "name"])
def test_what_no_loader_would_read_is_not_saved(
    make_concept: MakeConcept, tmp_path: Path, field: str
) -> None:
    concept = replace(make_concept(), **{field: "x" * (MAX_ENTRY + 1)})
    for save in (save_concept, save_new_concept):
        with pytest.raises(ConceptError, match=rf"{field} has {MAX_ENTRY + 1} letters"):
            save(concept, tmp_path / "c.safetensors")
    assert not list(tmp_path.iterdir())
    fits = replace(concept, **{field: "x" * MAX_ENTRY})
    save_concept(fits, tmp_path / "c.safetensors")
    assert getattr(load_concept(tmp_path / "c.safetensors"), field) == "x" * MAX_ENTRY


MEASURED = """
import resource, sys, time
from pathlib import Path
from perfusion_core.concept.concept_file import load_concept, read_card
path = Path(sys.argv[1])
def most():
    # Of this process alone: getrusage counts what the parent had when it was forked.
    lines = open("/proc/self/status").read().splitlines()
    return int(next(l for l in lines if l.startswith("VmHWM")).split()[1]) / 1024
for small in sys.argv[2:]:
    load_concept(Path(small))
before, begun = most(), time.process_time()
try:
    load_concept(path)
    told = "loaded"
except ValueError as error:
    told = str(error)
print(time.process_time() - begun, most() - before, told)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no figures of memory here")
@pytest.mark.parametrize("size", ["small layers", "15 MB", "64 MB"])
def test_a_file_of_many_layers_loads_or_is_refused_within_bounds(
    make_concept: MakeConcept, tmp_path: Path, size: str
) -> None:
    """Up to 64 MB and 4,096 layers: 0.5 s and 100 MB."""
    out = {"small layers": 32, "15 MB": 1800, "64 MB": 7800}[size]
    value = torch.randn(out).half()
    layers = {
        f"input_blocks.{n % 9}.1.transformer_blocks.{n // 9}.attn2": value
        for n in range(MAX_LAYERS)
    }
    small, path = tmp_path / "small.safetensors", tmp_path / "c.safetensors"
    save_concept(make_concept(), small)
    save_concept(replace(make_concept(), values=layers), path)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", MEASURED, str(path), str(small)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    took, memory, told = done.stdout.split(" ", 2)
    assert float(took) < 0.5
    assert float(memory) < 100
    expected = "at most 17 are read" if size == "64 MB" else "loaded"
    assert expected in told


def test_the_bound_of_a_file_is_said_in_megabytes(
    make_concept: MakeConcept, tmp_path: Path
) -> None:
    path = tmp_path / "c.safetensors"
    save_concept(make_concept(), path)
    with path.open("r+b") as file:
        file.truncate(MAX_FILE + 1)
    for read in (load_concept, read_card):
        with pytest.raises(ConceptError, match=r"has 17 MB; .* at most 17 are read"):
            read(path)
