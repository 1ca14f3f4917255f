"""The edit as the paper has it, trained and used, to hold ours against. For the lab alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from perfusion_core.comfy.prompts import add_concepts
from perfusion_core.concept.concept_file import load_concept, save_concept
from perfusion_core.method.edit import GatedEdit

from .local_comfyui import LocalComfyUI, entry_of
from .methods import Method, Pair, recipe
from .rejected import OtherEditBackbone, edit_of, with_edit
from .subjects import Subject


class PublishedEdit(GatedEdit):
    """h = W (e - sum_j s_j i_j) + sum_j g_j o_j (arXiv 2305.01644, Eq. 3, 4, Appendix B): what is
    subtracted has no gate."""

    def _taken(self, similarity: Tensor, weights: Tensor) -> Tensor:
        return self._on(similarity).strengths * similarity


def under_the_published_edit(inner: Any) -> OtherEditBackbone:
    """A backbone under which training runs under the published edit."""
    return OtherEditBackbone(
        inner,
        lambda _, edit: PublishedEdit(
            edit.target_inputs, edit.whitened, edit.superclasses, edit.settings, edit.names
        ),
    )


@dataclass(frozen=True)
class Published(Method):
    """Perfusion with the paper's edit. Knobs: those of Perfusion.

    Attributes:
        training: changes of the demo's `TrainingSettings`.
    """

    title = "Perfusion as published"

    training: Mapping[str, Any] = field(default_factory=dict)

    def train(self, comfyui: LocalComfyUI, subject: Subject, file: Path) -> None:
        settings = recipe(self.steps, **self.training)
        groups = subject.groups(comfyui)
        result = comfyui.learn(
            groups, subject.superclass, settings, through=under_the_published_edit
        )
        save_concept(result.concept, file)

    def apply(
        self,
        comfyui: LocalComfyUI,
        learned: Sequence[tuple[Subject, Path]],
        prompts: Sequence[str],
        **use: Any,
    ) -> Pair:
        entries = [entry_of(load_concept(file), **use) for _, file in learned]
        concepts = [entry.concept for entry in entries]
        edit = edit_of(PublishedEdit, concepts, [entry.settings for entry in entries])
        return with_edit(comfyui.model, edit, concepts), add_concepts(comfyui.clip, concepts)
