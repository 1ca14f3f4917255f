"""Draws scenes of the emoji world.

Sprites in their own or in new paint, on coloured backgrounds.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from .vocabulary import BACKGROUNDS, PAINTS, Look

SIZE = 128
SPRITES = Path(__file__).with_name("sprites")
FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
GLYPHS = {
    "teddy": "🧸", "teapot": "🫖", "cat": "🐱", "frog": "🐸", "car": "🚗", "cactus": "🌵",
    "house": "🏠", "apple": "🍎", "rocket": "🚀", "penguin": "🐧", "mushroom": "🍄", "hat": "🎩",
}  # fmt: skip


@dataclass(frozen=True)
class Thing:
    """One object in a scene.

    `name` is set for a named individual, `look` for anything repainted.
    """

    object: str
    look: Look | None = None
    name: str | None = None


# Where the things of larger groups are, in the order in which a caption names them.
PLACES = {
    "three": ((34, 34), (94, 34), (64, 95)),
    "four": ((34, 34), (94, 34), (34, 95), (94, 95)),
}


@dataclass(frozen=True)
class Scene:
    """What a picture shows. `relation` is one of alone, beside, wearing, inside, three, four."""

    things: tuple[Thing, ...]
    relation: str
    background: str


def draw_sprites(font: Path = FONT) -> None:
    """Re-draw the shipped sprites from the Noto Color Emoji font (Debian.

    Fonts-noto-color-emoji).
    """
    from PIL import ImageDraw, ImageFont

    face = ImageFont.truetype(str(font), 109)  # the only size that this bitmap font holds
    SPRITES.mkdir(exist_ok=True)
    for name, glyph in GLYPHS.items():
        canvas = Image.new("RGBA", (160, 160))
        ImageDraw.Draw(canvas).text((10, 10), glyph, font=face, embedded_color=True)
        canvas.crop(canvas.getbbox()).save(SPRITES / f"{name}.png", optimize=True)


@cache
def _sprite(obj: str) -> Image.Image:
    return Image.open(SPRITES / f"{obj}.png").convert("RGBA")


@cache
def _shading(obj: str) -> np.ndarray:
    """The sprite's light and shade in 0..1, stretched so that dark and light emoji paint alike."""
    rgba = np.asarray(_sprite(obj), dtype=np.float32)
    light = rgba[..., :3] @ np.array([0.299, 0.587, 0.114], dtype=np.float32) / 255
    solid = light[rgba[..., 3] > 128]
    low, high = np.percentile(solid, 4), np.percentile(solid, 96)
    return np.clip((light - low) / (high - low), 0, 1)


def _pattern_mask(pattern: str, width: int, height: int) -> np.ndarray:
    """Where the second paint goes: one mark a third of the thing or larger.

    A thing in a pair is seven latents wide. Marks of one latent, as this world once had, took
    700,000 samples to show up as a blur.
    """
    x = (np.arange(width, dtype=np.float32) + 0.5) / width
    y = (np.arange(height, dtype=np.float32)[:, None] + 0.5) / height
    if pattern == "striped":
        return np.broadcast_to((y > 0.36) & (y < 0.7), (height, width))
    if pattern == "checked":
        return (x < 0.5) != (y < 0.5)
    if pattern == "spotted":
        return ((x - 0.5) / 0.27) ** 2 + ((y - 0.54) / 0.3) ** 2 < 1
    return np.zeros((height, width), dtype=bool)


@lru_cache(maxsize=4096)
def painted(obj: str, look: Look | None) -> Image.Image:
    """The sprite of an object [h, w] RGBA, in its emoji colours or repainted with a look."""
    if look is None:
        return _sprite(obj)
    shade = _shading(obj)[..., None]
    height, width = shade.shape[:2]
    paint = np.array(PAINTS[look.paint], dtype=np.float32)
    second = np.array(PAINTS[look.second or look.paint], dtype=np.float32)
    mask = _pattern_mask(look.pattern, width, height)[..., None]
    colour = np.where(mask, second, paint)
    # Shade from dark features (eyes, windows stay readable) over the paint to a light highlight.
    lit = colour * (0.35 + 0.65 * np.minimum(shade / 0.55, 1))
    lit += (255 - lit) * 0.35 * np.clip((shade - 0.7) / 0.3, 0, 1)
    lit = np.where(shade < 0.12, colour * 0.18, lit)
    rgba = np.dstack([lit, np.asarray(_sprite(obj))[..., 3]])
    return Image.fromarray(rgba.round().clip(0, 255).astype(np.uint8), "RGBA")


def draw_background(name: str, rng: random.Random) -> Image.Image:
    base = np.array(BACKGROUNDS[name], dtype=np.float32)
    base = base + np.array([rng.uniform(-7, 7) for _ in range(3)])
    fade = np.linspace(1.03, 0.92, SIZE, dtype=np.float32)[:, None, None]
    pixels = np.broadcast_to(base * fade, (SIZE, SIZE, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8), "RGB")


def _paste(canvas: Image.Image, thing: Thing, cx: float, cy: float, size: float) -> None:
    """Put a thing's sprite on the canvas, its centre at (cx, cy), its longer side `size` px."""
    sprite = painted(thing.object, thing.look)
    scale = size / max(sprite.size)
    sprite = sprite.resize(
        (max(1, round(sprite.width * scale)), max(1, round(sprite.height * scale))),
        Image.Resampling.LANCZOS,
    )
    canvas.paste(sprite, (round(cx - sprite.width / 2), round(cy - sprite.height / 2)), sprite)


def render(scene: Scene, rng: random.Random) -> Image.Image:
    """Draw a scene [128, 128] RGB; `rng` moves and scales things a little."""
    return draw(scene, rng)[0]


def draw(scene: Scene, rng: random.Random) -> tuple[Image.Image, list[tuple[float, float]]]:
    """The picture of a scene, and the centre (x, y) of each of its things, in pixels."""
    canvas = draw_background(scene.background, rng)
    centres = []
    for thing, (x, y, size) in zip(scene.things, _places(scene, rng), strict=True):
        _paste(canvas, thing, x, y, size)
        centres.append((x, y))
    return canvas, centres


def _places(scene: Scene, rng: random.Random) -> list[tuple[float, float, float]]:
    """The centre and the longer side of each thing, in pixels."""

    def off(amount: float) -> float:
        return rng.uniform(-amount, amount)

    if scene.relation == "alone":
        return [(64 + off(9), 66 + off(8), 84 + off(9))]
    if scene.relation == "beside":
        # Named first stands left: the one convention by which a caption fixes the picture.
        return [(x + off(3), 68 + off(9), 58 + off(4)) for x in (34, 94)]
    if scene.relation == "wearing":
        x = 64 + off(7)
        return [(x, 82 + off(3), 76 + off(4)), (x + off(2), 33 + off(3), 50 + off(3))]
    if scene.relation == "inside":
        x = 64 + off(7)
        return [(x + off(3), 40 + off(3), 64 + off(3)), (x, 88 + off(3), 74 + off(3))]
    if scene.relation in PLACES:
        return [(x + off(3), y + off(4), 50 + off(3)) for x, y in PLACES[scene.relation]]
    raise ValueError(f"unknown relation {scene.relation!r}")
