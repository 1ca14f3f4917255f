"""The J x J algebra of several concepts: from their Gram matrix G to the coordinates of a text.

G_jk = u_j . i_k for target inputs i and u = C^-1 i; b_j = u_j . e. See `edit.py` for the rest.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

# Eigenvalues of the correlations between concepts below this count as zero. At 1e-3 two concepts
# correlate at 0.999: inverting further would amplify fp16's rounding of the context a thousandfold.
PARALLEL_CUTOFF = 1e-3

# In the similarity, eigenvalues are raised to this: concepts that correlate above 0.95 share a word
# more and more, down to halves at 1. Else the prompt's own variation would decide whose word it is.
LEAST_APART = 0.05


def mixing_matrix(gram: Tensor, strengths: Sequence[float], names: Sequence[str]) -> Tensor:
    """M [J, J] with c = M b, for concepts of any strengths.

    With every strength at 1, M = G^-1 (Eq. 4 and Appendix B: the projection in the C^-1 inner
    product). Otherwise the edit is averaged over levels of strength: with the distinct strengths
    t_1 > .. > t_m > t_m+1 = 0 and A_k the concepts of at least t_k, M = sum_k (t_k - t_k+1)
    G_{A_k}^-1. So equal strengths t give exactly t times the full edit's change, a concept at 0 is
    exactly absent (from the other concepts' projection as well), and everything in between is
    continuous.

    Args:
        gram: G [J, J] in float64.
        strengths: J numbers >= 0.
        names: what to call the concepts in a warning.
    """
    return _averaged(
        gram, strengths, lambda block, members: _stable_inverse(block, [names[j] for j in members])
    )


def similarity_matrix(gram: Tensor, strengths: Sequence[float]) -> Tensor:
    """S [J, J] with s = S b, for concepts of any strengths.

    With equal strengths S = G^-1, so that s_j is the coordinate of e along i_j beside the other
    concepts; with one concept s = b / G, as in the paper. Otherwise the coordinate is averaged over
    the levels of strength up to the concept's own, as in `mixing_matrix`: an absent concept takes
    nothing from the others, and a weak one little. A concept at 0 has the similarity that it comes
    in with.

    Args:
        gram: G [J, J] in float64.
        strengths: J numbers >= 0.
    """
    similar = _averaged(gram, strengths, lambda block, _: _blunt_inverse(block))
    for j, strength in enumerate(strengths):
        similar[j] = similar[j] / strength if strength > 0 else _blunt_inverse(gram)[j]
    return similar


def _averaged(
    gram: Tensor,
    strengths: Sequence[float],
    inverse: Callable[[Tensor, Sequence[int]], Tensor],
) -> Tensor:
    """sum_k (t_k - t_k+1) G_{A_k}^-1 of `mixing_matrix`.

    Args:
        inverse: of the block of G that belongs to some concepts, and their numbers.
    """
    mixed = torch.zeros_like(gram)
    levels = sorted({t for t in strengths if t > 0}, reverse=True)
    for level, below in pairwise([*levels, 0.0]):
        members = [j for j, t in enumerate(strengths) if t >= level]
        block = torch.tensor(members, device=gram.device)
        of_block = gram[block][:, block]
        inverted = inverse(of_block, members) if len(members) > 1 else of_block.reciprocal()
        mixed[block[:, None], block] += (level - below) * inverted
    return mixed


def _stable_inverse(gram: Tensor, names: Sequence[str]) -> Tensor:
    """G^-1, or its pseudo-inverse and a warning where concepts are all but parallel."""
    scale, correlations, eigenvalues, vectors = _by_angles(gram)
    kept = eigenvalues >= PARALLEL_CUTOFF
    if not bool(kept.all()):
        _warn_of_parallel(correlations, names)
    inverted = torch.where(kept, eigenvalues, 1.0).reciprocal() * kept
    inverse: Tensor = scale[:, None] * ((vectors * inverted) @ vectors.T) * scale
    return inverse


def _blunt_inverse(gram: Tensor) -> Tensor:
    """G^-1, its eigenvalues at most 1 / LEAST_APART."""
    scale, _, eigenvalues, vectors = _by_angles(gram)
    inverted = eigenvalues.clamp(min=LEAST_APART).reciprocal()
    inverse: Tensor = scale[:, None] * ((vectors * inverted) @ vectors.T) * scale
    return inverse


def _by_angles(gram: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """G = diag(1 / scale) R diag(1 / scale): scale [J], the correlations R, its eigenvalues [J] and
    eigenvectors [J, J]. So cutoffs speak of angles and not of the concepts' norms."""
    scale = gram.diagonal().rsqrt()
    correlations = scale[:, None] * gram * scale
    eigenvalues, vectors = torch.linalg.eigh((correlations + correlations.T) / 2)
    return scale, correlations, eigenvalues, vectors


def _warn_of_parallel(correlations: Tensor, names: Sequence[str]) -> None:
    off_diagonal = correlations.abs() - torch.eye(len(names)).to(correlations)
    first, second = divmod(int(off_diagonal.argmax()), len(names))
    logger.warning(
        "Perfusion: the concepts %s and %s are all but the same direction to the text encoder "
        "(correlation %.4f), so a prompt word cannot tell them apart and neither acts in "
        "full. Use one of them, or set the strength of one to 0.",
        names[first],
        names[second],
        float(correlations[first, second]),
    )
