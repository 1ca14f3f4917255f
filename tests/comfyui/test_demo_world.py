"""The emoji world as it is shipped: what the demo's figures rest on."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from demo import model as small
from lab.base.train_decoder import load_components
from lab.judge import load_judge
from lab.train_judge import ThroughAutoencoder, accuracy, scene_to_judge
from lab.world.captions import LONGEST, caption, random_scene, tokens_of
from lab.world.render import render
from lab.world.vocabulary import (
    BACKGROUNDS,
    CONCEPTS,
    HELD_OUT,
    OBJECTS,
    PAINTS,
    PATTERNS,
    REPORTED,
    individuals,
)


def test_a_scene_is_drawn_the_same_from_the_same_seed() -> None:
    population = list(individuals().values())
    for seed in range(5):
        first, again = (random.Random(seed) for _ in range(2))
        scenes = [random_scene(rng, population) for rng in (first, again)]
        assert scenes[0] == scenes[1]
        drawn = [np.asarray(render(scenes[0], rng)) for rng in (first, again)]
        assert (drawn[0] == drawn[1]).all()


def test_the_base_model_has_never_seen_a_concept() -> None:
    population = individuals()
    assert len(population) == 32 * len(OBJECTS)
    for concept in (*CONCEPTS.values(), *REPORTED.values()):
        assert concept.name not in population
        assert not any(
            (one.object, one.look) == (concept.object, concept.look) for one in population.values()
        )


def test_no_scene_of_the_base_models_training_shows_a_concept() -> None:
    population, rng = list(individuals().values()), random.Random(11)
    for _ in range(3000):
        scene = random_scene(rng, population)
        assert not {(t.object, t.look) for t in scene.things} & HELD_OUT
        assert tokens_of(caption(scene, rng)) <= LONGEST


def test_the_reported_concepts_are_two_of_every_object_and_none_of_the_tuned() -> None:
    assert Counter(one.object for one in REPORTED.values()) == dict.fromkeys(OBJECTS, 2)
    assert not {(c.object, c.look) for c in CONCEPTS.values()} & {
        (c.object, c.look) for c in REPORTED.values()
    }


def test_a_name_is_one_token_and_no_other_word_of_the_world() -> None:
    clip = small.EmojiClipTokenizer()
    words = {*OBJECTS, *BACKGROUNDS, *PAINTS, *PATTERNS}
    for name in individuals():
        tokens = [t for t, _ in clip.tokenize_with_weights(name)["l"][0] if t not in (49406, 49407)]
        assert len(tokens) == 1
        assert name not in words


def test_the_judge_is_right_on_fresh_drawings() -> None:
    """Alone and in groups, two of one object too: every thing and its whole look."""
    shares = accuracy(load_judge(), 400, seed=4711)
    assert min(shares.values()) >= 0.97, shares


def test_the_judge_is_right_on_what_the_autoencoder_makes_of_drawings() -> None:
    shares = accuracy(load_judge(), 100, seed=4712, through=ThroughAutoencoder())
    assert min(shares.values()) >= 0.9, shares


def test_the_autoencoder_keeps_what_the_judge_looks_for() -> None:
    _, _, vae = small.load()
    rng = random.Random(99)
    population = list(individuals().values())
    scenes = [scene_to_judge(rng, population) for _ in range(48)]
    pictures = (
        torch.from_numpy(np.stack([np.asarray(render(s, rng)) for s in scenes])).float() / 255
    )
    with torch.inference_mode():
        again = vae.decode(vae.encode(pictures)).cpu()
    assert (again - pictures).abs().mean() < 0.04
    seen = load_judge().look_at(
        [Image.fromarray((p.numpy() * 255).round().astype(np.uint8)) for p in again]
    )
    right = [
        v.objects == {t.object for t in s.things} and v.background == s.background
        for v, s in zip(seen, scenes, strict=True)
    ]
    assert sum(right) / len(right) >= 0.95


def test_missing_weights_are_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"unet.*git clone"):
        small.load(tmp_path)


def test_the_shipped_encoder_is_the_one_that_the_base_model_was_trained_on() -> None:
    components = load_components()
    _, _, vae = small.load()
    rng = random.Random(5)
    scenes = [random_scene(rng, list(individuals().values())) for _ in range(4)]
    pictures = (
        torch.from_numpy(np.stack([np.asarray(render(s, rng)) for s in scenes])).float() / 255
    )
    with torch.inference_mode():
        encoded = vae.encode(pictures).cpu()
    expected = components.encode(pictures.movedim(-1, 1))
    assert (encoded - expected).abs().max() < 0.02  # the weights are stored in fp16
