"""The second moment C = E[e e^T] of text encodings: it tells a concept from ordinary words.

u = C^-1 i is, up to scale, the direction whose mean square similarity to ordinary tokens is least
among all directions with u . i fixed (a Capon beamformer): the better C is known, the less a
concept's gate opens for other words.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..families import FAMILIES, ModelFamily

# How much correlations shrink; see `from_tokens`. Measured: on samples with the second moment of
# SD 1.5's encodings (300 to 8000 tokens, half of their variance shared within a caption) the
# selectivity 1 / E[s(e)^2] is 0.65 to 0.83 of that of the true C; with 1 it is 0.67 to 0.86, with 0
# 0.23 to 0.79, with Ledoit and Wolf's estimate, which minimises another error, 0.54 to 0.79. On the
# demo's encoder, whose spectrum is far wider, other words have a root mean square similarity of
# 0.09 to a concept; with 1 it is 0.11, with 0 0.07, and the concept's own similarity at new
# positions stays highest between 0.1 and 0.3.
SHRINKAGE = 0.3

Encode = Callable[[Sequence[str]], tuple[Tensor, Tensor]]
"""Captions -> encodings [B, T, d] and the mask [B, T] of real tokens (start, words, first end)."""


class CovarianceError(ValueError):
    """A covariance cannot be made or used. The message says why and what to do."""


@dataclass(frozen=True, eq=False)
class Covariance:
    """An estimate of C that can be inverted.

    Attributes:
        matrix: C [d, d] in fp32, symmetric and positive definite.
        count: how many tokens it was estimated from.
        family: id of the `ModelFamily` whose text encodings these are.
    """

    matrix: Tensor
    count: int
    family: str

    @property
    def width(self) -> int:
        """d: the width of the text encodings."""
        return self.matrix.shape[0]

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) of the matrix; concepts name the covariance they were made with by it."""
        return hashlib.sha256(self.matrix.contiguous().numpy().tobytes()).hexdigest()

    @cached_property
    def _cholesky(self) -> Tensor:
        factor: Tensor
        factor, info = torch.linalg.cholesky_ex(self.matrix.double())
        if int(info) != 0 or not bool(factor.isfinite().all()):
            raise CovarianceError(
                f"the covariance of {self.count} tokens cannot be inverted: it is not positive "
                "definite. Estimate it again, from more captions."
            )
        return factor

    def check_family(self, family: ModelFamily) -> None:
        """Raise CovarianceError unless it is of the text encodings of that family."""
        if not FAMILIES[self.family].reads_like(family):
            raise CovarianceError(
                f"the covariance is of {FAMILIES[self.family].title}'s text encoder, but the model "
                f"is {family.title}: make one with this model's own CLIP, or connect none"
            )

    def whiten(self, vectors: Tensor) -> Tensor:
        """C^-1 v in float64, for vectors [..., d]."""
        if vectors.shape[-1] != self.width:
            raise CovarianceError(
                f"the covariance is for text encodings of width {self.width}, these are "
                f"{vectors.shape[-1]} wide: make one with this model's own text encoder"
            )
        columns = vectors.detach().cpu().double().reshape(-1, self.width).T
        return torch.cholesky_solve(columns, self._cholesky).T.reshape(vectors.shape)


def estimate(
    encode: Encode,
    captions: Sequence[str],
    family: str,
    *,
    batch_size: int = 16,
    on_captions: Callable[[int, int], None] | None = None,
) -> Covariance:
    """Estimate C from captions.

    Every real token counts alike, whatever its caption's length and padding.

    Args:
        encode: the text encoder.
        captions: at least one.
        family: id of the `ModelFamily` of the encoder.
        batch_size: captions per call of `encode`.
        on_captions: called with (captions done, captions in all) after each batch; may raise to
            stop.
    """
    if not captions:
        raise CovarianceError("there are no captions to estimate the covariance from; give some")
    samples = []
    for start in range(0, len(captions), batch_size):
        encodings, mask = encode(captions[start : start + batch_size])
        samples.append(encodings[mask].detach().float().cpu())
        if on_captions is not None:
            on_captions(min(start + batch_size, len(captions)), len(captions))
    return from_tokens(torch.cat(samples), family)


def from_tokens(tokens: Tensor, family: str) -> Covariance:
    """Estimate C from the encodings [n, d] of n tokens.

    The moments S of few tokens have far too small eigenvalues, and C^-1 would live on those. So the
    correlations are shrunk: C = (S + r diag(S)) / (1 + r), r = SHRINKAGE sqrt(d / n). That does not
    depend on the scale of any component (SDXL joins two encoders of different scales) and vanishes
    as tokens accrue.
    """
    count, width = tokens.shape
    if not count:
        raise CovarianceError("the captions have no tokens; give captions with words")
    if not bool(tokens.isfinite().all()):
        raise CovarianceError(
            "the text encoder gave NaN or infinity for a caption, most likely for want of "
            "precision. Start ComfyUI with --fp32-text-enc."
        )
    exact = tokens.double()
    moments = exact.T @ exact / count
    shrinkage = SHRINKAGE * math.sqrt(width / count)
    power = moments.diagonal()
    # A component that is 0 in every token says nothing of its scale; an average one is assumed.
    power = torch.where(power > 0, power, power.mean())
    matrix = (moments + shrinkage * torch.diag(power)) / (1 + shrinkage)
    return Covariance(matrix.float(), count, family)


def cache_key(encoder_fingerprint: str, captions: Sequence[str]) -> str:
    """A key for the covariance of an encoder and captions; another when either changes."""
    digest = hashlib.sha256(encoder_fingerprint.encode())
    for caption in captions:
        digest.update(b"\0" + caption.encode())
    return digest.hexdigest()
