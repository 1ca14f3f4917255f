"""The attention map, as ComfyUI runs it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.samplers
import nodes as comfy_nodes
import pytest
import torch
from tiny_models import patched_modules, tiny_clip, tiny_concept, tiny_model

Node = Any
PROMPT = "a photo of a teddy* next to a pot*"


@pytest.fixture(scope="module")
def node(nodes: dict[str, Node]) -> Node:
    return nodes["PerfusionAttentionMap"]


class Scene:
    """A small model with the concepts teddy* and pot*, and prompts for it."""

    def __init__(self, core: Callable[[str], Any], applying: Any) -> None:
        concept = core("concept.concept").Concept
        self.bare, clip = tiny_model(), tiny_clip()
        entries = []
        for seed, (placeholder, superclass) in enumerate((("teddy*", "teddy"), ("pot*", "teapot"))):
            plain = tiny_concept(self.bare, clip, placeholder, superclass, seed=seed + 2)
            fields = {name: getattr(plain, name) for name in plain.__dataclass_fields__}
            entries.append(applying.recommended(concept(**fields)))
        self.model = applying.apply_stack(self.bare, entries)
        self.clip = applying.add_concepts(clip, [e.concept for e in entries])

    def encode(self, text: str) -> Any:
        with torch.inference_mode():
            return comfy_nodes.CLIPTextEncode().encode(self.clip, text)[0]

    def sample(self, size: tuple[int, int] = (8, 8), count: int = 1) -> torch.Tensor:
        latents = {"samples": torch.zeros(count, 4, *size)}
        with torch.inference_mode():
            sampled = comfy_nodes.KSampler().sample(
                self.model, 5, 2, 4.0, "euler", "normal", self.encode(PROMPT), self.encode(""),
                latents,
            )  # fmt: skip
        return sampled[0]["samples"]


@pytest.fixture(scope="module")
def scene(core: Callable[[str], Any], applying: Any) -> Scene:
    return Scene(core, applying)


def look(node: Node, scene: Scene, latents: torch.Tensor, prompt: Any = PROMPT, **given: Any):
    count, _, height, width = latents.shape
    inputs = {
        "model": scene.model,
        "positive": scene.encode(prompt) if isinstance(prompt, str) else prompt,
        "latent": {"samples": latents},
        "image": torch.full((count, height * 8, width * 8, 3), 0.5),
        "steps": 2,
        "start": 0.0,
        "end": 1.0,
        "layers": "all",
        **given,
    }
    with torch.inference_mode():
        return node.PREPARE_CLASS_CLONE({}).EXECUTE_NORMALIZED(**inputs).args


@pytest.mark.parametrize(("size", "count"), [((8, 8), 1), ((12, 8), 2), ((7, 13), 1)])
def test_each_concept_of_each_picture_has_a_map_of_the_pictures_shape(
    node: Node, scene: Scene, size: tuple[int, int], count: int
) -> None:
    picture, masks, table = look(node, scene, scene.sample(size, count))
    assert picture.shape[0] == count
    assert masks.shape == (2 * count, size[0] * 8, size[1] * 8)
    assert 0 <= masks.min() <= masks.max() <= 1
    assert masks.amax(dim=(1, 2)).min() > 0.9
    rows = [line.split("\t") for line in table.splitlines()[1:]]
    assert [row[:2] for row in rows] == [
        [str(n + 1), name] for n in range(count) for name in ("teddy*", "pot*")
    ]
    for *_, lowest, mean, highest in rows:
        assert 0 < float(lowest) <= float(mean) <= float(highest) <= 1
    assert not torch.equal(masks[0], masks[1])


def test_the_shares_are_those_of_the_attention_that_comfyui_computes(
    core: Callable[[str], Any], scene: Scene
) -> None:
    recorder = core("comfy.attention_recorder")
    # What ComfyUI's own attention is called with, of the one layer in the middle.
    seen: list[tuple[torch.Tensor, torch.Tensor, int]] = []

    def spy(original: Callable[..., Any], q: Any, k: Any, v: Any, heads: int, **more: Any) -> Any:
        block = more["transformer_options"]["block"]
        if block[0] == "middle" and k.shape[1] != q.shape[1]:
            seen.append((q, k, heads))
        return original(q, k, v, heads, **more)

    model = scene.model.clone()
    options = model.model_options["transformer_options"]
    options["optimized_attention_override"] = spy
    latents = scene.sample((12, 8), 2)
    prompt = scene.encode(PROMPT)
    with torch.inference_mode():
        found = recorder.attention_maps(
            model, prompt, {"samples": latents}, recorder.AttentionScope(2, group="middle")
        )
    assert len(seen) == 2
    tokens = [token for token, *_ in scene.clip.tokenize(PROMPT)["l"][0]]
    teddy, pot = (n for n, token in enumerate(tokens) if torch.is_tensor(token))
    expected = torch.zeros(2, 2, 6, 4)
    for q, k, heads in seen:
        q, k = (t.unflatten(-1, (heads, -1)).movedim(2, 1) for t in (q, k))
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1).mean(dim=1)
        expected += torch.stack([weights[..., teddy], weights[..., pot]], 1).unflatten(-1, (6, 4))
    wanted = torch.nn.functional.interpolate(expected / 2, (12, 8), mode="bilinear")
    torch.testing.assert_close(found.shares, wanted, atol=1e-5, rtol=1e-4)


def test_looking_changes_nothing(node: Node, scene: Scene) -> None:
    before = scene.sample()
    kept = before.clone()
    first = look(node, scene, before)
    assert torch.equal(before, kept)
    assert patched_modules(scene.model) == []
    assert torch.equal(scene.sample(), before)
    again = look(node, scene, before)
    assert torch.equal(first[1], again[1])
    assert torch.equal(first[0], again[0])


def test_layers_and_the_part_of_the_sampling_are_a_choice(node: Node, scene: Scene) -> None:
    latents = scene.sample()
    all_layers = look(node, scene, latents)[1]
    for group in ("down", "middle", "up"):
        assert not torch.equal(look(node, scene, latents, layers=group)[1], all_layers)
    assert not torch.equal(look(node, scene, latents, start=0.7)[1], all_layers)


def test_a_concept_that_the_prompt_does_not_name_is_said_to_be_absent(
    node: Node, scene: Scene
) -> None:
    _, masks, table = look(node, scene, scene.sample(), "a photo of a teddy* in a long, long line")
    assert masks[0].any()
    assert not masks[1].any()
    assert table.splitlines()[2] == "1\tpot*\t-\t-\t-"


def test_prompts_for_an_area_are_left_out_and_that_is_said(
    node: Node, scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    area = comfy_nodes.ConditioningSetArea().append(scene.encode("a pot*"), 32, 64, 32, 0, 1.0)[0]
    whole = scene.encode("a photo of a teddy*")
    latents = scene.sample()
    alone = look(node, scene, latents, whole)
    assert "part of the picture" not in caplog.text
    assert torch.equal(look(node, scene, latents, whole + area)[1], alone[1])
    assert "prompts for a part of the picture are not in the attention map" in caplog.text
    with pytest.raises(ValueError, match="No prompt is for the whole picture"):
        look(node, scene, latents, area)


def test_what_does_not_go_together_is_refused(node: Node, scene: Scene) -> None:
    latents = scene.sample(count=2)
    with pytest.raises(ValueError, match="no Perfusion concept whose attention"):
        look(node, scene, latents, model=scene.bare)
    with pytest.raises(ValueError, match="2 latents and 1 pictures"):
        look(node, scene, latents, image=torch.zeros(1, 64, 64, 3))
    with pytest.raises(ValueError, match="start at 0.6 of the sampling and end before"):
        look(node, scene, latents, start=0.6, end=0.5)


def test_cancel_stops_between_steps_and_leaves_nothing(
    node: Node, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, int]] = []

    def cancel(value: int, total: int, *_: Any, **__: Any) -> None:
        told.append((value, total))
        comfy.model_management.interrupt_current_processing(True)

    latents = scene.sample()
    monkeypatch.setattr("comfy.utils.PROGRESS_BAR_HOOK", cancel)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        look(node, scene, latents, steps=5)
    assert told == [(1, 5)]
    assert patched_modules(scene.model) == []
    comfy.model_management.interrupt_current_processing(False)


def test_a_prompt_that_comfyui_runs_on_a_copy_of_the_model_is_mapped_there(
    node: Node, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    latents = scene.sample()
    expected = look(node, scene, latents)[2]
    ready = comfy.samplers.CFGGuider.inner_set_conds
    copies: list[Any] = []

    def on_a_copy(guider: Any, conds: Any) -> None:
        # As newer versions of ComfyUI do for a prompt with hooks where dynamic VRAM is on.
        copy = tiny_model()
        for name in ("attachments", "wrappers", "model_options"):
            setattr(copy, name, getattr(guider.model_patcher, name))
        guider.model_patcher = copy
        copies.append(copy)
        ready(guider, conds)

    monkeypatch.setattr(comfy.samplers.CFGGuider, "inner_set_conds", on_a_copy)
    assert look(node, scene, latents)[2] == expected
    (copy,) = copies
    assert patched_modules(copy) == patched_modules(scene.model) == []
