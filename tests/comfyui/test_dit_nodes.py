"""The pack's nodes on transformers, called as ComfyUI calls them: from pictures to a sweep."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import nodes as comfy_nodes
import pytest
import torch
from dit_work import PROMPT
from tiny_dits import TinyDit, TinyVae
from tiny_models import patched_modules


@pytest.fixture(autouse=True)
def known_to_the_pack(
    dit: TinyDit, core: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """The same small family, of the pack as ComfyUI imports it; and few steps of sampling."""
    families = core("families")
    true = families.FAMILIES[dit.family.id.removeprefix("tiny_")]
    small = dit.family
    changes = {"encoders": dict(small.encoders), "resolution": small.resolution}
    families.register(replace(true, id=small.id, **changes))
    monkeypatch.setattr(core("comfy.painter"), "STEPS", 2)
    yield
    del families._families[dit.family.id]


def run(node: Any, listed: bool = False, **given: Any) -> tuple[Any, ...]:
    if listed:
        given = {name: [value] for name, value in given.items()}
    with torch.inference_mode():
        output: tuple[Any, ...] = node.PREPARE_CLASS_CLONE({}).EXECUTE_NORMALIZED(**given).args
        return output


def test_the_nodes_work_from_pictures_to_a_sweep(
    dit: TinyDit, dit_model: Any, dit_clip: Any, nodes: dict[str, Any]
) -> None:
    pixels = dit.side * dit.family.pixels
    (covariance,) = run(
        nodes["PerfusionCovariance"],
        listed=True,
        clip=dit_clip,
        captions="a red house\na dog on a hill",
        model=dit_model,
    )
    assert covariance.family == dit.family.id
    entry, plot, sheet = run(
        nodes["PerfusionTrainConcept"],
        listed=True,
        model=dit_model,
        clip=dit_clip,
        vae=TinyVae(dit),
        images=torch.rand(3, pixels, pixels, 3, generator=torch.Generator().manual_seed(0)),
        placeholder="teddy*",
        superclass="teddy",
        steps=2,
        batch_size=2,
        seed=1,
        preview_every=1,
        covariance=covariance,
    )
    assert entry.concept.family == dit.family.id
    assert plot.shape[-1] == sheet.shape[-1] == 3

    picture, table = run(
        nodes["PerfusionGateInspector"], stack=entry, clip=dit_clip, text=PROMPT, model=dit_model
    )
    assert picture.shape[-1] == 3
    assert "teddy*" in table

    on, clip = run(nodes["PerfusionApplyConcepts"], model=dit_model, clip=dit_clip, stack=entry)[:2]
    with torch.inference_mode():
        texts = [comfy_nodes.CLIPTextEncode().encode(clip, t)[0] for t in (PROMPT, "blurry")]
    grid, cells = run(
        nodes["PerfusionSweep"],
        model=on,
        vae=TinyVae(dit),
        positive=texts[0],
        negative=texts[1],
        latent_image={"samples": torch.zeros(dit.shape())},
        biases="0.2, 0.6",
        temperatures="0.15",
        seed=1,
        steps=1,
        cfg=2.0,
        sampler_name="euler",
        scheduler="normal",
    )
    assert cells.shape == (2, pixels, pixels, 3)
    assert grid.shape[-1] == 3

    for frames in (1, 3) if dit.family.frames else (1,):
        latent = {"samples": torch.randn(dit.shape(1, frames))}
        # As many as ComfyUI's VAE makes of it.
        pictures = torch.rand(4 * frames - 3, pixels, pixels, 3)
        strip, masks, _ = run(
            nodes["PerfusionAttentionMap"],
            model=on,
            positive=texts[0],
            latent=latent,
            image=pictures,
            steps=1,
            start=0.0,
            end=1.0,
            layers="up",
        )
        assert len(strip) == len(masks) == frames
    assert patched_modules(dit_model) == []
