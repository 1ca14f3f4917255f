"""The command `import`: what another program has learned, as a concept file."""

from __future__ import annotations

import argparse
import os
from typing import Any

from perfusion_core.concept.concept_file import save_new_concept
from perfusion_core.concept.foreign import ForeignConcept, load_foreign
from tools.locate import home

from .devices import devices_of
from .errors import FleetError
from .jobs import Hashes, model_spec
from .model_options import model_of
from .train import with_arguments


def import_file(options: argparse.Namespace) -> int:
    """The command; see `add_import_options` of `import_options`."""
    device = with_arguments(devices_of(options.devices), options.comfyui_args)[0]
    # Before torch looks for its cards, which it does when one is first used.
    os.environ.update(device.environment)
    target = options.to or options.file.with_suffix(".safetensors")
    if target.suffix != ".safetensors":
        target = target.with_name(f"{target.name}.safetensors")
    try:
        # First: it takes a moment, loading a model does not.
        foreign = load_foreign(options.file)
        spec = model_spec(model_of(options), Hashes(home() / "fleet-base" / "hashes"))
        concept, notes = _made(foreign, spec, device.arguments, options)
        path = save_new_concept(concept, target)
    except ValueError as error:  # ConceptError, ComfyMismatch: what is wrong and what to do
        raise FleetError(str(error)) from error
    for note in notes:
        print(note)
    print(f"{concept.placeholder} ({concept.superclass}): {path}")
    if isinstance(foreign, ForeignConcept):
        print("Put it into ComfyUI's models/perfusion, and it is in the loader's list.")
    return 0


def _made(
    foreign: Any, spec: Any, arguments: tuple[str, ...], options: argparse.Namespace
) -> tuple[Any, list[str]]:
    import torch

    from .comfyui import Models, open_comfyui

    open_comfyui(arguments)
    from perfusion_core.comfy.foreign_concept import concept_of

    model, clip, _ = Models().get(spec)
    with torch.inference_mode():  # as ComfyUI runs its nodes
        return concept_of(foreign, model, clip, options.placeholder, options.superclass)
