"""The gate inspector and the sweep, as ComfyUI runs them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import comfy.model_management
import nodes as comfy_nodes
import pytest
import torch
from tiny_models import patched_modules, tiny_clip, tiny_concept, tiny_model

Node = Any


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


@pytest.fixture(scope="module")
def clip() -> Any:
    return tiny_clip()


@pytest.fixture(scope="module")
def entries(core: Callable[[str], Any], applying: Any, model: Any, clip: Any) -> list[Any]:
    """Two concepts of the pack's own classes, of random values."""
    concept = core("concept.concept").Concept
    made = []
    for seed, (placeholder, superclass) in enumerate((("teddy*", "teddy"), ("pot*", "teapot"))):
        plain = tiny_concept(model, clip, placeholder, superclass, seed=seed + 2)
        fields = {name: getattr(plain, name) for name in plain.__dataclass_fields__}
        made.append(applying.recommended(concept(**fields)))
    return made


def call(node: Node, **inputs: Any) -> Any:
    with torch.inference_mode():
        return node.PREPARE_CLASS_CLONE({}).EXECUTE_NORMALIZED(**inputs)


def rows(table: str) -> list[list[str]]:
    return [line.split("\t") for line in table.splitlines()]


def test_the_inspector_shows_every_token_and_the_placeholder_opens_its_own_gate(
    nodes: dict[str, Node], entries: list[Any], clip: Any
) -> None:
    inspector = nodes["PerfusionGateInspector"]
    text = "a photo of a teddy* in a (pot*:1.2), blue"
    picture, table = call(inspector, stack=tuple(entries), clip=clip, text=text).args
    head, *lines = rows(table)
    names = ["teddy* similarity", "teddy* gate", "pot* similarity", "pot* gate"]
    assert head == ["token", *names]
    words = "<start> a photo of a teddy* in a pot* , blue <end>"
    assert [line[0] for line in lines] == words.split()
    by_word = {line[0]: [float(v) for v in line[1:]] for line in lines}
    similarity, gate, _, other = by_word["teddy*"]
    assert similarity == pytest.approx(1, abs=2e-3)
    assert gate == pytest.approx(1 / (1 + 2.718281828 ** (-(similarity - 0.6) / 0.15)), abs=2e-3)
    assert other < 0.5
    assert by_word["blue"][1] < 0.5
    assert picture.shape[0] == 1
    assert picture.shape[1] > len(lines) * 20
    assert picture.std() > 0.05


def test_the_inspector_takes_one_concept_and_a_prompt_of_several_chunks(
    nodes: dict[str, Node], entries: list[Any], clip: Any
) -> None:
    text = "a red ball " * 40 + "teddy*"
    _, table = call(nodes["PerfusionGateInspector"], stack=entries[0], clip=clip, text=text).args
    words = [line[0] for line in rows(table)[1:]]
    assert words.count("ball") == 40
    assert words.count("teddy*") == 1
    assert words.count("<start>") == 2
    with pytest.raises(ValueError, match="no concept to look at"):
        call(nodes["PerfusionGateInspector"], stack=(), clip=clip, text=text)


class Decoder:
    """In place of ComfyUI's VAE: latents as they are, as pictures."""

    def decode(self, samples: torch.Tensor) -> torch.Tensor:
        return (samples[:, :3].movedim(1, -1) / 20 + 0.5).clamp(0, 1)


def sweep(
    nodes: dict[str, Node], applying: Any, model: Any, clip: Any, entries: list[Any], **given: Any
) -> Any:
    knowing = applying.add_concepts(clip, [e.concept for e in entries])
    with torch.inference_mode():
        positive, negative = (
            comfy_nodes.CLIPTextEncode().encode(knowing, t)[0] for t in ("a teddy*", "")
        )
    inputs = {
        "model": applying.apply_stack(model, entries),
        "vae": Decoder(),
        "positive": positive,
        "negative": negative,
        "latent_image": {"samples": torch.zeros(2, 4, 8, 8)},
        "biases": "0.2, 0.9",
        "temperatures": "0.1, 0.3",
        "seed": 5,
        "steps": 2,
        "cfg": 4.0,
        "sampler_name": "euler",
        "scheduler": "normal",
        **given,
    }
    return call(nodes["PerfusionSweep"], **inputs)


def test_a_cell_of_the_sweep_is_the_picture_of_its_settings(
    nodes: dict[str, Node], applying: Any, model: Any, clip: Any, entries: list[Any]
) -> None:
    grid, cells = sweep(nodes, applying, model, clip, entries).args
    assert cells.shape == (4, 8, 8, 3)
    assert grid.shape[0] == 1
    alone = sweep(nodes, applying, model, clip, entries, biases="0.9", temperatures="0.3").args[1]
    assert torch.equal(alone[0], cells[3])
    assert not torch.equal(cells[0], cells[1])
    assert not torch.equal(cells[0], cells[2])
    assert patched_modules(model) == []


def test_a_picture_of_the_sweep_is_ksamplers_also_of_a_masked_one_of_a_batch(
    nodes: dict[str, Node], applying: Any, model: Any, clip: Any, entries: list[Any]
) -> None:
    knowing = applying.add_concepts(clip, [e.concept for e in entries])
    left = torch.zeros(1, 1, 8, 8)
    left[..., :4] = 1
    latent = {
        "samples": torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)),
        "noise_mask": left,
        "batch_index": [3],
    }
    given = {"biases": "0.9", "temperatures": "0.3", "latent_image": latent}
    swept = sweep(nodes, applying, model, clip, entries, **given).args[1]
    tuned = applying.tune(
        applying.apply_stack(model, entries), "", lambda s: replace(s, bias=0.9, temperature=0.3)
    )
    with torch.inference_mode():
        positive, negative = (
            comfy_nodes.CLIPTextEncode().encode(knowing, t)[0] for t in ("a teddy*", "")
        )
        alone = comfy_nodes.KSampler().sample(
            tuned, 5, 2, 4.0, "euler", "normal", positive, negative, latent
        )[0]["samples"]
    assert torch.equal(swept, Decoder().decode(alone))


def test_the_sweep_decodes_when_all_is_sampled(
    nodes: dict[str, Node], applying: Any, model: Any, clip: Any, entries: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """So that a model and an autoencoder that do not fit side by side change places once."""
    order: list[str] = []

    class Watched(Decoder):
        def decode(self, samples: torch.Tensor) -> torch.Tensor:
            order.append("decode")
            return super().decode(samples)

    monkeypatch.setattr("comfy.utils.PROGRESS_BAR_HOOK", lambda *_, **__: order.append("step"))
    sweep(nodes, applying, model, clip, entries, vae=Watched())
    assert order.count("decode") == 4
    assert "step" in order
    assert "step" not in order[order.index("decode") :]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"biases": "0.4, high"}, '"high" in biases is not a number'),
        ({"temperatures": " , "}, "no number in temperatures"),
        ({"temperatures": "0"}, "temperature is 0.0; it must be above 0"),
        ({"biases": ",".join(["1"] * 51), "temperatures": "1, 2"}, "are 102 pictures; at most 100"),
        ({"concept": "cup*"}, 'no concept called "cup\\*"'),
    ],
)
def test_a_sweep_that_cannot_be_is_refused(
    nodes: dict[str, Node], applying: Any, model: Any, clip: Any, entries: list[Any],
    given: dict[str, str], reason: str,
) -> None:  # fmt: skip
    with pytest.raises(ValueError, match=reason):
        sweep(nodes, applying, model, clip, entries, **given)


def test_the_sweep_has_one_progress_bar_and_stops_at_cancel(
    nodes: dict[str, Node], applying: Any, model: Any, clip: Any, entries: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(
        "comfy.utils.PROGRESS_BAR_HOOK", lambda value, total, *_, **__: told.append((value, total))
    )
    sweep(nodes, applying, model, clip, entries)
    assert {total for _, total in told} == {8}
    assert told[-1][0] == 8

    def cancel(value: int, *_: Any, **__: Any) -> None:
        told.append((value, 0))
        comfy.model_management.interrupt_current_processing(True)

    told.clear()
    monkeypatch.setattr("comfy.utils.PROGRESS_BAR_HOOK", cancel)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sweep(nodes, applying, model, clip, entries)
    assert len(told) == 1
    comfy.model_management.interrupt_current_processing(False)
