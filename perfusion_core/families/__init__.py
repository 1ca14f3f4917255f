"""Which models concepts fit: a file for each architecture, and one for those that they do not fit.

A new architecture is one file here with an instance of `ModelFamily`, named below.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from .anima import ANIMA
from .base import CrossAttention, ModelFamily, in_order
from .cosmos import COSMOS2
from .emoji import EMOJI
from .hunyuan_dit import HUNYUAN_DIT
from .ltxv import LTXV
from .pixart import PIXART_ALPHA, PIXART_SIGMA
from .refused import REFUSED, REFUSED_PARTS, Refusal
from .unet import SD1, SD2, SDXL
from .wan import WAN21, WAN22

__all__ = [
    "FAMILIES",
    "REFUSED",
    "REFUSED_PARTS",
    "CrossAttention",
    "ModelFamily",
    "Refusal",
    "in_order",
    "register",
]

_families: dict[str, ModelFamily] = {}

FAMILIES: Mapping[str, ModelFamily] = MappingProxyType(_families)
"""The supported families by their ids."""


def register(family: ModelFamily) -> None:
    """Support one more family. Raises ValueError when its id is taken."""
    if family.id in _families:
        raise ValueError(f'there is a family "{family.id}" already')
    _families[family.id] = family


for _family in (
    *(SD1, SD2, SDXL, COSMOS2, ANIMA, WAN21, WAN22),
    *(PIXART_ALPHA, PIXART_SIGMA, LTXV, HUNYUAN_DIT),
    EMOJI,
):
    register(_family)
