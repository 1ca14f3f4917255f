"""A compiled model: concepts work on it, and a slider does not compile it anew."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import nodes
import pytest
import torch
from comfy_extras.nodes_torch_compile import TorchCompileModel
from other_packs import run_node
from tiny_models import sample, tiny_clip, tiny_concept, tiny_model

from perfusion_core.comfy.attention_recorder import AttentionScope, attention_maps
from perfusion_core.comfy.concept_entry import ConceptEntry
from perfusion_core.comfy.prompts import add_concepts
from perfusion_core.comfy.stack import apply_stack, tune
from perfusion_core.method.settings import ConceptSettings, KeyLock, LayerWeights

ON = ConceptSettings(0.5, 0.15)
# One level: compiling is what takes the time here.
SMALL = {
    "channel_mult": [1],
    "num_res_blocks": [1],
    "transformer_depth": [1],
    "transformer_depth_output": [1, 1],
}


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """Without torch's limit, beyond which it stops compiling and nothing would be counted."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=1000, accumulated_recompile_limit=10000):
        yield
    torch._dynamo.reset()


class Compiler:
    """A backend that runs graphs as they are, and counts them."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.graphs += 1
        return graph.forward

    def on(self, model: Any) -> Any:
        """What ComfyUI's TorchCompileModel gives."""
        return run_node(TorchCompileModel, model=model, backend=self)[0]


@pytest.mark.parametrize(("before", "lock"), [(True, KeyLock.LOCAL), (False, KeyLock.GLOBAL)])
def test_a_slider_compiles_nothing(before: bool, lock: KeyLock) -> None:
    model, clip = tiny_model(**SMALL), tiny_clip()
    entries = [
        ConceptEntry(tiny_concept(model, clip), replace(ON, key_lock=lock)),
        ConceptEntry(tiny_concept(model, clip, "pot*", "teapot", seed=7), ON),
    ]
    knowing = add_concepts(clip, [e.concept for e in entries], [lock, KeyLock.LOCAL])
    text = "a teddy* in a pot*"
    compiler = Compiler()
    plain = apply_stack(model, entries)
    on = apply_stack(compiler.on(model), entries) if before else compiler.on(plain)
    assert torch.allclose(sample(on, knowing, text), sample(plain, knowing, text), atol=1e-3)
    once = compiler.graphs
    assert once > 0
    pictures = []
    for which, moved in (
        ("", {"bias": 0.3, "temperature": 0.1, "strength": 1.0}),
        ("", {"bias": 0.8, "temperature": 0.3, "strength": 0.4}),
        ("", {"bias": 0.5, "temperature": 0.15, "strength": 1.7}),
        ("pot*", {"strength": 0.3}),
        ("", {"layers": LayerWeights(down=0.5)}),
        ("", {"layers": LayerWeights(down=0.7, middle=1.5, up=0.2)}),
    ):

        def change(settings: ConceptSettings, new: Any = moved) -> Any:
            return replace(settings, **new)

        pictures.append(sample(tune(on, which, change), knowing, text))
        expected = sample(tune(plain, which, change), knowing, text)
        assert torch.allclose(pictures[-1], expected, atol=1e-3)
        assert not torch.allclose(pictures[0], pictures[-1], atol=1e-2) or len(pictures) == 1
    assert compiler.graphs == once


def test_the_stock_graph_is_not_compiled_again_after_a_concept() -> None:
    model, clip = tiny_model(**SMALL), tiny_clip()
    teddy = tiny_concept(model, clip)
    knowing = add_concepts(clip, [teddy])
    compiler = Compiler()
    compiled = compiler.on(model)
    stock = sample(compiled, knowing)
    sample(apply_stack(compiled, [ConceptEntry(teddy, ON)]), knowing)
    before = compiler.graphs
    assert torch.equal(sample(compiled, knowing), stock)
    assert compiler.graphs == before


def test_an_attention_map_of_a_compiled_model_is_that_of_the_model_and_compiles_nothing() -> None:
    model, clip = tiny_model(**SMALL), tiny_clip()
    teddy = tiny_concept(model, clip)
    knowing = add_concepts(clip, [teddy])
    plain = apply_stack(model, [ConceptEntry(teddy, ON)])
    compiler = Compiler()
    compiled = compiler.on(plain)
    latent = {"samples": sample(compiled, knowing)}
    before = compiler.graphs
    assert before > 0
    with torch.inference_mode():
        prompt = nodes.CLIPTextEncode().encode(knowing, "a photo of a teddy*")[0]
        scope = AttentionScope(2)
        maps = [attention_maps(m, prompt, latent, scope).shares for m in (compiled, plain)]
    assert maps[0].any()
    torch.testing.assert_close(*maps)
    assert compiler.graphs == before
