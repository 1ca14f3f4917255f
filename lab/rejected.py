"""The two designs that the paper rejects. For the lab alone; the pack has neither.

Both learn the values as a plain substitution: while training, keys and values at the placeholder's
position are swapped for the concept's own, and every other token stays as it is. They differ in how
what was learned goes into the model:

- "swap": as it was trained. h = o where the placeholder stands, h = W e elsewhere.
- "ungated": trained first, inserted afterwards, as knowledge editing does it (ROME): a rank-one
  edit in closed form, without a gate. h = W e + s(e) (o - W i), with the similarity s.

In both, o is the superclass's key W_K p, and the learned value W_V p + D.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perfusion_core.comfy.forward_patch import Differences, edited
from perfusion_core.comfy.models import compute_dtype, detect_family, layers_of
from perfusion_core.comfy.prompts import add_concepts, encode
from perfusion_core.concept.concept import Concept
from perfusion_core.concept.concept_file import load_concept, save_concept
from perfusion_core.method.backbone import TrainingPrompts
from perfusion_core.method.edit import GatedEdit, LockedPrompt, PreparedContext
from perfusion_core.method.settings import ConceptSettings

from .local_comfyui import LocalComfyUI
from .methods import Method, Pair, recipe
from .subjects import Subject

WRAPPER = "perfusion_lab"
SAME = 0.02  # relative distance below which two encodings are of one prompt, in any precision


class SwappedEdit:
    """Swaps the encoding at known positions of known contexts for the superclass's.

    Args:
        superclasses: p [J, d].
        contexts: [N, T, d] of the prompts that may come.
        positions: [N, T, J], 1 where concept j stands.
        strength: how far it is swapped; 1 wholly.
    """

    def __init__(
        self, superclasses: Tensor, contexts: Tensor, positions: Tensor, strength: float = 1.0
    ) -> None:
        self.superclasses = superclasses
        self.contexts = contexts
        self.positions = positions.float()
        self.strength = strength

    def move_to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Nothing is kept."""

    def prepare(self, context: Tensor, prompts: Iterable[LockedPrompt] = ()) -> PreparedContext:
        """e' [..., T, d] and the weights of D [..., T, J]; contexts that are not known stay."""
        weights = self.strength * self._positions(context)
        kept = 1 - weights.sum(dim=-1, keepdim=True)
        swapped = context * kept + weights @ self.superclasses.to(weights)
        return PreparedContext(swapped, swapped, weights)

    def _positions(self, context: Tensor) -> Tensor:
        if context is self.contexts:  # while training
            return self.positions.to(context)
        known = self.contexts.to(context.device).float().flatten(1)
        rows = context.detach().float().reshape(-1, known.shape[1])
        distance = (rows[:, None] - known).norm(dim=-1) / known.norm(dim=-1)
        nearest, which = distance.min(dim=1)
        found = self.positions.to(context)[which] * (nearest < SAME)[:, None, None].to(context)
        return found.reshape(*context.shape[:-1], -1)


class UngatedEdit(GatedEdit):
    """h = W e⊥ + Σ s_j o_j: the similarity itself in the gate's place."""

    def gates_at(self, similarity: Tensor) -> Tensor:
        return similarity

    def _taken(self, similarity: Tensor, weights: Tensor) -> Tensor:
        return weights  # s_j of i_j for s_j of o_j, and not s_j times s_j


class OtherEditBackbone:
    """A backbone under which training runs under another edit than the loop's.

    Args:
        other: that edit, for the prompts of a batch and the loop's edit.
    """

    def __init__(self, inner: Any, other: Callable[[TrainingPrompts, GatedEdit], Any]) -> None:
        self.inner = inner
        self.other = other

    def loss(
        self,
        latents: Tensor,
        noise: Tensor,
        times: Tensor,
        encoded: TrainingPrompts,
        edit: GatedEdit,
        *differences: Any,
    ) -> Tensor:
        """See `Backbone`."""
        edit = self.other(encoded, edit)
        errors: Tensor = self.inner.loss(latents, noise, times, encoded, edit, *differences)
        return errors

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def swapping(inner: Any) -> OtherEditBackbone:
    """A backbone under which training learns by substitution; the loop's edit gives the superclass
    alone."""
    return OtherEditBackbone(
        inner,
        lambda encoded, edit: SwappedEdit(
            edit.superclasses, encoded.context, encoded.positions[..., None]
        ),
    )


@dataclass(frozen=True)
class Substituted(Method):
    """Learned by substitution, as Perfusion otherwise.

    Knobs: `insert` ("swap" or "ungated") and `strength`.
    """

    title = "substituted"

    @property
    def key(self) -> dict[str, Any]:
        return {**super().key, "training": asdict(recipe(self.steps))}

    def train(self, comfyui: LocalComfyUI, subject: Subject, file: Path) -> None:
        result = comfyui.learn(
            subject.groups(comfyui),
            subject.superclass,
            recipe(self.steps),
            through=swapping,
        )
        save_concept(result.concept, file)

    def apply(
        self,
        comfyui: LocalComfyUI,
        learned: Sequence[tuple[Subject, Path]],
        prompts: Sequence[str],
        insert: str = "swap",
        strength: float = 1.0,
    ) -> Pair:
        concepts = [load_concept(file) for _, file in learned]
        clip = add_concepts(comfyui.clip, concepts)
        if insert == "ungated":
            settings = [ConceptSettings(strength=strength)] * len(concepts)
            edit: Any = edit_of(UngatedEdit, concepts, settings)
        elif insert == "swap":
            edit = swapped(comfyui, concepts, prompts, strength)
        else:
            raise ValueError(f'insert is "{insert}"; it is "swap" or "ungated"')
        return with_edit(comfyui.model, edit, concepts), clip


def edit_of(
    kind: type[GatedEdit], concepts: Sequence[Concept], settings: Sequence[ConceptSettings]
) -> GatedEdit:
    """The edit of concepts, of a kind that differs from the pack's."""
    return kind(
        torch.stack([c.target_input for c in concepts]),
        torch.stack([c.whitened_target for c in concepts]),
        torch.stack([c.superclass_encoding for c in concepts]),
        settings,
        [c.name for c in concepts],
    )


def swapped(
    comfyui: LocalComfyUI, concepts: Sequence[Concept], prompts: Sequence[str], strength: float
) -> SwappedEdit:
    """The swap at the last vector of each placeholder, for the prompts that will be sampled."""
    import comfy.model_management

    asked = list(dict.fromkeys(prompts))
    clip = add_concepts(comfyui.clip, concepts)
    comfy.model_management.load_models_gpu([clip.patcher])
    with torch.no_grad():
        contexts = encode(clip, asked).context
    positions = [[_stands(token, concepts) for token in _tokens(clip, prompt)] for prompt in asked]
    return SwappedEdit(
        torch.stack([c.superclass_encoding.float() for c in concepts]),
        contexts,
        torch.tensor(positions),
        strength,
    )


def _tokens(clip: Any, prompt: str) -> list[Any]:
    """The tokens of a prompt's only chunk, of the first encoder: all are aligned."""
    (chunk,) = next(iter(clip.tokenize(prompt).values()))
    return [token for token, *_ in chunk]


def _stands(token: Any, concepts: Sequence[Concept]) -> list[bool]:
    """For each concept, whether the token is the last vector of its placeholder."""
    if not torch.is_tensor(token):
        return [False] * len(concepts)
    ends = [next(iter(concept.embeddings.values()))[-1] for concept in concepts]
    return [torch.equal(token, end.to(token)) for end in ends]


def with_edit(model: Any, edit: Any, concepts: Sequence[Concept]) -> Any:
    """A clone of a MODEL whose passes run under an edit of the lab's."""
    from comfy.patcher_extension import WrappersMP

    layers = layers_of(model, detect_family(model))
    differences = Differences(
        {path: torch.stack([c.values[path] for c in concepts]) for path in layers}
    )

    def run(executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        dtype = compute_dtype(executor.class_obj)
        with edited(layers, dict.fromkeys(layers, edit), differences, x.device, dtype):
            return executor(x, *args, **kwargs)

    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, WRAPPER, run)
    return clone
