"""Several concepts with the gates as the paper has them, to hold ours against. For the lab."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from perfusion_core.comfy.prompts import add_concepts
from perfusion_core.concept.concept_file import load_concept
from perfusion_core.method.edit import GatedEdit

from .local_comfyui import LocalComfyUI, entry_of
from .methods import Pair, Perfusion
from .rejected import edit_of, with_edit
from .subjects import Subject

PUBLISHED = "published"


class PublishedGates(GatedEdit):
    """s_j = u_j . e / u_j . i_j (arXiv 2305.01644, Eq. 4): each concept as if it were alone."""

    def _tensors(self, device: torch.device, dtype: torch.dtype) -> Any:
        norms = (self.whitened.double() * self.target_inputs.double()).sum(dim=1)
        similar = norms.reciprocal().diag().to(dtype).to(device)
        return replace(super()._tensors(device, dtype), similar=similar)


@dataclass(frozen=True)
class WithPublishedGates(Perfusion):
    """What Perfusion learned, which is the same; composed with the paper's gates.

    Knobs: `gates`, so that its points are told from Perfusion's, and Perfusion's own.
    """

    @property
    def key(self) -> dict[str, Any]:
        return Perfusion(self.steps, self.training, self.pictures, self.masked).key

    def apply(
        self,
        comfyui: LocalComfyUI,
        learned: Sequence[tuple[Subject, Path]],
        prompts: Sequence[str],
        gates: str = PUBLISHED,
        **use: Any,
    ) -> Pair:
        if gates != PUBLISHED:
            raise ValueError(f'gates is "{gates}"; it is "{PUBLISHED}"')
        entries = [entry_of(load_concept(file), **use) for _, file in learned]
        concepts = [entry.concept for entry in entries]
        edit = edit_of(PublishedGates, concepts, [entry.settings for entry in entries])
        return with_edit(comfyui.model, edit, concepts), add_concepts(comfyui.clip, concepts)
