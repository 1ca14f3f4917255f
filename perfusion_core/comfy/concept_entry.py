"""What runs through the connections between our nodes: a concept with its settings, or several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..concept.concept import Concept
from ..families import FAMILIES
from ..method.edit import GatedEdit
from ..method.settings import ConceptSettings
from ..method.slider_schedule import SliderSchedule


@dataclass(frozen=True)
class ConceptEntry:
    """One concept and how it is applied: what runs through a PERFUSION_CONCEPT connection."""

    concept: Concept
    settings: ConceptSettings
    # Slider values that change while sampling; None: those of the settings.
    schedule: SliderSchedule | None = None

    @property
    def title(self) -> str:
        """How messages call it."""
        return f'"{self.concept.name}" ({self.concept.placeholder})'

    @property
    def may_act(self) -> bool:
        """Whether it is more than the untouched model at some time of the sampling."""
        return self.settings.strength > 0 or self.schedule is not None

    def settings_at(self, sigma: float) -> ConceptSettings:
        """The settings at a noise level."""
        if self.schedule is None:
            return self.settings
        return self.schedule.at(sigma).put_into(self.settings)


# What runs through a PERFUSION_STACK connection. Immutable, so that branches cannot share state.
ConceptStack = tuple[ConceptEntry, ...]


def recommended(concept: Concept) -> ConceptEntry:
    """The concept with the settings that its file recommends."""
    return ConceptEntry(concept, concept.settings)


def edit_of(entries: Sequence[ConceptEntry]) -> GatedEdit:
    """The edit of all of `entries`, to ask for similarities and gates; there must be one."""
    concepts = [entry.concept for entry in entries]
    return GatedEdit(
        torch.stack([c.target_input for c in concepts]),
        torch.stack([c.whitened_target for c in concepts]),
        torch.stack([c.superclass_encoding for c in concepts]),
        [entry.settings for entry in entries],
        [entry.title for entry in entries],
        FAMILIES[concepts[0].family].parts,
    )
