"""How good pictures are, by CLIP through `transformers`: like the training pictures, true to text.

It works on the CPU: some pictures now and then take it a second or two there, and on the device it
would push off it what is being trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..method.validation import Score
from .models import ComfyMismatch
from .pretrained import load_whole, model_folders

FOLDER = "clip_vision"
AUTO = "auto"  # in place of a model's name: the first that is there
AT_ONCE = 8  # pictures embedded in one batch
REMEDY = (
    "Get a whole CLIP model in safetensors form, such as openai/clip-vit-large-patch14 from "
    "huggingface.co (all its files: config.json, model.safetensors, the tokenizer's and the "
    f"preprocessor's), and put its folder into models/{FOLDER}. Or train with select off."
)


def score_models() -> dict[str, Path]:
    """Name -> folder of every whole CLIP model that is there, in the order of their names."""
    return dict(sorted(model_folders(FOLDER, lambda c: c.get("model_type") == "clip").items()))


class ClipScorer:
    """Mean similarity of pictures to the training pictures, and of each to its prompt's text.

    Args:
        references: the training pictures [3, H, W], 0 to 1, of any sizes.
        name: of `score_models`, or AUTO for the first of them.

    Raises ComfyMismatch where that is not there, or cannot be read.
    """

    def __init__(self, references: Sequence[Tensor], name: str = AUTO) -> None:
        known = score_models()
        if not known:
            raise ComfyMismatch(
                f"To select the best step, pictures are scored with CLIP, and there is no CLIP "
                f"model in models/{FOLDER}. {REMEDY}"
            )
        self.name = next(iter(known)) if name == AUTO else name
        if self.name not in known:
            raise ComfyMismatch(
                f'There is no CLIP model "{name}" in models/{FOLDER} (found: {", ".join(known)}). '
                f"{REMEDY}"
            )
        self._processor, self._model = _load(known[self.name])
        pictures = [reference.movedim(0, -1) for reference in references]
        self._references = self._embedded(pictures, [""] * len(pictures))[0]

    def score(self, pictures: Tensor, prompts: Sequence[str]) -> Score:
        """See `Scorer`."""
        images, texts = self._embedded(list(pictures), prompts)
        return Score(
            identity=float((images @ self._references.T).mean()),
            text=float((images * texts).sum(dim=1).mean()),
        )

    def _embedded(self, pictures: Sequence[Tensor], texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Unit vectors of pictures [H, W, 3] and of their texts."""
        pixels = [(p.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy() for p in pictures]
        images, captions = [], []
        for first in range(0, len(pixels), AT_ONCE):
            inputs = self._processor(
                text=list(texts[first : first + AT_ONCE]),
                images=pixels[first : first + AT_ONCE],
                return_tensors="pt",
                padding=True,
                truncation=True,
            )
            with torch.no_grad():
                outputs = self._model(**inputs)
            images.append(outputs.image_embeds.float())
            captions.append(outputs.text_embeds.float())
        return torch.cat(images), torch.cat(captions)


def _load(folder: Path) -> tuple[Any, Any]:
    # Here and not above: importing it takes a second that only selecting should cost.
    from transformers import CLIPModel, CLIPProcessor

    return load_whole(folder, CLIPModel, CLIPProcessor, "CLIP", REMEDY)
