"""Trains under ComfyUI's dynamic VRAM and without it; prints what came of both, as JSON.

`python tests/comfyui/dynamic_vram.py fits` (or `short`: no weight fits on the device), from the
root of the checkout, with the Python of the ComfyUI that set-up finds. See `aimdo.py`.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    ROOT = Path(__file__).resolve().parents[2]
    sys.path[:0] = [str(ROOT), str(ROOT / "tests/comfyui")]

    from tools.inprocess import open_modules
    from tools.locate import find_comfyui

    base = tempfile.TemporaryDirectory(prefix="perfusion-dynamic-", ignore_cleanup_errors=True)
    open_modules(find_comfyui(), Path(base.name))

import aimdo
import comfy.hooks
import comfy.model_management
import comfy.model_patcher
import nodes
import torch
from other_packs import lora_file, lora_weights, run_node
from tiny_models import (
    CPU,
    TinyVae,
    loaded_again_by,
    patched_modules,
    sample,
    tiny_clip,
    tiny_concept,
    tiny_model,
)

from perfusion_core.comfy import weights as weights_module
from perfusion_core.comfy.attention_recorder import attention_maps
from perfusion_core.comfy.backbone import training_backbone
from perfusion_core.comfy.concept_entry import ConceptEntry
from perfusion_core.comfy.painter import BackbonePainter
from perfusion_core.comfy.prompts import add_concepts
from perfusion_core.comfy.stack import apply_stack
from perfusion_core.method.batches import PictureGroup
from perfusion_core.method.covariance import Covariance
from perfusion_core.method.settings import ConceptSettings
from perfusion_core.method.training import Training
from perfusion_core.method.training_settings import TrainingSettings

SHAPE = (2, 4, 8, 8)
FP8 = torch.float8_e4m3fn
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "fp8": FP8}

# name: dtype of the UNet's file, of the UNet, of the text encoder's file, of the text encoder; and
# what else is done.
CASES: dict[str, tuple[str, str, str, str, tuple[str, ...]]] = {
    "all in fp32": ("fp32", "fp32", "fp32", "fp32", ()),
    "fp16 encoder": ("fp32", "fp32", "fp16", "fp16", ()),
    "fp16": ("fp16", "fp16", "fp16", "fp16", ()),
    "bf16": ("bf16", "bf16", "bf16", "bf16", ()),
    "fp8": ("fp8", "fp8", "fp8", "fp8", ()),
    "fp32 file, fp16 model": ("fp32", "fp16", "fp32", "fp16", ()),
    "fp16 file, bf16 model": ("fp16", "bf16", "fp16", "fp32", ()),
    "after sampling": ("fp16", "fp16", "fp16", "fp16", ("sampled",)),
    "fp32 file after sampling": ("fp32", "fp16", "fp32", "fp16", ("sampled",)),
    "with a LoRA": ("fp16", "fp16", "fp16", "fp16", ("sampled", "lora")),
    "fp32 file with a LoRA": ("fp32", "fp16", "fp32", "fp16", ("lora",)),
    "checkpointed": ("fp16", "fp16", "fp16", "fp16", ("sampled", "checkpointing")),
    "previews on the way": ("fp32", "fp16", "fp16", "fp16", ("previews",)),
}


@contextmanager
def held_statically() -> Iterator[None]:
    """ComfyUI's models are then made as without dynamic VRAM."""
    import comfy.memory_management  # of ComfyUI since dynamic VRAM

    memory, patchers = comfy.memory_management, comfy.model_patcher
    before = memory.aimdo_enabled, patchers.CoreModelPatcher
    memory.aimdo_enabled, patchers.CoreModelPatcher = False, patchers.ModelPatcher
    try:
        yield
    finally:
        memory.aimdo_enabled, patchers.CoreModelPatcher = before


def models(file: str, dtype: str, encoder_file: str, encoder: str) -> tuple[Any, Any]:
    """A MODEL and a CLIP as ComfyUI holds them without dynamic VRAM, loaded from such files."""
    with held_statically(), torch.inference_mode():
        cast = {"fp16": torch.float32, "fp8": torch.bfloat16}.get(dtype)
        model = tiny_model(dtype=DTYPES[dtype], cast=cast)
        clip = tiny_clip(length=32)
    for network, source, kinds in zip(
        (model.model.diffusion_model, clip.cond_stage_model),
        originals(),
        ((file, dtype), (encoder_file, encoder)),
        strict=True,
    ):
        keep(network, source, *(DTYPES[kind] for kind in kinds))
    return model, clip


@cache
def originals() -> tuple[Any, Any]:
    """The networks whose weights the files have: UNet and text encoder."""
    with held_statically(), torch.inference_mode():
        return tiny_model().model.diffusion_model, tiny_clip(length=32).cond_stage_model


def keep(module: Any, in_file: Any, file: torch.dtype, dtype: torch.dtype) -> None:
    """Give a network the weights of `in_file`, as a file of one dtype has them, in another."""
    with torch.inference_mode():
        for part, source in zip(module.modules(), in_file.modules(), strict=True):
            for name, tensor in weights(source):
                kept = tensor.detach().to(file, copy=True).to(dtype)
                part._parameters[name] = torch.nn.Parameter(kept, requires_grad=False)


def weights(part: Any) -> list[tuple[str, torch.Tensor]]:
    return [(name, tensor) for name, tensor in part._parameters.items() if tensor is not None]


def dynamic_models(
    patcher: type[Any], file: str, dtype: str, encoder_file: str, encoder: str
) -> tuple[Any, Any]:
    """The same as ComfyUI holds them with dynamic VRAM: in the file's dtype, the model's beside."""
    model, clip = models(file, dtype, encoder_file, encoder)
    with torch.inference_mode():
        networks = model.model.diffusion_model, clip.cond_stage_model
        for network, source, kind in zip(networks, originals(), (file, encoder_file), strict=True):
            comfy.model_management.archive_model_dtypes(network)
            keep(network, source, DTYPES[kind], DTYPES[kind])
        made = patcher(model.model, load_device=CPU, offload_device=CPU)
        held = patcher(clip.cond_stage_model, load_device=CPU, offload_device=CPU)
        held.set_model_compute_dtype(torch.float32)
        held.is_clip, held.hook_mode = True, clip.patcher.hook_mode
        clip.patcher = held
    return made, clip


def trained(model: Any, clip: Any, also: tuple[str, ...]) -> dict[str, Any]:
    """What three steps of training give, and what sampling gives before and after them."""
    if "lora" in also:
        names = {"model": model, "clip": clip, "lora_name": lora_file(model, clip)}
        strengths = {"strength_model": 0.5, "strength_clip": 0.5}
        with held_statically():  # files are read through comfy_aimdo too
            model, clip = run_node(nodes.LoraLoader, **names, **strengths)
    before = [picture(model, clip)] if "sampled" in also else []
    seen: list[float] = []
    with torch.inference_mode():
        generator = torch.Generator().manual_seed(3)
        latents = torch.randn(SHAPE, generator=generator) * 5
        checkpointing = "on" if "checkpointing" in also else "off"
        with training_backbone(model, clip, SHAPE, checkpointing) as backbone:
            painter = BackbonePainter(backbone, TinyVae(), SHAPE[1:], 0)

            training = Training(
                backbone,
                [PictureGroup(latents, None)],
                placeholder="teddy*",
                superclass="teddy",
                covariance=Covariance(torch.eye(192), 1000, "emoji"),
                settings=TrainingSettings(steps=3, batch_size=2, seed=1),
            )
            for step, _ in enumerate(training, start=1):
                if "previews" in also and step == 1:
                    preview = painter(training.concept, ConceptSettings(), ["a teddy*"])
                    seen.append(preview.double().sum().item())
    concept = training.concept
    learned = (concept.embeddings["clip_l"], concept.target_input, *concept.values.values())
    return {
        "learned": [*training.losses, *(part.double().norm().item() for part in learned)],
        "losses": training.losses,
        "previews": seen,
        "sampled": [*before, picture(model, clip)],
        "left": patched_modules(model),
    }


def picture(model: Any, clip: Any) -> float:
    """A number that tells sampled latents apart."""
    return sample(model, clip, "a photo of a teddy").double().sum().item()


def untreated(patcher: type[Any]) -> dict[str, Any]:
    """What training would give on the weights as ComfyUI holds them."""
    dtypes = ("fp32",) * 4
    bring, weights_module._bring = weights_module._bring, lambda *_: None
    try:
        return trained(*dynamic_models(patcher, *dtypes), ())
    finally:
        weights_module._bring = bring


def state(model: Any, clip: Any) -> list[Any]:
    """The memory that the weights are in, and where ComfyUI has them on the device."""
    parts = [*model.model.modules(), *clip.cond_stage_model.modules()]
    tensors = [tensor for part in parts for _, tensor in weights(part)]
    addresses = [getattr(part, "_v", (0, -1, 0))[1] for part in parts]
    return [[(t.data_ptr(), t.dtype) for t in tensors], addresses]


def compared(patcher: type[Any], case: str) -> dict[str, Any]:
    *dtypes, also = CASES[case]
    report: dict[str, Any] = {"static": trained(*models(*dtypes), also)}
    try:
        model, clip = dynamic_models(patcher, *dtypes)
        report["dynamic"] = trained(model, clip, also)
        report["is dynamic"] = model.is_dynamic() and clip.patcher.is_dynamic()
        comfy.model_management.unload_all_models()
        before = state(model, clip)
        again = trained(model, clip, also)
        report["again"] = again == report["dynamic"]
        comfy.model_management.unload_all_models()
        report["unchanged"] = state(model, clip) == before
    except Exception:
        report["failed"] = traceback.format_exc()
    return report


def sampled(patcher: type[Any]) -> dict[str, Any]:
    """Pictures with a concept under dynamic VRAM and without it; also with a LoRA as a hook.

    ComfyUI samples a prompt with a hook on a copy of the model that is loaded again.
    """
    dtypes = ("fp16", "fp16", "fp16", "fp16")
    concept = tiny_concept(*models("fp32", "fp32", "fp32", "fp32"))
    found: dict[str, list[torch.Tensor]] = {"equal": [], "equal with a hook": []}
    maps = []
    for model, clip in (models(*dtypes), dynamic_models(patcher, *dtypes)):
        loaded_again_by(model, lambda disable_dynamic=False: models(*dtypes)[0])
        on = apply_stack(model, [ConceptEntry(concept, ConceptSettings())])
        knowing = add_concepts(clip, [concept])
        found["equal"].append(sample(on, knowing))
        with torch.inference_mode():
            text, negative = (
                nodes.CLIPTextEncode().encode(knowing, words)[0]
                for words in ("a photo of a teddy*", "blurry")
            )
            lora = lora_weights(*models("fp32", "fp32", "fp32", "fp32"))
            hook = comfy.hooks.create_hook_lora(lora=lora, strength_model=0.5, strength_clip=0.0)
            hooked = comfy.hooks.set_hooks_for_conditioning(text, hook)
            empty = {"samples": torch.zeros(1, 4, 8, 8)}
            given = (5, 2, 4.0, "euler", "normal", hooked, negative, empty)
            latents = nodes.KSampler().sample(on, *given)[0]
            found["equal with a hook"].append(latents["samples"].clone())
            maps.append(attention_maps(on, hooked, latents).shares)
    return {
        **{what: torch.equal(*pictures) for what, pictures in found.items()},
        "finite": bool(found["equal"][0].isfinite().all()),
        "hook tells": not torch.equal(found["equal"][0], found["equal with a hook"][0]),
        "maps equal": torch.equal(*maps),
    }


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    reason = aimdo.lacking()
    if reason:
        print(json.dumps({"lacking": reason}))
    else:
        patcher = aimdo.install(fits=sys.argv[1] == "fits")
        chosen = sys.argv[2:] or list(CASES)
        report = {case: compared(patcher, case) for case in chosen}
        report = {"cases": report, "sampling": sampled(patcher)}
        if sys.argv[1] == "short":
            report["untreated"] = untreated(patcher)
        print(json.dumps(report))
