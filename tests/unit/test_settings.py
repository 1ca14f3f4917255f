"""What a user can set, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from perfusion_core.families import FAMILIES, REFUSED, in_order
from perfusion_core.method.settings import ConceptSettings, LayerWeights, parse_layer_weights

PATHS = [f"input_blocks.{n}.1.attn2" for n in (1, 2, 10)] + ["middle_block.1.attn2"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"start": -0.1}, "start is -0.1; it must be between 0 and 1"),
        ({"end": 1.5}, "end is 1.5; it must be between 0 and 1"),
        ({"start": 0.6, "end": 0.5}, "start at 0.6 of the schedule and end before, at 0.5"),
    ],
)
def test_settings_out_of_range_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConceptSettings(**given)


def test_layer_weights_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match='layer weight "down" is 3.0; it must be between 0 and 2'):
        LayerWeights(down=3.0)
    with pytest.raises(ValueError, match="weight of layer a is nan"):
        LayerWeights(single={"a": float("nan")})


def test_a_single_weight_takes_the_place_of_its_group() -> None:
    weights = LayerWeights(down=0.5, up=0.0, single={PATHS[1]: 2.0})
    assert [weights.of(path, "down") for path in PATHS[:3]] == [0.5, 2.0, 0.5]
    assert weights.of(PATHS[3], "middle") == 1.0
    assert weights == LayerWeights(0.5, 1.0, 0.0, {PATHS[1]: 2.0})
    assert hash(weights) == hash(LayerWeights(0.5, 1.0, 0.0, {PATHS[1]: 2.0}))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("2: 0.5", {PATHS[1]: 0.5}),
        ("1-3: 0, 4=1.5", {**dict.fromkeys(PATHS[:3], 0.0), PATHS[3]: 1.5}),
        (" 1 - 2 : 0 ;\n 2: 1 ", {PATHS[0]: 0.0, PATHS[1]: 1.0}),
    ],
)
def test_layer_weights_are_read_as_they_are_written(text: str, expected: dict[str, float]) -> None:
    assert parse_layer_weights(text, PATHS) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("middle: 0", '"middle: 0" cannot be read: write the layer\'s number'),
        ("2", '"2" cannot be read'),
        ("2: 0.5.5", '"2: 0.5.5" cannot be read'),
        ("5: 1", r'"5: 1" names a layer that the model does not have: its layers are 1 to 4'),
        ("0: 1", '"0: 1" names a layer'),
        ("3-2: 1", '"3-2: 1" names a layer'),
        ("2: 2.5", 'weight in "2: 2.5" is 2.5; it must be between 0 and 2'),
    ],
)
def test_layer_weights_that_cannot_be_read_are_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_layer_weights(text, PATHS)


def test_layers_are_ordered_by_number_and_have_a_group() -> None:
    shuffled = [PATHS[i] for i in (2, 3, 0, 1)]
    assert in_order(shuffled) == PATHS
    family = FAMILIES["sd1"]
    assert list(family.groups(PATHS).values()) == ["down", "down", "down", "middle"]
    assert family.groups(["output_blocks.3.1.attn2"]) == {"output_blocks.3.1.attn2": "up"}


def test_the_layers_of_a_transformer_are_in_thirds() -> None:
    family = FAMILIES["cosmos2"]
    paths = [f"blocks.{n}.cross_attn" for n in range(28)]
    groups = family.groups(reversed(paths))
    named = [groups[path] for path in paths]
    assert named == ["down"] * 10 + ["middle"] * 9 + ["up"] * 9


def test_every_refusal_is_a_sentence_that_fits_its_message() -> None:
    for name, refusal in REFUSED.items():
        assert not refusal.reason.endswith("."), name
        assert refusal.reason[0].islower(), name
