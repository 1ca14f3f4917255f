"""Where words of a prompt attend in a picture: attention's weights, added up over layers and steps.

Dimensions: R rows of a pass, N pictures (R is a multiple of N: prompt after prompt, each with all
pictures), Q places of a layer, T tokens, J concepts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from einops import rearrange
from torch import Tensor

from ..draw.gate_table import COLOURS
from ..draw.plots import labelled_grid

# A token of this similarity is the concept's word. Its own placeholder has about 1, other words
# about 0. Not the gate: then the sliders would decide whose attention is shown.
OWN_WORD = 0.5

# What is kept between layers is one map of at most this side for each picture and concept.
MAX_SIDE = 64
# Weights that are computed at a time (16 MB); a layer's queries are taken in parts of that size.
MAX_WEIGHTS = 1 << 22

_CELL = (256, 512)  # sides of a picture in the strip: at least, at most


def own_words(similarity: Tensor) -> Tensor:
    """Which tokens are whose word: true where, of similarities s [..., T, J], one is its own.

    A token belongs to at most one concept: of two that are alike, to the one that it is more like.
    """
    most = similarity == similarity.amax(dim=-1, keepdim=True)
    return (similarity >= OWN_WORD) & most


def word_attention(
    queries: Tensor, keys: Tensor, heads: int, words: Tensor, real: Tensor | None = None
) -> Tensor:
    """The share of its attention, 0 to 1, that each place of a layer has for each concept's words.

    Args:
        queries: [R, Q, heads x width].
        keys: [R, T, heads x width].
        words: [R, T, J], true where a token is a concept's word.
        real: [R, T], true where attention may look; None for everywhere.

    Returns [R, Q, J] in fp32: the mean over the heads of softmax(q k^T / sqrt(width)), summed over
    a concept's words.
    """
    width = keys.shape[-1] // heads
    keys = rearrange(keys.float(), "r t (heads width) -> r heads width t", heads=heads)
    keys = keys * width**-0.5
    wanted = words.float()
    if real is None:
        real = torch.ones_like(words[..., 0], dtype=torch.bool)
    hidden = keys.new_zeros(real.shape).masked_fill(~real, -torch.inf)[:, None, None]
    held = len(queries) * heads * keys.shape[-1]
    parts = [
        (_by_head(part, heads) @ keys + hidden).softmax(dim=-1).mean(dim=1) @ wanted
        for part in torch.split(queries, max(1, MAX_WEIGHTS // held), dim=1)
    ]
    return torch.cat(parts, dim=1)


def _by_head(queries: Tensor, heads: int) -> Tensor:
    by_head: Tensor = rearrange(
        queries.float(), "r q (heads width) -> r heads q width", heads=heads
    )
    return by_head


@lru_cache(maxsize=64)
def layer_size(places: int, height: int, width: int) -> tuple[int, int]:
    """(height, width) of a layer of so many places over latents of `height` x `width`.

    The two numbers with that product whose ratio is nearest to the latents': networks halve sides,
    rounding up, and other packs shrink layers by any factor.
    """
    sides = [n for n in range(1, places + 1) if places % n == 0]
    wanted = height / width

    def apart(rows: int) -> float:
        ratio = rows * rows / places / wanted
        return max(ratio, 1 / ratio)

    rows = min(sides, key=apart)
    return rows, places // rows


class AttentionSums:
    """Adds up the attention of layers of any size, at one small size, in fp32.

    Args:
        pictures, concepts: N, J.
        height, width: of the latents.
    """

    def __init__(self, pictures: int, concepts: int, height: int, width: int) -> None:
        self.pictures = pictures
        self.size = (height, width)
        scale = min(1.0, MAX_SIDE / max(height, width))
        self.grid = (max(1, round(height * scale)), max(1, round(width * scale)))
        self._sums = torch.zeros(pictures, concepts, *self.grid)
        self._counts = torch.zeros(pictures, concepts)

    def add(self, shares: Tensor, words: Tensor) -> None:
        """One layer of one pass.

        Args:
            shares: [R, Q, J], of `word_attention`.
            words: [R, T, J]; a row in which a concept has no word says nothing of it.
        """
        _, places, concepts = shares.shape
        height, width = layer_size(places, *self.size)
        maps = rearrange(shares, "r (h w) j -> (r j) 1 h w", h=height, w=width)
        smaller = height >= self.grid[0] and width >= self.grid[1]
        maps = torch.nn.functional.interpolate(
            maps, self.grid, mode="area" if smaller else "bilinear"
        )
        # Prompt after prompt (p), each with all pictures.
        maps = rearrange(maps, "(p n j) 1 h w -> p n j h w", n=self.pictures, j=concepts)
        present = rearrange(words.any(dim=1), "(p n) j -> p n j", n=self.pictures).to(maps)
        self._sums = self._sums.to(maps.device) + (maps * present[..., None, None]).sum(dim=0)
        self._counts = self._counts.to(maps.device) + present.sum(dim=0)

    def maps(self, names: Sequence[str]) -> AttentionMaps:
        """The mean of all that was added; `names` are the concepts'."""
        counts = self._counts.cpu()
        means = self._sums.cpu() / counts.clamp(min=1)[..., None, None]
        return AttentionMaps(tuple(names), means, counts > 0)


@dataclass(frozen=True)
class AttentionMaps:
    """Where concepts' words attend.

    Attributes:
        names: the J concepts' placeholders.
        shares: [N, J, h, w]: the share of a place's attention, 0 to 1, that a concept's word has.
        present: [N, J], false where the prompt has no word of the concept; its shares are 0.
    """

    names: Sequence[str]
    shares: Tensor
    present: Tensor

    def table(self) -> str:
        """One line for each picture and concept, columns apart by tabs; shares from 0 to 1."""
        lines = ["picture\tconcept\tlowest share\tmean share\thighest share"]
        for n in range(len(self.shares)):
            for j, name in enumerate(self.names):
                share = self.shares[n, j]
                figures = [f"{v:.4f}" for v in (share.min(), share.mean(), share.max())]
                if not self.present[n, j]:
                    figures = ["-"] * 3
                lines.append("\t".join([str(n + 1), name, *figures]))
        return "\n".join(lines)

    def masks(self, height: int, width: int) -> Tensor:
        """[N x J, height, width], picture by picture: each map from 0 to 1 between its extremes."""
        lowest = self.shares.amin(dim=(-1, -2), keepdim=True)
        heat = self.shares - lowest
        heat = heat / heat.amax(dim=(-1, -2), keepdim=True).clamp(min=1e-12)
        masks: Tensor = rearrange(_sized(heat, height, width), "n j h w -> (n j) h w")
        return masks

    def picture(self, pictures: Tensor, title: str) -> Tensor:
        """A strip for each of the pictures [N, H, W, 3]: the picture and the concepts' maps on it.

        Returns [N, H', W', 3]. A map is in full colour where the word attends most, in none where
        it attends least; the label says how much that is.
        """
        height, width = pictures.shape[1:3]
        scale = max(1.0, _CELL[0] / min(height, width))
        scale = min(scale, _CELL[1] / max(height, width))
        height, width = round(height * scale), round(width * scale)
        # Where ComfyUI keeps pictures on its device (--gpu-only), the maps are not.
        pixels = rearrange(pictures.cpu(), "n h w c -> n c h w").float()
        shown = rearrange(_sized(pixels, height, width), "n c h w -> n h w c").clamp(0, 1)
        heat = rearrange(
            self.masks(height, width), "(n j) h w -> n j h w", n=len(shown), j=len(self.names)
        )
        strips = []
        for n, one in enumerate(shown):
            cells = [one, *(_heated(one, heat[n, j], j) for j in range(len(self.names)))]
            labels = ["picture", *(self._label(n, j) for j in range(len(self.names)))]
            strips.append(labelled_grid(torch.stack(cells), labels, [f"picture {n + 1}"], title))
        return torch.cat(strips)

    def _label(self, n: int, j: int) -> str:
        if not self.present[n, j]:
            return f"{self.names[j]}: not in the prompt"
        share = self.shares[n, j]
        return f"{self.names[j]}: {share.min():.0%} to {share.max():.0%}"


def _sized(maps: Tensor, height: int, width: int) -> Tensor:
    return torch.nn.functional.interpolate(maps, (height, width), mode="bilinear", antialias=True)


def _heated(picture: Tensor, heat: Tensor, number: int) -> Tensor:
    """The picture [H, W, 3] in dim grey, lit in a concept's colour, whitish where it is hottest."""
    grey = (picture @ torch.tensor([0.299, 0.587, 0.114]))[..., None] * 0.6
    value = COLOURS[number % len(COLOURS)].removeprefix("#")
    colour = torch.tensor([int(value[at : at + 2], 16) / 255 for at in (0, 2, 4)])
    heat = heat.clamp(0, 1)[..., None]
    glow = colour + (1 - colour) * (heat - 0.5).clamp(min=0)
    return grey + (glow - grey) * heat * 0.9
