"""Video models that learn from pictures: a concept is in every frame, as float64 has it."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from dit_work import PROMPT, learned, sampled
from projections import error
from tiny_dits import LTX, WAN, WAN_5B, TinyDit, registered
from torch import Tensor

from perfusion_core.comfy.concept_entry import ConceptEntry
from perfusion_core.comfy.differentiable import Differentiable
from perfusion_core.comfy.encoding import encode
from perfusion_core.comfy.pictures import Picture, bring_to_size
from perfusion_core.comfy.prompts import add_concepts
from perfusion_core.comfy.stack import apply_stack
from perfusion_core.concept.concept import Concept
from perfusion_core.families import FAMILIES
from perfusion_core.method.settings import ConceptSettings

ON = ConceptSettings(0.3, 0.15)
FRAMES = 9


@pytest.fixture(scope="module", params=[WAN, WAN_5B, LTX], ids=lambda dit: dit.family.id)
def dit(request: pytest.FixtureRequest) -> Iterator[TinyDit]:
    with registered(request.param.family):
        yield request.param


def passes(model: Any, clip: Any) -> list[tuple[dict[str, Any], Tensor]]:
    """(what the network was given of a video, what it gave) at each pass of a step."""
    network, seen = model.model.diffusion_model, list[tuple[dict[str, Any], Tensor]]()

    def note(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        given = {**dict(zip(("x", "timestep"), args, strict=False)), **kwargs}
        kept = {name: v.clone() for name, v in given.items() if torch.is_tensor(v)}
        seen.append((kept, output.clone()))

    handle = network.register_forward_hook(note, with_kwargs=True)
    try:
        sampled(model, clip, frames=FRAMES, steps=1)
    finally:
        handle.remove()
    return seen


def in_float64(dit: TinyDit, model: Any, given: dict[str, Any], concept: Concept | None) -> Tensor:
    """What the network gives, in float64, for the text after the edit."""
    network = deepcopy(model.model.diffusion_model).double()
    network.dtype = torch.float64
    if hasattr(network, "patch_embedding"):  # Wan has it in fp32
        network.patch_embedding.float()
    text = given["context"].double()
    if concept is not None:
        target, whitened = concept.target_input.double(), concept.whitened_target.double()
        similarity = text @ whitened / (target @ whitened)
        gate = torch.sigmoid((similarity - ON.bias) / ON.temperature) * text.any(dim=-1)
        gate, superclass = gate[..., None], concept.superclass_encoding.double()
        text = text + gate * (superclass - similarity[..., None] * target)
        for path, value in concept.values.items():
            layer = getattr(network.get_submodule(path), dit.family.attention.value)
            more = gate * value.double()
            layer.register_forward_hook(lambda _, __, out, more=more: out + more)
    kept = {name: given[name] for name in dit.family.beside if name in given}
    with Differentiable(overwrites=True):  # comfy-kitchen's functions have no float64
        found: Tensor = network(given["x"].double(), given["timestep"].double(), text, **kept)
    return found.detach()


def test_a_concept_of_pictures_is_in_every_frame_as_float64_has_it(dit: TinyDit) -> None:
    model, clip = dit.model(), dit.clip()
    teddy = learned(model, clip, embedding_rate=0.05, ema=0.0, steps=4)
    knowing = add_concepts(clip, [teddy])
    on = apply_stack(model, [ConceptEntry(teddy, ON)])
    with torch.inference_mode():
        text = encode(knowing, [PROMPT]).context
    seen = passes(on, knowing)
    assert seen
    of_the_prompt = 0
    for given, output in seen:
        assert output.shape[2] == FRAMES
        expected = in_float64(dit, model, given, teddy)
        plain = in_float64(dit, model, given, None)
        for row in range(len(output)):
            its = any(torch.equal(given["context"][row], one) for one in text)
            of_the_prompt += its
            for frame in range(FRAMES):
                exact = expected[row, :, frame]
                assert error(output[row, :, frame], exact) < 2e-5, (row, frame)
                if its:
                    assert error(plain[row, :, frame], exact) > 1e-3, (row, frame)
    assert of_the_prompt


def test_pictures_are_cut_to_whole_cells(dit: TinyDit) -> None:
    cells = {"tiny_wan21": 8, "tiny_wan22_5b": 16, "tiny_ltxv": 32}
    cell = dit.family.cell
    assert cell == cells[dit.family.id] == FAMILIES[dit.family.id.removeprefix("tiny_")].cell
    pictures = [Picture(torch.rand(3, high, wide)) for wide, high in ((333, 200), (200, 333))]
    for some in (pictures, pictures[:1]):
        for resolution in (0, 200):
            sized, _ = bring_to_size(some, 640, resolution, cell)
            assert {side % cell for picture in sized for side in picture.size} == {0}
