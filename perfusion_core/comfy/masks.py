"""Zero-shot masks: where a word is in a picture, by CLIPSeg through `transformers`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .models import ComfyMismatch
from .pictures import in_colour
from .pretrained import load_whole, model_folders

FOLDER = "clipseg"
REMEDY = (
    "Get a CLIPSeg model in safetensors form, such as CIDAS/clipseg-rd64-refined from "
    "huggingface.co (all its files: config.json, model.safetensors, the tokenizer's and the "
    "preprocessor's), and put its folder into models/clipseg. Or draw the masks by hand, or train "
    "without: masks are optional."
)


def register_mask_folder() -> None:
    """Make `models/clipseg` known to ComfyUI. Creates nothing on disk. Safe to call again."""
    import folder_paths

    folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))


def mask_models() -> dict[str, Path]:
    """Name -> folder of every CLIPSeg model that is there."""
    return model_folders(FOLDER, lambda config: True, root_too=True)


def zero_shot_masks(
    name: str,
    images: Tensor,
    word: str,
    on_picture: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Soft masks [B, H, W], 0 to 1, of where `word` is in ComfyUI's IMAGE [B, H, W, C].

    The probability that CLIPSeg gives, divided by each image's own maximum.

    Args:
        name: of `mask_models`.
        on_picture: told of (pictures done, in all); may raise to stop.

    Raises ComfyMismatch when the model is not there or is no CLIPSeg, or the word is empty.
    """
    from comfy import model_management
    from comfy.model_patcher import ModelPatcher

    if not word.strip():
        raise ComfyMismatch(
            'The word is empty: write what to look for in an ordinary word, such as "teddy".'
        )
    images = in_colour(images, "pictures")
    if not len(images):
        raise ComfyMismatch("There is no picture to look at: connect at least one.")
    if not bool(images.isfinite().all()):
        raise ComfyMismatch(
            "A picture holds NaN or infinity: the node that it comes from failed. Look at the "
            "pictures, and leave it out or make it again."
        )
    processor, model = _load(name)
    # In a module of its own: ComfyUI notes the device on what it patches.
    patcher = ModelPatcher(
        torch.nn.ModuleDict({FOLDER: model}),
        load_device=model_management.get_torch_device(),
        offload_device=model_management.unet_offload_device(),
    )
    model_management.load_models_gpu([patcher])
    masks = []
    for number, image in enumerate(images, start=1):
        pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
        inputs = processor(text=[word.strip()], images=[pixels], return_tensors="pt")
        inputs = {key: value.to(patcher.load_device) for key, value in inputs.items()}
        with torch.no_grad():
            logits = model(**inputs).logits
        probability = logits.float().sigmoid().reshape(1, 1, *logits.shape[-2:])
        resized = torch.nn.functional.interpolate(
            probability, size=image.shape[:2], mode="bilinear", antialias=True
        )[0, 0]
        masks.append((resized / resized.max().clamp(min=1e-12)).cpu())
        if on_picture is not None:
            on_picture(number, len(images))
    return torch.stack(masks)


def _load(name: str) -> tuple[Any, Any]:
    known = mask_models()
    if name not in known:
        listed = ", ".join(known) or "none"
        raise ComfyMismatch(
            f'There is no CLIPSeg model "{name}" in models/{FOLDER} (found: {listed}). {REMEDY}'
        )
    # Here and not above: importing it takes a second that only this node should cost.
    from transformers import CLIPSegForImageSegmentation, CLIPSegProcessor

    return load_whole(known[name], CLIPSegForImageSegmentation, CLIPSegProcessor, "CLIPSeg", REMEDY)
