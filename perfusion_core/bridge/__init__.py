"""The way to the host: nothing else in `perfusion_core` knows ComfyUI.

Importing this package needs no ComfyUI; calling most of it does.
"""

from .backbone import CHECKPOINTING, HostBackbone, training_backbone
from .folder import (
    concept_names,
    concept_path,
    default_name,
    file_fingerprint,
    register_folder,
    save_path,
    saved_name,
)
from .inspect import token_gates
from .masks import mask_models, register_mask_folder, zero_shot_masks
from .models import HostMismatch, detect_family
from .pictures import (
    Picture,
    bring_to_size,
    flipped,
    picture_groups,
    prompt_lines,
    read_pictures,
    thumbnail,
)
from .prompts import add_concepts
from .sampling import BackbonePainter
from .scores import ClipScorer
from .stack import (
    ConceptEntry,
    ConceptStack,
    apply_stack,
    extend_stack,
    layer_paths,
    recommended,
    stack_of,
    tune,
)
from .texts import covariance_of, family_of_clip

__all__ = [
    "CHECKPOINTING",
    "BackbonePainter",
    "ClipScorer",
    "ConceptEntry",
    "ConceptStack",
    "HostBackbone",
    "HostMismatch",
    "Picture",
    "add_concepts",
    "apply_stack",
    "bring_to_size",
    "concept_names",
    "concept_path",
    "covariance_of",
    "default_name",
    "detect_family",
    "extend_stack",
    "family_of_clip",
    "file_fingerprint",
    "flipped",
    "layer_paths",
    "mask_models",
    "picture_groups",
    "prompt_lines",
    "read_pictures",
    "recommended",
    "register_folder",
    "register_mask_folder",
    "save_path",
    "saved_name",
    "stack_of",
    "thumbnail",
    "token_gates",
    "training_backbone",
    "tune",
    "zero_shot_masks",
]
