"""From ComfyUI's IMAGE, MASK and VAE to what training takes."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..concept.placeholder import mentions, not_mentioned
from ..method.batches import PictureGroup, TrainingError
from ..method.sizes import CELL, bucket, cut_off, fit, whole_cells
from .models import ComfyMismatch
from .protocols import Vae

PREVIEW_SIZE = 96
PREVIEW_QUALITY = 75


@dataclass(frozen=True, eq=False)
class Picture:
    """One training picture.

    Attributes:
        pixels: [3, H, W], 0 to 1.
        mask: [H, W], or None.
        caption: with "{}" for the placeholder; "" for templates.
    """

    pixels: Tensor
    mask: Tensor | None = None
    caption: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.pixels.shape[2], self.pixels.shape[1]


def read_pictures(
    images: Sequence[Tensor | None],
    masks: Sequence[Tensor | None],
    captions: Sequence[str],
    placeholder: str,
) -> list[Picture]:
    """Pictures from lists of ComfyUI's IMAGEs [B, H, W, C] and MASKs [B, h, w], and of captions.

    Batches in a list count as the pictures in them. A single mask serves all pictures.

    Args:
        captions: one text with a line for each picture, or a text for each picture, such as a
            folder of captioned pictures gives; "" for a picture without one.

    Raises TrainingError when there is no picture, or masks or captions do not go with them.
    """
    pixels = [
        image.movedim(-1, 0)
        for batch in images
        if batch is not None
        for image in in_colour(batch, "training pictures")
    ]
    if not pixels:
        raise TrainingError(
            "There is no training picture: connect images to train from (4 to 6 are good)."
        )
    _check_numbers("training picture", pixels)
    all_masks = [mask for batch in masks if batch is not None for mask in _flat(batch)]
    _check_numbers("mask", all_masks)
    if len(all_masks) == 1:
        all_masks *= len(pixels)
    if all_masks and len(all_masks) != len(pixels):
        raise TrainingError(
            f"There are {len(all_masks)} masks for {len(pixels)} pictures: give one mask for each "
            "picture, or a single one for all."
        )
    lines = _captions(captions, placeholder, len(pixels))
    return [
        Picture(p, _resized(all_masks[n], p.shape[1:]) if all_masks else None, line)
        for n, (p, line) in enumerate(zip(pixels, lines, strict=True))
    ]


def in_colour(images: Tensor, what: str) -> Tensor:
    """ComfyUI's IMAGE [B, H, W, C] as [B, H, W, 3]: grey is made colour, transparency left out.

    Args:
        what: how a message calls them, such as "training pictures".

    Raises ComfyMismatch for what is no batch of pictures.
    """
    shape = list(images.shape)
    if len(shape) != 4 or shape[3] not in (1, 3, 4) or not shape[1] or not shape[2]:
        raise ComfyMismatch(
            f"The {what} have the shape {shape}; expected [pictures, height, width, 3], colours "
            "last, such as Load Image gives. Connect an IMAGE, not a mask or latents, and no empty "
            "one."
        )
    return images.expand(-1, -1, -1, 3) if shape[3] == 1 else images[..., :3]


def _check_numbers(what: str, tensors: Sequence[Tensor]) -> None:
    """Raises TrainingError, with the number of the one, for NaN or infinity in any."""
    for number, tensor in enumerate(tensors, start=1):
        if not bool(tensor.isfinite().all()):
            raise TrainingError(
                f"The {what} {number} holds NaN or infinity: the node that it comes from failed, "
                "such as a VAE that decodes in half precision. Look at its picture, and leave it "
                "out or make it again."
            )


def _flat(batch: Tensor) -> Tensor:
    if batch.dim() < 2 or 0 in batch.shape[-2:]:
        raise TrainingError(
            f"The masks have the shape {list(batch.shape)}; expected [masks, height, width], "
            "and no empty one."
        )
    return batch.reshape(-1, *batch.shape[-2:])


def _resized(mask: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(mask.shape) == tuple(size):
        return mask.float()
    resized = torch.nn.functional.interpolate(
        mask[None, None].float(), size=tuple(size), mode="area"
    )
    return resized[0, 0]


def prompt_lines(text: str, placeholder: str, kind: str) -> list[str]:
    """The lines of a text, each with one "{}" in the placeholder's place; empty lines left out.

    Raises TrainingError, which calls a line a `kind`, for one that does not name it once.
    """
    return [
        _with_blank(line.strip(), placeholder, kind) for line in text.splitlines() if line.strip()
    ]


def _with_blank(line: str, placeholder: str, kind: str) -> str:
    """A line with "{}" in the placeholder's place."""
    remedy = f"write {{}} or {placeholder} where it stands, apart from other letters and digits."
    blanks, named = line.count("{}"), mentions(line, placeholder)
    if blanks + len(named) > 1:
        raise TrainingError(
            f'The {kind} "{line}" must name the concept once, and names it '
            f"{blanks + len(named)} times: {remedy}"
        )
    if not blanks and not named:
        raise TrainingError(
            f'The {kind} "{line}" must name the concept once, and '
            f"{not_mentioned(line, placeholder)}: {remedy}"
        )
    blank = line
    for mention in named:
        blank = f"{line[: mention.start]}{{}}{line[mention.end :]}"
    filled = blank.replace("{}", placeholder)
    if len(mentions(filled, placeholder)) != 1:
        raise TrainingError(
            f'The {kind} "{line}" must name the concept once, but with "{placeholder}" for {{}} '
            f'it reads "{filled}", which {not_mentioned(filled, placeholder)}: {remedy}'
        )
    return blank


def _captions(texts: Sequence[str], placeholder: str, count: int) -> list[str]:
    """One caption for each picture, with "{}" in the placeholder's place; "" for none."""
    if not any(text.strip() for text in texts):
        return [""] * count
    if len(texts) > 1:
        if len(texts) != count:
            raise TrainingError(
                f"There is a list of {len(texts)} captions for {count} pictures: connect one "
                "caption for each picture, in their order."
            )
        # A caption of several lines is still one picture's: as one line it is read whole.
        return [_caption(" ".join(text.split()), placeholder) for text in texts]
    lines = prompt_lines(texts[0], placeholder, "caption")
    if len(lines) != count:
        raise TrainingError(
            f"There are {len(lines)} captions for {count} pictures: write one line for each "
            "picture, in their order, or leave the field empty."
        )
    return lines


def _caption(text: str, placeholder: str) -> str:
    return "".join(prompt_lines(text, placeholder, "caption"))


def bring_to_size(
    pictures: Sequence[Picture], usual: int, resolution: int = 0, cell: int = CELL
) -> tuple[list[Picture], str]:
    """Pictures at sizes to train at, and a line that says which.

    Args:
        usual: side of a square of the area that the model was made for.
        resolution: the same, as the user wants it. 0: `usual`; but pictures that are all of one
            size of no larger area stay as they are, but for what the autoencoder has no whole cell
            for.
        cell: side in pixels of what sizes are whole multiples of.

    Raises TrainingError for a mask with nothing in it, or with nothing left after cropping.
    """
    (width, height), *others = {picture.size for picture in pictures}
    alike = not resolution and not others and width * height <= usual**2
    sized, counts, most = [], dict[tuple[int, int], int](), 0.0
    for number, picture in enumerate(pictures, start=1):
        if alike:
            size = whole_cells(*picture.size, cell)
        else:
            size = bucket(*picture.size, resolution or usual, cell)
        most = max(most, cut_off(*picture.size, size))
        counts[size] = counts.get(size, 0) + 1
        mask = None if picture.mask is None else fit(picture.mask[None], size)[0]
        # Here, where a picture still has the number that the user knows it by.
        if mask is not None and not bool(mask.amax() > 0):
            raise TrainingError(
                f"The mask of picture {number} is empty or not a number at {size[0]}x{size[1]}, "
                "the size that the picture is trained at: draw where the concept is, or train "
                "without masks."
            )
        sized.append(replace(picture, pixels=fit(picture.pixels, size), mask=mask))
    listed = ", ".join(f"{n} of {w}x{h}" for (w, h), n in sorted(counts.items()))
    cropped = f"; at most {most:.0%} of a picture cut off" if most >= 0.005 else ""
    return sized, f"{listed}{cropped}"


def look_like_backgrounds(pictures: Sequence[Picture]) -> bool:
    """Whether most masks are where the thing is not: all around, and nowhere in the middle.

    Load Image's mask of a cut-out picture is so: it is where the picture is transparent.
    """
    masked = [picture.mask for picture in pictures if picture.mask is not None]
    return bool(masked) and 2 * sum(map(_is_background, masked)) > len(masked)


def _is_background(mask: Tensor) -> bool:
    height, width = mask.shape
    middle = mask[height // 3 : -(height // 3) or None, width // 3 : -(width // 3) or None]
    edge = torch.cat([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    return bool(edge.mean() > 0.9 and middle.mean() < 0.1)


def flipped(pictures: Sequence[Picture]) -> list[Picture]:
    """The pictures and their mirror images."""
    return [
        *pictures,
        *(
            replace(p, pixels=p.pixels.flip(-1), mask=None if p.mask is None else p.mask.flip(-1))
            for p in pictures
        ),
    ]


def picture_groups(
    vae: Vae, pictures: Sequence[Picture], on_picture: Callable[[], None] = lambda: None
) -> list[PictureGroup]:
    """Latents in groups of one size, encoded one picture at a time to keep memory low.

    Args:
        on_picture: called before each picture; may raise to stop.
    """

    def encoded(picture: Picture) -> Tensor:
        on_picture()
        latent: Tensor = vae.encode(picture.pixels.movedim(0, -1)[None].contiguous())
        return latent

    by_size: dict[tuple[int, int], list[Picture]] = {}
    for picture in pictures:
        by_size.setdefault(picture.size, []).append(picture)
    groups = []
    for members in by_size.values():
        latents = [encoded(picture) for picture in members]
        masks = [p.mask for p in members if p.mask is not None]
        groups.append(
            PictureGroup(
                torch.cat(latents),
                torch.stack(masks) if masks else None,
                [p.caption for p in members] if any(p.caption for p in members) else (),
            )
        )
    return groups


def thumbnail(pixels: Tensor) -> bytes:
    """A small JPEG of a picture [3, H, W], for a concept's preview."""
    from PIL import Image

    array = (pixels.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    image = Image.fromarray(array.movedim(0, -1).numpy())
    image.thumbnail((PREVIEW_SIZE, PREVIEW_SIZE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=PREVIEW_QUALITY)
    return buffer.getvalue()
