"""The edit against float64 references that are written as the paper writes it."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from perfusion_core.method.edit import GatedEdit, LockedPrompt, add_values
from perfusion_core.method.gram import LEAST_APART, PARALLEL, similarity_matrix
from perfusion_core.method.settings import ConceptSettings, KeyLock

D, OUT = 48, 20
seeds = st.integers(0, 2**31 - 1)
property_test = settings(max_examples=25, deadline=None)


class World:
    """Random text encodings with a C of wide spectrum, J concepts, and one layer; in float64."""

    def __init__(self, concepts: int, seed: int = 0, correlation: float = 0.5) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        scales = torch.logspace(-1, 1, D, dtype=torch.float64)
        basis = torch.linalg.qr(self.random(D, D))[0]
        self.root = basis * scales
        self.C = self.root @ self.root.T
        common = self.random(1, D)
        own = self.random(concepts, D)
        mixed = math.sqrt(correlation) * common + math.sqrt(1 - correlation) * own
        self.i = mixed @ self.root.T
        self.p = self.random(concepts, D) @ self.root.T
        self.W_K, self.W_V = self.random(OUT, D), self.random(OUT, D)
        self.values = self.random(concepts, OUT)

    def random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=self.generator)

    def context(self, *shape: int) -> Tensor:
        """Ordinary tokens, and some that are near a concept."""
        ordinary = self.random(*shape, D) @ self.root.T
        of = torch.randint(len(self.i), shape, generator=self.generator)
        near = self.i[of] + 0.2 * ordinary
        is_near = self.random(*shape, 1) > 0.7
        return torch.where(is_near, near, ordinary)

    def edit(self, *given: ConceptSettings, names: list[str] | None = None) -> GatedEdit:
        whitened = torch.linalg.solve(self.C, self.i.T).T
        return GatedEdit(self.i, whitened, self.p, given, names)


def layer(world: World, edit: GatedEdit, context: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of one layer as the patched forwards compute them, in the context's dtype."""
    prepared = edit.prepare(context)
    differences = world.values - world.p @ world.W_V.T
    keys = prepared.context @ world.W_K.T.to(context)
    values = prepared.context @ world.W_V.T.to(context)
    return keys, add_values(values, prepared.weights, differences)


def eq3(e: Tensor, W: Tensor, i: Tensor, o: Tensor, C: Tensor, given: ConceptSettings) -> Tensor:
    """One concept, token by token: h = W e + g (o - s W i), at strength t of the way from W e.

    Equation 3 with the gate on the whole of it.
    """
    inverse = torch.linalg.inv(C)
    out = torch.empty(*e.shape[:-1], len(W), dtype=torch.float64)
    for index in torch.cartesian_prod(*(torch.arange(n) for n in e.shape[:-1])).reshape(
        -1, e.dim() - 1
    ):
        token = e[tuple(index)]
        s = (i @ inverse @ token) / (i @ inverse @ i)
        g = 1 / (1 + torch.exp(-(s - given.bias) / given.temperature))
        edited = W @ token + g * (o - s * (W @ i))
        out[tuple(index)] = W @ token + given.strength * (edited - W @ token)
    return out


def appendix_b(
    e: Tensor,
    W: Tensor,
    i: Tensor,
    o: Tensor,
    C: Tensor,
    given: list[ConceptSettings],
    similarity: Tensor | None = None,
) -> Tensor:
    """Several concepts at strength 1, with the coordinates of Appendix B's projection.

    At `similarity` [..., J], which is by default `coordinates`.
    """
    h = e @ W.T
    similarity = coordinates(e, i, C) if similarity is None else similarity
    for j, one in enumerate(given):
        s = similarity[..., j, None]
        gate = torch.sigmoid((s - one.bias) / one.temperature)
        h = h + gate * (o[j] - s * (W @ i[j]))
    return h


def coordinates(e: Tensor, i: Tensor, C: Tensor) -> Tensor:
    """How much of each concept is in e [..., J]: least squares in the C^-1 inner product."""
    L = torch.linalg.cholesky(torch.linalg.inv(C))
    flat = (e @ L).reshape(-1, e.shape[-1])
    return torch.linalg.lstsq(L.T @ i.T, flat.T).solution.T.reshape(*e.shape[:-1], len(i))


def close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Relative to the largest expected value."""
    error = float((actual.double() - expected.double()).abs().max() / expected.abs().max())
    assert error < tolerance, f"relative error {error:.2e}"


@property_test
@given(seeds, st.floats(-0.5, 1.5), st.floats(0.05, 1), st.floats(0, 2))
def test_one_concept_is_equation_3(
    seed: int, bias: float, temperature: float, strength: float
) -> None:
    world = World(1, seed)
    given_ = ConceptSettings(bias, temperature, strength)
    context = world.context(2, 9)
    keys, values = layer(world, world.edit(given_), context)
    locked = world.W_K @ world.p[0]
    close(keys, eq3(context, world.W_K, world.i[0], locked, world.C, given_), 1e-9)
    close(values, eq3(context, world.W_V, world.i[0], world.values[0], world.C, given_), 1e-9)


@pytest.mark.parametrize("concepts", [1, 2, 3, 8])
@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.8, 0.95])
def test_several_concepts_are_appendix_b(concepts: int, correlation: float) -> None:
    world = World(concepts, correlation=correlation)
    given_ = [ConceptSettings(0.4 + 0.05 * j, 0.1 + 0.02 * j) for j in range(concepts)]
    context = world.context(2, 77)
    edit = world.edit(*given_)
    keys, values = layer(world, edit, context)
    locked = world.p @ world.W_K.T
    # Concepts that are nearly one share a word: the coordinates are blunted.
    s = edit.similarity(context) if correlation > 0.9 else None
    close(keys, appendix_b(context, world.W_K, world.i, locked, world.C, given_, s), 1e-8)
    close(values, appendix_b(context, world.W_V, world.i, world.values, world.C, given_, s), 1e-8)


def test_a_sum_of_single_projections_would_be_wrong() -> None:
    world = World(2, correlation=0.8)
    world.p = torch.zeros_like(world.p)
    opened = ConceptSettings(bias=-1e3)  # the projection alone
    context = world.context(30)
    together = world.edit(opened, opened).prepare(context).context
    whitened = torch.linalg.solve(world.C, world.i.T).T
    singles = (context @ whitened.T) / (whitened * world.i).sum(dim=1)
    naive = context - singles @ world.i
    assert (together - naive).abs().max() > 0.1 * context.abs().max()
    remaining = (together @ whitened.T).abs().max() / (context @ whitened.T).abs().max()
    assert remaining < 1e-9


def test_the_similarity_is_1_at_the_target_input_and_the_gate_half_open_at_the_bias() -> None:
    world = World(3)
    edit = world.edit(*[ConceptSettings(bias=b, temperature=0.1) for b in (0.3, 0.6, 1.0)])
    torch.testing.assert_close(edit.similarity(world.i), torch.eye(3).double())
    torch.testing.assert_close(edit.gates(0.6 * world.i)[1, 1], torch.tensor(0.5).double())


def test_a_concepts_word_does_not_open_the_gate_of_one_that_resembles_it() -> None:
    """As teddy* did with car*: each alone, its similarity at the other's word was 0.2 to 0.5."""
    world = World(2, correlation=0.8)
    inverse = torch.linalg.inv(world.C)
    alone = (world.i[0] @ inverse @ world.i[1]) / (world.i[1] @ inverse @ world.i[1])
    assert alone > 0.5
    gates = world.edit(ConceptSettings(), ConceptSettings()).gates(world.i)
    closed = torch.sigmoid(torch.tensor(-ConceptSettings().bias / ConceptSettings().temperature))
    assert float(gates[0, 1]) == pytest.approx(float(closed), rel=1e-6)
    assert float(gates[1, 0]) == pytest.approx(float(closed), rel=1e-6)


@pytest.mark.parametrize("distance", [0.5, 0.1, 1e-2, 1e-4, 0])
def test_the_likeness_of_one_word_for_two_concepts_is_shared_between_them(distance: float) -> None:
    """It neither grows without bound nor jumps where they are all but one direction."""
    world = World(2, correlation=0.0)
    world.i[1] = world.i[0] + distance * world.i[1]
    on = ConceptSettings()
    edit = world.edit(on, on)
    (own, other), (_, others_own) = edit.similarity(world.i).tolist()
    assert 0.49 < own < 1.01
    assert 0.49 < others_own < 1.01
    assert -0.01 < other < 0.51
    # Variation of the word that is not about the concepts is not blown up.
    noise = 0.1 * world.random(100, D) @ world.root.T
    alone = world.edit(on, ConceptSettings(strength=0)).similarity(noise)[:, 0]
    assert float(edit.similarity(noise).std()) < 6 * float(alone.std())


@property_test
@given(seeds, st.floats(1e-3, 1e3))
def test_the_scale_of_the_covariance_cancels(seed: int, scale: float) -> None:
    world = World(3, seed)
    context = world.context(12)
    sliders = [ConceptSettings(0.5, 0.2, t) for t in (1, 0.5, 2)]
    one = world.edit(*sliders).prepare(context)
    world.C = world.C * scale
    other = world.edit(*sliders).prepare(context)
    close(other.context, one.context, 1e-7)
    close(other.weights, one.weights, 1e-7)


@property_test
@given(seeds, st.permutations(range(4)))
def test_the_order_of_concepts_does_not_matter(seed: int, order: list[int]) -> None:
    world = World(4, seed)
    context = world.context(12)
    sliders = [ConceptSettings(0.5, 0.2, t) for t in (1, 0.5, 0.5, 2)]
    one = world.edit(*sliders).prepare(context)
    world.i, world.p = world.i[order], world.p[order]
    other = world.edit(*[sliders[j] for j in order]).prepare(context)
    close(other.context, one.context, 1e-7)
    close(other.weights, one.weights[..., order], 1e-7)


# --- words that are not the concept


@pytest.mark.parametrize("concepts", [1, 3])
def test_a_word_that_is_not_the_concept_stays_almost_as_it_is(concepts: int) -> None:
    """The change is at most that of gates at similarity 0, whatever the word's length."""
    world = World(concepts)
    world.p, sliders = world.i.clone(), [ConceptSettings()] * concepts
    edit = world.edit(*sliders)
    words = world.context(200)
    whitened = torch.linalg.solve(world.C, world.i.T).T
    away = words - coordinates(words, world.i, world.C) @ world.i  # no part of any concept
    changed = edit.prepare(away).context - away
    closed = 1 / (1 + math.exp(0.6 / 0.15))
    close(changed, (closed * world.p.sum(dim=0)).expand_as(changed), 1e-9)
    assert (away @ whitened.T).abs().max() < 1e-9


@property_test
@given(seeds, st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]))
def test_an_infinite_bias_is_the_stock_model_bit_for_bit(seed: int, dtype: torch.dtype) -> None:
    world = World(3, seed)
    context = world.context(2, 9).to(dtype)
    prepared = world.edit(*[ConceptSettings(bias=1e6)] * 3).prepare(context)
    assert torch.equal(prepared.context, context)
    assert not prepared.weights.any()


@pytest.mark.parametrize("bias", [-1.0, 0.6])
def test_padding_of_zeros_is_no_word(bias: float) -> None:
    """Where a norm follows the keys, a pad's key of 0 would become one of full size."""
    world = World(2)
    context = world.context(2, 9)
    context[:, 5:] = 0
    edit = world.edit(*[ConceptSettings(bias=bias)] * 2)
    prepared = edit.prepare(context)
    assert not prepared.context[:, 5:].any()
    assert not prepared.weights[:, 5:].any()
    torch.testing.assert_close(
        prepared.context[:, :5], edit.prepare(context[:, :5]).context, rtol=0, atol=1e-12
    )


# --- strength


def test_with_every_strength_at_0_the_context_comes_back_itself() -> None:
    world = World(2)
    off = ConceptSettings(strength=0)
    edit = world.edit(off, off)
    context = world.context(2, 7)
    prepared = edit.prepare(context)
    assert not edit.active
    assert prepared.context is context
    assert prepared.weights.shape == (2, 7, 2)
    assert not prepared.weights.any()


@pytest.mark.parametrize("strength", [0.25, 1.0, 1.7])
def test_equal_strengths_scale_the_whole_change(strength: float) -> None:
    world = World(3)
    context = world.context(20)
    full = layer(world, world.edit(*[ConceptSettings()] * 3), context)
    part = layer(world, world.edit(*[ConceptSettings(strength=strength)] * 3), context)
    for W, edited, scaled in zip((world.W_K, world.W_V), full, part, strict=True):
        plain = context @ W.T
        close(scaled, plain + strength * (edited - plain), 1e-9)


def test_a_concept_at_strength_0_is_exactly_absent() -> None:
    world = World(3, correlation=0.9)
    context = world.context(20)
    on, off = ConceptSettings(), ConceptSettings(strength=0)
    together = world.edit(on, off, on).prepare(context)
    world.i, world.p = world.i[[0, 2]], world.p[[0, 2]]
    apart = world.edit(on, on).prepare(context)
    assert not together.weights[..., 1].any()
    torch.testing.assert_close(together.context, apart.context, rtol=0, atol=1e-12)


@property_test
@given(seeds, st.lists(st.sampled_from([0.0, 0.3, 0.8, 1.0, 1.5]), min_size=3, max_size=3))
def test_mixed_strengths_are_the_average_over_levels(seed: int, strengths: list[float]) -> None:
    """Integrate over a level t in 0..2: at each, the concepts of strength > t take part in full.

    Gates are at the coordinate that is averaged over the levels up to the concept's own.
    """
    world = World(3, seed)
    context = world.context(8)
    sliders = [ConceptSettings(0.5, 0.2, t) for t in strengths]
    keys, values = layer(world, world.edit(*sliders), context)
    levels = 20
    among = [
        [j for j, t in enumerate(strengths) if t > (step + 0.5) / levels]
        for step in range(2 * levels)
    ]
    similarity = torch.zeros(8, 3, dtype=torch.float64)
    for members in filter(None, among):
        similarity[:, members] += coordinates(context, world.i[members], world.C) / levels
    similarity /= torch.tensor(strengths, dtype=torch.float64).clamp(min=1e-9)
    for W, o, actual in (
        (world.W_K, world.p @ world.W_K.T, keys),
        (world.W_V, world.values, values),
    ):
        plain = context @ W.T
        expected = plain.clone()
        for members in filter(None, among):
            few, s = [sliders[j] for j in members], similarity[:, members]
            full = appendix_b(context, W, world.i[members], o[members], world.C, few, s)
            expected += (full - plain) / levels
        close(actual, expected, 1e-8)


def test_strength_is_continuous_down_to_0() -> None:
    world = World(2, correlation=0.8)
    context = world.context(20)
    absent = world.edit(ConceptSettings(), ConceptSettings(strength=0)).prepare(context)
    barely = world.edit(ConceptSettings(), ConceptSettings(strength=1e-6)).prepare(context)
    close(barely.context, absent.context, 1e-4)


# --- parallel concepts


def test_identical_concepts_are_projected_off_once_and_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World(3, correlation=0.0)
    world.i[2] = world.i[0]
    world.p = torch.zeros_like(world.p)
    opened = ConceptSettings(bias=-1e3)
    context = world.context(20)
    with caplog.at_level(logging.WARNING):
        edited = world.edit(opened, opened, opened, names=["ann", "bob", "cid"]).prepare(context)
    assert "ann and cid" in caplog.text
    assert "bob" not in caplog.text
    world.i, world.p = world.i[:2], world.p[:2]
    once = world.edit(opened, opened).prepare(context)
    close(edited.context, once.context, 1e-9)


@pytest.mark.parametrize("distance", [1e-1, 1e-2, 1e-3, 1e-5, 1e-9])
@pytest.mark.parametrize("sign", [1, -1])
def test_near_parallel_concepts_stay_bounded(distance: float, sign: int) -> None:
    world = World(2, correlation=0.0)
    world.i[1] = sign * (world.i[0] + distance * world.i[1])
    world.p = torch.zeros_like(world.p)
    context = world.context(50).half()
    opened = ConceptSettings(bias=-1e3)
    edited = world.edit(opened, opened).prepare(context).context
    # A projection in the C^-1 inner product never lengthens in that product's norm.
    inverse = torch.linalg.inv(world.C)

    def norm(e: Tensor) -> Tensor:
        return (e.double() @ inverse * e.double()).sum(dim=-1)

    assert bool((norm(edited) <= norm(context) * 1.02).all())


def test_no_warning_for_concepts_that_only_resemble_each_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    gram = torch.tensor([[1.0, 0.99], [0.99, 1.0]], dtype=torch.float64)
    assert PARALLEL < 1 - 0.99
    with caplog.at_level(logging.WARNING):
        similarity_matrix(gram, [1, 1], ["a", "b"])
    assert not caplog.text


def test_the_coordinates_of_concepts_that_only_resemble_each_other_are_exact() -> None:
    gram = torch.tensor([[1.0, 0.94], [0.94, 1.0]], dtype=torch.float64)
    assert LEAST_APART < 1 - 0.94
    torch.testing.assert_close(similarity_matrix(gram, [1, 1]), torch.linalg.inv(gram))


# --- shapes, precision, gradients


@pytest.mark.parametrize("shape", [(5,), (1, 77), (2, 77), (2, 3, 77), (2, 77 * 12), (1, 0)])
def test_any_batch_shape_and_any_number_of_chunks(shape: tuple[int, ...]) -> None:
    world = World(2)
    edit = world.edit(ConceptSettings(), ConceptSettings(strength=0.5))
    context = world.context(*shape)
    prepared = edit.prepare(context)
    assert prepared.context.shape == (*shape, D)
    assert prepared.weights.shape == (*shape, 2)
    flat = edit.prepare(context.reshape(-1, D))
    torch.testing.assert_close(prepared.context.reshape(-1, D), flat.context)
    # The same rows, the same numbers: cond and uncond may come in one batch or apart.
    chunks = [edit.prepare(chunk).context for chunk in context.split(77, dim=-2)]
    torch.testing.assert_close(torch.cat(chunks, dim=-2), prepared.context)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-9), (torch.float32, 3e-6), (torch.float16, 3e-3), (torch.bfloat16, 2e-2)],
)
@pytest.mark.parametrize("concepts", [1, 4])
def test_precisions_against_float64(dtype: torch.dtype, tolerance: float, concepts: int) -> None:
    world = World(concepts)
    edit = world.edit(*[ConceptSettings()] * concepts)
    context = world.context(2, 77).to(dtype)  # the reference sees the same rounded input
    prepared = edit.prepare(context)
    exact = edit.prepare(context.double())
    assert prepared.context.dtype == prepared.weights.dtype == dtype
    close(prepared.context, exact.context, tolerance)
    close(prepared.weights, exact.weights, tolerance)
    keys, values = layer(world, edit, context)
    exact_keys, exact_values = layer(world, edit, context.double())
    assert values.dtype == dtype
    close(keys, exact_keys, 3 * tolerance)
    close(values, exact_values, 3 * tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("concepts", [1, 4])
def test_in_half_precision_only_the_result_is_rounded(dtype: torch.dtype, concepts: int) -> None:
    """Gates and J x J algebra in fp32: all but some numbers on the edge are the nearest ones."""
    world = World(concepts)
    edit = world.edit(*[ConceptSettings()] * concepts)
    context = world.context(2, 77).to(dtype)
    prepared, exact = edit.prepare(context), edit.prepare(context.double())
    for found, expected in (
        (prepared.context, exact.context),
        (prepared.weights, exact.weights),
    ):
        assert (found == expected.to(dtype)).double().mean() > 0.99
    gates = edit.gates(context)
    assert gates.dtype == torch.float32
    close(gates, edit.gates(context.double()), 1e-5)


@pytest.mark.skipif(
    not hasattr(torch.amp, "is_autocast_available"), reason="before 2.4 torch says it of no device"
)
def test_a_device_without_autocast_is_not_asked_to_turn_it_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As DirectML's, which is "privateuseone" to torch."""

    def raises(*_: object, **__: object) -> None:
        raise AssertionError("Tried to use AMP with the `privateuseone` backend")

    world = World(1)
    edit = world.edit(ConceptSettings())
    context = world.context(3)
    expected = edit.prepare(context).context
    monkeypatch.setattr(torch, "autocast", raises)
    assert torch.equal(edit.prepare(context).context, expected)
    assert edit.similarity(context).isfinite().all()


def test_gates_are_not_computed_in_low_precision_under_autocast() -> None:
    world = World(2)
    edit = world.edit(ConceptSettings(), ConceptSettings())
    context = world.context(2, 77).float()
    plain = edit.prepare(context)
    with torch.autocast("cpu", torch.bfloat16):
        inside = edit.prepare(context)
        gates = edit.gates(context)
    assert torch.equal(inside.context, plain.context)
    assert torch.equal(inside.weights, plain.weights)
    assert torch.equal(gates, plain.weights)


def test_gradients_are_those_of_finite_differences() -> None:
    world = World(2)
    sliders = [ConceptSettings(0.5, 0.3), ConceptSettings(0.4, 0.3, 0.5)]
    whitened = torch.linalg.solve(world.C, world.i.T).T

    def values(context: Tensor, superclasses: Tensor, differences: Tensor) -> Tensor:
        prepared = GatedEdit(world.i, whitened, superclasses, sliders).prepare(context)
        return add_values(prepared.context @ world.W_V.T, prepared.weights, differences)

    inputs = (world.context(4), world.p.clone(), world.values.clone())
    assert torch.autograd.gradcheck(values, [t.requires_grad_() for t in inputs])


def test_values_are_added_in_the_dtype_of_the_layer() -> None:
    values, weights, differences = torch.randn(2, 7, OUT), torch.rand(2, 7, 3), torch.randn(3, OUT)
    expected = values + weights @ differences
    torch.testing.assert_close(add_values(values, weights, differences), expected)
    half = add_values(values.bfloat16(), weights, differences.half())
    assert half.dtype == torch.bfloat16
    close(half, expected, 2e-2)


# --- what bad input gets


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0; it must be above 0"),
        ({"temperature": -1.0}, "temperature"),
        ({"strength": -0.1}, "strength is -0.1; it must be between 0 and 2"),
        ({"strength": 2.1}, "strength"),
        ({"bias": math.nan}, "bias is nan"),
        ({"bias": math.inf}, "bias is inf"),
    ],
)
def test_settings_out_of_range_are_refused(fields: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConceptSettings(**fields)


def test_a_context_of_another_width_is_refused() -> None:
    edit = World(1).edit(ConceptSettings())
    with pytest.raises(ValueError, match=f"64 wide, the concepts {D}"):
        edit.prepare(torch.zeros(1, 77, 64))


def test_vectors_that_disagree_are_refused() -> None:
    with pytest.raises(ValueError, match=r"for 2 settings"):
        GatedEdit(torch.ones(1, D), torch.ones(1, D), torch.ones(1, D), [ConceptSettings()] * 2)


def superclass_twin(world: World, context: Tensor) -> Tensor:
    """As if another prompt had been encoded: near the first, the same shape."""
    return context + 0.5 * world.random(*context.shape) @ world.root.T


def locked(strength: float = 1.0) -> ConceptSettings:
    return ConceptSettings(0.5, 0.15, strength, key_lock=KeyLock.GLOBAL)


@pytest.mark.parametrize("strength", [0.4, 1.0, 1.5])
def test_under_the_global_lock_the_keys_are_those_of_the_superclass_prompt(
    strength: float,
) -> None:
    world = World(2)
    context = world.context(1, 9)
    twin = superclass_twin(world, context)
    edit = world.edit(locked(strength), locked(strength))
    prepared = edit.prepare(context, [LockedPrompt(context, twin)])
    close(prepared.keys, context + strength * (twin - context), 1e-12)
    plain = world.edit(*[ConceptSettings(0.5, 0.15, strength)] * 2).prepare(context)
    assert torch.equal(prepared.context, plain.context)
    assert torch.equal(prepared.weights, plain.weights)
    assert plain.keys is plain.context


def test_a_prompt_is_found_repeated_side_by_side_and_in_any_row() -> None:
    world = World(1)
    short, long = world.context(1, 7), world.context(1, 14)
    twins = [superclass_twin(world, c) for c in (short, long)]
    other = world.context(1, 7)
    prompts = [LockedPrompt(short, twins[0]), LockedPrompt(long, twins[1])]
    rows = torch.cat(
        [
            torch.cat([short, short], dim=1),  # repeated, as ComfyUI pads to a common length
            long,
            torch.cat([other, short], dim=1),  # beside a prompt that nobody knows
            torch.cat([other, other], dim=1),
        ]
    )
    edit = world.edit(locked())
    prepared = edit.prepare(rows, prompts)
    alone = prepared.context
    expected = torch.cat(
        [
            torch.cat([twins[0], twins[0]], dim=1),
            twins[1],
            torch.cat([alone[2:3, :7], twins[0]], dim=1),
            alone[3:4],
        ]
    )
    close(prepared.keys, expected, 1e-12)
    # A context of another length holds none of them.
    odd = world.context(1, 5)
    assert torch.equal(edit.prepare(odd, prompts).keys, edit.prepare(odd).context)


def test_a_prompt_in_a_batch_has_its_rows_told_apart() -> None:
    world = World(1)
    context = world.context(2, 6)
    twin = superclass_twin(world, context)
    swapped = context.flip(0)
    prepared = world.edit(locked()).prepare(swapped, [LockedPrompt(context, twin)])
    close(prepared.keys, twin.flip(0), 1e-12)


def test_a_locally_locked_concept_is_edited_within_the_superclass_prompt() -> None:
    world = World(2, correlation=0.7)
    context = world.context(1, 11)
    twin = superclass_twin(world, context)
    local = ConceptSettings(0.6, 0.1)
    edit = world.edit(locked(), local)
    prepared = edit.prepare(context, [LockedPrompt(context, twin)])
    single = GatedEdit(
        world.i[1:], torch.linalg.solve(world.C, world.i[1:].T).T, world.p[1:], [local]
    )
    close(prepared.keys, single.prepare(twin).context, 1e-12)


def test_the_global_lock_works_in_half_precision_and_follows_the_strongest() -> None:
    world = World(2)
    context = world.context(1, 9)
    twin = superclass_twin(world, context)
    half = LockedPrompt(context.float(), twin.float())
    prepared = world.edit(locked(1.0), locked(0.3)).prepare(context.float().half(), [half])
    assert torch.equal(prepared.keys, twin.float().half())
    off = world.edit(locked(0.0), ConceptSettings(0.5, 0.15))
    assert torch.equal(off.prepare(context, [half]).keys, off.prepare(context).context)


def test_texts_side_by_side_have_coordinates_of_their_own() -> None:
    """The coordinate of a row is that of its own part, whatever the other part holds."""
    generator = torch.Generator().manual_seed(0)
    inputs, superclasses = torch.randn(2, 2, 10, generator=generator).double()
    pair = [ConceptSettings(), ConceptSettings()]
    both = GatedEdit(inputs, inputs, superclasses, pair, parts=(6, 4))
    for part in (slice(0, 6), slice(6, 10)):
        alone = GatedEdit(inputs[:, part], inputs[:, part], superclasses[:, part], pair)
        text = torch.randn(5, 10, generator=generator).double()
        row = torch.zeros_like(text)
        row[:, part] = text[:, part]
        assert torch.allclose(both.similarity(row), alone.similarity(text[:, part]))
        found = both.prepare(row).context[:, part]
        assert torch.allclose(found, alone.prepare(text[:, part]).context)
