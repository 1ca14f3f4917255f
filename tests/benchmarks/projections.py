"""Keys and values of one pass: SD 1.5's 32 projections, stock, ours, perfusion-pytorch's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import comfy.ops
import torch
from perfusion_pytorch_edit import covariance, edit_module, is_installed
from torch import Tensor
from true_models import CPU, fill, random_concept, true_model

from perfusion_core.comfy.forward_patch import Differences, edited
from perfusion_core.comfy.models import Layer, detect_family, layers_of
from perfusion_core.concept.concept import Concept
from perfusion_core.method.edit import GatedEdit
from perfusion_core.method.settings import ConceptSettings

from .measure import Result, in_turn, timed

BATCH, TOKENS = 2, 77


class Projections:
    """SD 1.5's key and value projections at their true shapes, and concepts for them."""

    def __init__(self, concepts: int) -> None:
        shapes = true_model("SD15")
        family = detect_family(shapes)
        self.layers: dict[str, Layer] = {}
        for path, layer in layers_of(shapes, family).items():
            made = [
                comfy.ops.disable_weight_init.Linear(layer.text_width, layer.out, bias=False)
                for _ in ("key", "value")
            ]
            for linear in made:
                fill(linear, seed=len(self.layers))
            self.layers[path] = Layer(made[0], made[1], layer.text_width, layer.out)
        outs = {path: layer.out for path, layer in self.layers.items()}
        self.concepts: list[Concept] = [
            random_concept(family, outs, f"word{j}*", seed=j) for j in range(concepts)
        ]
        self.context = torch.randn(BATCH, TOKENS, family.context_width)

    def run(self) -> Tensor:
        """One pass; of what it gives only the last is kept, as in a model."""
        for layer in self.layers.values():
            keys, values = layer.key(self.context), layer.value(self.context)
        del keys
        return values


class Ours:
    """The projections under the hooks, with everything that is done for each pass."""

    def __init__(self, projections: Projections, concepts: int) -> None:
        chosen = projections.concepts[:concepts]
        self.projections = projections
        self.edit = GatedEdit(
            torch.stack([c.target_input for c in chosen]),
            torch.stack([c.whitened_target for c in chosen]),
            torch.stack([c.superclass_encoding for c in chosen]),
            [ConceptSettings()] * concepts,
        )
        self.edits = dict.fromkeys(projections.layers, self.edit)
        self.differences = Differences(
            {path: torch.stack([c.values[path] for c in chosen]) for path in projections.layers}
        )

    def run(self) -> Tensor:
        layers = self.projections.layers
        with edited(layers, self.edits, self.differences, CPU, torch.float32):
            return self.projections.run()


class PerfusionPytorch:
    """perfusion-pytorch's modules on the same weights."""

    def __init__(self, projections: Projections) -> None:
        concepts = projections.concepts
        inputs = torch.stack([c.target_input.float() for c in concepts])
        superclasses = torch.stack([c.superclass_encoding.float() for c in concepts])
        C = covariance()
        self.context = projections.context
        self.modules: list[tuple[Any, Any]] = []
        for path, layer in projections.layers.items():
            keys, values = (superclasses @ part.weight.T for part in (layer.key, layer.value))
            values = values + torch.stack([c.values[path].float() for c in concepts])
            self.modules.append(
                (
                    edit_module(layer.key, C, inputs, keys, keys=True),
                    edit_module(layer.value, C, inputs, values, keys=False),
                )
            )

    def run(self, concepts: int) -> Tensor:
        # One concept takes another way through it than a tuple of one.
        which = 0 if concepts == 1 else tuple(range(concepts))
        for key, value in self.modules:
            keys = key(self.context, concept_id=which)
            values: Tensor = value(self.context, concept_id=which)
        del keys
        return values


@torch.inference_mode()
def measure(runs: int, counts: Sequence[int] = (1, 2, 4, 8, 16)) -> Iterator[Result]:
    """Ours and perfusion-pytorch's against stock, for each number of concepts."""
    projections = Projections(max(counts))
    theirs = PerfusionPytorch(projections) if is_installed() else None
    what = f"SD 1.5's 32 projections of {BATCH} x {TOKENS} tokens, fp32"
    for count in counts:
        ours = Ours(projections, count)
        assert not torch.equal(ours.run(), projections.run())
        candidates = {"stock": timed(projections.run), "ours": timed(ours.run)}
        if theirs is not None:
            candidates["perfusion-pytorch"] = timed(lambda count=count: theirs.run(count))
        found = {name: 1000 * s for name, s in in_turn(candidates, runs, warmups=2).items()}
        yield Result(
            f"kv_projections_{count}",
            f"{what}; {count} concepts",
            found["ours"],
            found["stock"],
            "stock",
            runs=runs,
        )
        if theirs is not None:
            yield Result(
                f"perfusion_pytorch_kv_projections_{count}",
                f"perfusion-pytorch, {count} concepts",
                found["perfusion-pytorch"],
                found["stock"],
                "stock",
                runs=runs,
            )
