"""The lab's edit as published against perfusion-pytorch: the same where that is right, and the
right answer where it is not.

With C as it ships it, of SD 1.5's text encodings, and encodings drawn with that second moment.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from perfusion_pytorch_edit import WHY_NOT, covariance, edit_module, is_installed
from torch import Tensor

from lab.published import PublishedEdit
from perfusion_core.method.covariance import Covariance
from perfusion_core.method.edit import GatedEdit, add_values
from perfusion_core.method.settings import ConceptSettings

pytestmark = pytest.mark.skipif(not is_installed(), reason=WHY_NOT)

D, OUT, TOKENS = 768, 320, 77
GIVEN = ConceptSettings(bias=0.70, temperature=0.15)  # its own at inference


class Setting:
    """C, J concepts, text encodings [2, 77, 768] and one projection, in float64.

    Args:
        correlation: of the concepts' target inputs with each other, in the C^-1 product.
    """

    def __init__(self, concepts: int, correlation: float, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.C = covariance().double()
        self.C = (self.C + self.C.T) / 2
        self.root = torch.linalg.cholesky(self.C)
        # Orthonormal in the whitened space, where the C^-1 product is the ordinary one.
        basis = torch.linalg.qr(self.random(D, concepts + 1))[0].T
        mixed = correlation**0.5 * basis[:1] + (1 - correlation) ** 0.5 * basis[1:]
        self.i = D**0.5 * mixed @ self.root.T
        self.p = self.random(concepts, D) @ self.root.T
        self.W = self.random(OUT, D) / D**0.5
        self.keys = self.p @ self.W.T
        self.values = self.keys + self.random(concepts, OUT)
        e = self.random(2, TOKENS, D) @ self.root.T
        for j in range(concepts):  # some tokens are about the concepts
            e[:, 3 + 5 * j] = self.i[j] + 0.1 * e[:, 3 + 5 * j]
        self.e = e

    def random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=self.generator)

    def ours(self, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
        """Keys and values."""
        whitened = torch.cholesky_solve(self.i.T, self.root).T
        edit = PublishedEdit(self.i, whitened, self.p, [GIVEN] * len(self.i))
        prepared = edit.prepare(self.e.to(dtype))
        W = self.W.to(dtype)
        differences = (self.values - self.keys).to(dtype)
        values = add_values(prepared.context @ W.T, prepared.weights, differences)
        return prepared.keys @ W.T, values

    def theirs(self, keys: bool, dtype: torch.dtype = torch.float64, cholesky: bool = False) -> Any:
        """Its module for all concepts."""
        linear = torch.nn.Linear(D, OUT, bias=False, dtype=dtype)
        linear.weight.data.copy_(self.W)
        outputs = (self.keys if keys else self.values).to(dtype)
        return edit_module(linear, self.C.to(dtype), self.i.to(dtype), outputs, keys, cholesky)

    def reference(self, outputs: Tensor) -> Tensor:
        """Appendix B: e less its projection, in the C^-1 product, on the span of the concepts.

        Gates are at e's coordinates in that span, with one concept the paper's similarity.
        """
        whitened = torch.linalg.solve_triangular(self.root, self.e.mT, upper=False).mT
        inputs = torch.linalg.solve_triangular(self.root, self.i.mT, upper=False)
        Q, R = torch.linalg.qr(inputs)
        h = (whitened - whitened @ Q @ Q.T) @ self.root.T @ self.W.T
        similarity = torch.linalg.solve_triangular(R, (whitened @ Q).mT, upper=True).mT
        gates = torch.sigmoid((similarity - GIVEN.bias) / GIVEN.temperature)
        return h + gates @ outputs


def error(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm())


def test_one_concept_is_the_same() -> None:
    setting = Setting(1, correlation=0.0)
    keys, values = setting.ours()
    their_values = setting.theirs(keys=False)(setting.e)
    assert error(keys, setting.theirs(keys=True)(setting.e)) < 1e-12
    assert error(values, their_values) < 1e-12
    assert error(setting.e @ setting.W.T, their_values) > 0.1


def test_one_concept_is_the_same_in_fp32() -> None:
    setting = Setting(1, correlation=0.0)
    expected = setting.reference(setting.values)
    assert error(setting.ours(torch.float32)[1], expected) < 2e-6
    theirs = setting.theirs(keys=False, dtype=torch.float32)
    assert error(theirs(setting.e.float()), expected) < 2e-6


def test_what_its_training_starts_from_is_what_ours_starts_from() -> None:
    """i is the placeholder's encoding, o what the projection makes of the superclass's."""
    setting = Setting(1, correlation=0.0)
    keys, _ = setting.ours()
    module = setting.theirs(keys=True)
    module.initted.fill_(False)
    module.concept_outputs.data.zero_()
    superclass = setting.e.clone()
    superclass[:, 3] = setting.p[0]
    placeholder = setting.e.clone()
    placeholder[:, 3] = setting.i[0]
    module.train()
    module(placeholder, concept_indices=torch.tensor([3, 3]), text_enc_with_superclass=superclass)
    assert error(keys, module.eval()(setting.e)) < 1e-12


@pytest.mark.parametrize("concepts", [2, 4])
@pytest.mark.parametrize("cholesky", [False, True])
def test_several_correlated_concepts_are_right_in_ours_and_not_in_theirs(
    concepts: int, cholesky: bool
) -> None:
    """By default it adds up single projections; the other way leaves C^-1 out of the projection."""
    setting = Setting(concepts, correlation=0.5)
    expected = setting.reference(setting.values)
    theirs = setting.theirs(keys=False, cholesky=cholesky)
    assert error(setting.ours()[1], expected) < 1e-12
    assert error(theirs(setting.e, concept_id=every(concepts)), expected) > 0.05


def test_the_sum_of_single_projections_is_right_for_unrelated_concepts_alone() -> None:
    apart = Setting(3, correlation=0.0)
    theirs = apart.theirs(keys=False)(apart.e, concept_id=every(3))
    assert error(theirs, apart.reference(apart.values)) < 1e-12
    assert error(apart.ours()[1], theirs) < 1e-12


def every(concepts: int) -> tuple[int, ...]:
    return tuple(range(concepts))


def test_its_covariance_serves_ours() -> None:
    """A Covariance takes it as it is; the concept it whitens then gates as in the modules above."""
    setting = Setting(1, correlation=0.0)
    whitened = Covariance(setting.C.float(), 100_000, "sd1").whiten(setting.i)
    edit = GatedEdit(setting.i, whitened, setting.p, [GIVEN])
    gates = edit.gates(setting.e)
    assert float(gates[:, 3].min()) > 0.8
    others = torch.ones(TOKENS, dtype=torch.bool)
    others[3] = False
    assert float(gates[:, others].mean()) < 0.05
