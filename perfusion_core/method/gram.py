"""The J x J algebra of several concepts: from their Gram matrix G to the coordinates of a text.

G_jk = u_j . i_k for target inputs i and u = C^-1 i; b_j = u_j . e. See `edit.py` for the rest.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

# Two concepts whose correlations have an eigenvalue below this (they correlate above 0.999) are
# told to the user: no word can tell them apart.
PARALLEL = 1e-3

# Eigenvalues of the correlations are raised to this: concepts that correlate above 0.95 share a
# word more and more, down to halves at 1. Else the prompt's own variation would decide whose word
# it is, and inverting would amplify fp16's rounding of the context a thousandfold.
LEAST_APART = 0.05


def similarity_matrix(
    gram: Tensor, strengths: Sequence[float], names: Sequence[str] = ()
) -> Tensor:
    """S [J, J] with s = S b, for concepts of any strengths.

    With equal strengths S = G^-1, so that s_j is the coordinate of e along i_j beside the other
    concepts (Eq. 4 and Appendix B: the projection in the C^-1 inner product); with one concept
    s = b / G. Otherwise the coordinate is averaged over the levels of strength up to the concept's
    own: with the distinct strengths t_1 > .. > t_m > t_m+1 = 0 and A_k the concepts of at least
    t_k, row j of S is sum_k (t_k - t_k+1) row j of G_{A_k}^-1, divided by the concept's strength.
    So an absent concept takes nothing from the others, a weak one little, and all in between is
    continuous. A concept at 0 has the similarity that it comes in with.

    Args:
        gram: G [J, J] in float64.
        strengths: J numbers >= 0.
        names: what to call the concepts in a warning; none for no warning.
    """
    similar = torch.zeros_like(gram)
    levels = sorted({t for t in strengths if t > 0}, reverse=True)
    for level, below in pairwise([*levels, 0.0]):
        members = [j for j, t in enumerate(strengths) if t >= level]
        block = torch.tensor(members, device=gram.device)
        inverse = _inverse(gram[block][:, block], [names[j] for j in members] if names else ())
        similar[block[:, None], block] += (level - below) * inverse
    for j, strength in enumerate(strengths):
        similar[j] = similar[j] / strength if strength > 0 else _inverse(gram)[j]
    return similar


def _inverse(gram: Tensor, names: Sequence[str] = ()) -> Tensor:
    """G^-1, the eigenvalues of its correlations at most 1 / LEAST_APART.

    Of correlations and not of G itself: so the limit speaks of angles, not of the concepts' norms.
    """
    scale = gram.diagonal().rsqrt()
    correlations = scale[:, None] * gram * scale
    eigenvalues, vectors = torch.linalg.eigh((correlations + correlations.T) / 2)
    if names and float(eigenvalues.min()) < PARALLEL:
        _warn_of_parallel(correlations, names)
    inverted = eigenvalues.clamp(min=LEAST_APART).reciprocal()
    inverse: Tensor = scale[:, None] * ((vectors * inverted) @ vectors.T) * scale
    return inverse


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
