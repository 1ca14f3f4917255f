"""What is learned: a concept of the emoji world, or any folder of pictures."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from demo.examples import FOLDER
from perfusion_core.method.batches import PictureGroup

from .local_comfyui import LocalComfyUI, placeholder, read_folder
from .recipe import CAPTIONS
from .world.pictures import BACKGROUNDS, training_pictures
from .world.render import SIZE, Scene, Thing, draw_background, render
from .world.vocabulary import CONCEPTS, REPORTED, Individual

DIFFERENT = 6  # of 255: a pixel where the concept was drawn differs from the empty background


@dataclass(frozen=True, eq=False)
class Subject:
    """A thing to learn.

    Attributes:
        name: what it is called in tables.
        superclass: the ordinary word for what it is.
        pictures: of it, square.
        masks: where it is in each picture [H, W], or None where nobody knows.
        captions: what each picture shows, with "{}" for the thing; empty for the pack's templates.
        of_its_kind: which of several of its superclass in one picture it is: tells their words
            apart.
    """

    name: str
    superclass: str
    pictures: Sequence[Image.Image]
    masks: Sequence[np.ndarray] | None = None
    captions: Sequence[str] = ()
    of_its_kind: int = 1

    @property
    def placeholder(self) -> str:
        """The word that stands for it in a prompt."""
        number = "" if self.of_its_kind == 1 else str(self.of_its_kind)
        return placeholder(self.superclass + number)

    @property
    def fingerprint(self) -> str:
        """Tells subjects of other pictures, masks or captions apart."""
        digest = hashlib.sha256("\n".join([self.superclass, *self.captions]).encode())
        for part in (*self.pictures, *(self.masks or ())):
            digest.update(np.asarray(part).tobytes())
        return digest.hexdigest()[:16]

    def first(self, count: int) -> Subject:
        """The same with its first pictures alone; 0 for all."""
        if not count:
            return self
        masks = None if self.masks is None else self.masks[:count]
        return replace(
            self,
            pictures=self.pictures[:count],
            masks=masks,
            captions=self.captions[:count],
        )

    def groups(self, comfyui: LocalComfyUI, masked: bool = False) -> list[PictureGroup]:
        """Its pictures and captions as every method trains on them.

        Args:
            masked: whether the masks go along.
        """
        return comfyui.groups(self.pictures, self.masks if masked else None, self.captions)


def world_subject(name: str) -> Subject:
    """A concept of the world, with the demo's captions and exact masks: drawn with the concept
    and without. The reported ones are drawn here, those of the demo come from its folders."""
    if name in REPORTED:
        concept = REPORTED[name]
        pictures = training_pictures(concept)
    else:
        concept = CONCEPTS[name]
        pictures = read_folder(FOLDER / name)
    masks = [mask_of(concept, picture, n) for n, picture in enumerate(pictures)]
    return Subject(name, concept.object, pictures, masks, CAPTIONS)


def mask_of(concept: Individual, picture: Image.Image, number: int) -> np.ndarray:
    """Where the concept is in its `number`th training picture [H, W], 0 or 1.

    Raises ValueError when the picture is not what the world draws: then there is no exact mask.
    """
    rng = random.Random(concept.name)
    for count, background in enumerate(BACKGROUNDS):
        state = rng.getstate()
        scene = Scene((Thing(concept.object, concept.look),), "alone", background)
        drawn = np.asarray(render(scene, rng)).astype(int)
        if count == number:
            if not np.array_equal(drawn, np.asarray(picture).astype(int)):
                raise ValueError(
                    f"picture {number + 1} of {concept.name} is not what the world draws today, so "
                    "its exact mask is unknown: draw the pictures again "
                    "(python -m lab.world.pictures)"
                )
            rng.setstate(state)
            empty = np.asarray(draw_background(background, rng)).astype(int)
            mask: np.ndarray = (np.abs(drawn - empty).max(axis=-1) > DIFFERENT).astype(np.float32)
            return mask
    raise ValueError(f"{concept.name} has {len(BACKGROUNDS)} pictures, none of number {number + 1}")


def folder_subject(folder: Path, superclass: str) -> Subject:
    """A folder of pictures of one thing; each is cut to its middle square.

    Raises ValueError when there is no picture in it, or one that cannot be read.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: give one that holds pictures of one thing")
    try:
        pictures = [_square(picture) for picture in read_folder(folder)]
    except OSError as error:
        raise ValueError(
            f"a picture in {folder} cannot be read: {error}. Take it out, or save it again."
        ) from error
    if not pictures:
        raise ValueError(f"{folder} holds no picture: png, jpg, jpeg or webp is expected")
    return Subject(folder.name, superclass, pictures)


def _square(picture: Image.Image) -> Image.Image:
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    square = picture.crop((left, top, left + side, top + side))
    return square.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
