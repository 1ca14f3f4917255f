"""Concepts are valid by construction, and say what is wrong otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from perfusion_core.concept.concept import Concept, ConceptError, check_fits, check_words
from perfusion_core.families import FAMILIES, in_order
from perfusion_core.method.settings import ConceptSettings

MakeConcept = Callable[..., Concept]

LAYER = "middle_block.1.attn2"


def test_what_a_concept_says_about_itself(make_concept: MakeConcept) -> None:
    concept = make_concept()
    assert concept.width == 192
    assert concept.vectors == 2
    assert list(concept.layers.values()) == [32, 64, 96]
    assert concept.settings == ConceptSettings(bias=0.55, temperature=0.125, strength=1)


def test_a_concept_does_not_change_with_the_tensors_it_was_made_of(
    make_concept: MakeConcept,
) -> None:
    given = torch.ones(192, dtype=torch.float16)
    concept = make_concept(superclass_encoding=given)
    before = concept.hash
    given.zero_()
    assert concept.superclass_encoding.all()
    assert make_concept(superclass_encoding=torch.ones(192)).hash == before


def test_tensors_that_require_gradients_are_detached(make_concept: MakeConcept) -> None:
    concept = make_concept(superclass_encoding=torch.ones(192, requires_grad=True))
    assert not concept.superclass_encoding.requires_grad


@pytest.mark.parametrize("field", ["target_input", "whitened_target", "superclass_encoding"])
def test_the_hash_sees_every_vector(make_concept: MakeConcept, field: str) -> None:
    concept = make_concept()
    changed = getattr(concept, field).clone()
    changed[5] *= 1.01
    assert make_concept(**{field: changed}).hash != concept.hash


def test_the_hash_sees_the_names_of_layers(make_concept: MakeConcept) -> None:
    values = {"input_blocks.1.attn2": torch.ones(4), "output_blocks.1.attn2": torch.zeros(4)}
    swapped = {"output_blocks.1.attn2": torch.ones(4), "input_blocks.1.attn2": torch.zeros(4)}
    assert make_concept(values=values).hash != make_concept(values=swapped).hash
    assert make_concept(values=values).hash == make_concept(values=dict(values)).hash


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"family": "sd9"}, 'family "sd9" is not known'),
        ({"placeholder": "my teddy"}, 'placeholder "my teddy" cannot be used'),
        ({"placeholder": ""}, "placeholder"),
        ({"placeholder": "(teddy)"}, "placeholder"),
        ({"placeholder": "embedding:x"}, "placeholder"),
        ({"superclass": " "}, "superclass is empty"),
        (
            {"target_input": torch.ones(768)},
            r"target_input has the shape \[768\]; expected \[192\]",
        ),
        ({"superclass_encoding": torch.ones(1, 192)}, r"shape \[1, 192\]"),
        ({"embeddings": {}}, "for the text encoders none, but"),
        ({"embeddings": {"clip_g": torch.ones(1, 192)}}, "has clip_l"),
        ({"embeddings": {"clip_l": torch.ones(1, 7)}}, r"embedding.clip_l has the shape \[1, 7\]"),
        ({"embeddings": {"clip_l": torch.ones(192)}}, r"embedding.clip_l has the shape \[192\]"),
        ({"embeddings": {"clip_l": torch.ones(0, 192)}}, "no vectors"),
        ({"values": {}}, "no learned values"),
        ({"values": {LAYER: torch.ones(2, 2)}}, rf"value.{LAYER} has the shape \[2, 2\]"),
        ({"values": {LAYER: torch.tensor([1.0, torch.nan])}}, f"value.{LAYER} holds NaN"),
        ({"values": {LAYER: torch.tensor([1e9])}}, "infinity"),  # too large for fp16
        (
            {"values": {LAYER: torch.ones(2), "text_model.7.attn2": torch.ones(2)}},
            "values for text_model.7.attn2, but no cross-attention layer of the emoji world",
        ),
        ({"values": {"middle_block.1.attn1": torch.ones(2)}}, "values for middle_block.1.attn1"),
        ({"keys": {LAYER: torch.ones(2)}}, "keys for 1 layers and values for 3; only one"),
        (
            {"values": {LAYER: torch.ones(2)}, "keys": {LAYER: torch.ones(3)}},
            rf"key.{LAYER} has the shape \[3\]; expected \[2\]",
        ),
        ({"whitened_target": torch.full((192,), torch.nan)}, "whitened_target holds NaN"),
        ({"whitened_target": torch.zeros(192)}, "do not belong together"),
        ({"bias": float("nan")}, "bias is nan"),
        ({"temperature": 0.0}, "temperature is 0.0"),
    ],
)
def test_an_unusable_concept_cannot_be_made(
    make_concept: MakeConcept, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConceptError, match=message):
        make_concept(**fields)


@pytest.mark.parametrize("placeholder", ["teddy*", "<my-teddy>", "S*", "żółw", "ohwx!", "sks_2"])
def test_usual_placeholders_are_fine(placeholder: str) -> None:
    check_words(placeholder, "teddy bear")


def test_layers_have_an_order_whatever_a_file_calls_them() -> None:
    odd = "input_blocks.\N{SUPERSCRIPT TWO}.attn2"  # a digit to Python, but no number
    paths = ["input_blocks.10.attn2", odd, "input_blocks.2.attn2"]
    assert in_order(paths) == [odd, "input_blocks.2.attn2", "input_blocks.10.attn2"]


# --- fitting a model


def test_a_concept_fits_a_model_of_its_layers(make_concept: MakeConcept) -> None:
    concept = make_concept()
    check_fits(concept, FAMILIES["emoji"], concept.layers)


def test_another_family_is_refused(make_concept: MakeConcept) -> None:
    with pytest.raises(ConceptError) as caught:
        check_fits(make_concept(), FAMILIES["sd1"], {})
    for part in ('"Berry"', "emoji", "192", "Stable Diffusion 1.x", "768", "Load a model"):
        assert part in str(caught.value)


def test_layers_that_differ_are_named(make_concept: MakeConcept) -> None:
    concept = make_concept()
    first, second, third = concept.layers
    layers = {first: 32, second: 65, "middle_block.1.transformer_blocks.0.attn2": 96}
    with pytest.raises(ConceptError) as caught:
        check_fits(concept, FAMILIES["emoji"], layers)
    message = str(caught.value)
    assert "without a value middle_block.1.transformer_blocks.0.attn2;" in message
    assert f"not in the model {third};" in message
    assert f"of another width {second}." in message


# --- families


def test_the_widths_of_the_families_are_those_of_their_models() -> None:
    widths = {family.id: family.context_width for family in FAMILIES.values()}
    assert widths == {
        **{"sd1": 768, "sd2": 1024, "sdxl": 2048, "emoji": 192},
        **{"cosmos2": 1024, "anima": 1024, "wan21": 4096, "wan22_5b": 4096},
        **{"pixart_alpha": 4096, "pixart_sigma": 4096, "ltxv": 4096, "hunyuan_dit": 1024 + 2048},
    }
    assert list(FAMILIES["sdxl"].encoders) == ["clip_l", "clip_g"]  # the order in the context
