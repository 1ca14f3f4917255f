"""The way to the host: nothing else in `perfusion_core` knows ComfyUI.

Importing this package needs no ComfyUI; calling most of it does.
"""

from .attention import AttentionScope, attention_maps
from .backbone import CHECKPOINTING, HostBackbone, refuse_known_word, training_backbone
from .beside import Busy
from .catalogue import (
    Listed,
    checkpoint_family,
    concept_card,
    concept_cards,
    concept_of,
    concept_preview,
)
from .folder import (
    checked_name,
    concept_names,
    concept_path,
    default_name,
    file_fingerprint,
    folder_fingerprint,
    register_folder,
    save_named,
    saved_name,
)
from .inspect import token_gates
from .live import Run, begin_live, move_live, tell_page, write_back
from .masks import mask_models, register_mask_folder, zero_shot_masks
from .memory import out_of_memory
from .metadata import note_applied, register_metadata
from .models import HostMismatch, detect_family
from .pictures import (
    Picture,
    bring_to_size,
    flipped,
    in_colour,
    look_like_backgrounds,
    picture_groups,
    prompt_lines,
    read_pictures,
    thumbnail,
)
from .prompts import add_concepts
from .sampling import BackbonePainter
from .scores import AUTO, ClipScorer, score_models
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
from .tokens import (
    EncoderGone,
    NoConcept,
    NoEncoder,
    Similarities,
    applied_concept,
    prompt_similarities,
    remember_encoder,
    renamed,
)

__all__ = [
    "AUTO",
    "CHECKPOINTING",
    "AttentionScope",
    "BackbonePainter",
    "Busy",
    "ClipScorer",
    "ConceptEntry",
    "ConceptStack",
    "EncoderGone",
    "HostBackbone",
    "HostMismatch",
    "Listed",
    "NoConcept",
    "NoEncoder",
    "Picture",
    "Run",
    "Similarities",
    "add_concepts",
    "applied_concept",
    "apply_stack",
    "attention_maps",
    "begin_live",
    "bring_to_size",
    "checked_name",
    "checkpoint_family",
    "concept_card",
    "concept_cards",
    "concept_names",
    "concept_of",
    "concept_path",
    "concept_preview",
    "covariance_of",
    "default_name",
    "detect_family",
    "extend_stack",
    "family_of_clip",
    "file_fingerprint",
    "flipped",
    "folder_fingerprint",
    "in_colour",
    "layer_paths",
    "look_like_backgrounds",
    "mask_models",
    "move_live",
    "note_applied",
    "out_of_memory",
    "picture_groups",
    "prompt_lines",
    "prompt_similarities",
    "read_pictures",
    "recommended",
    "refuse_known_word",
    "register_folder",
    "register_mask_folder",
    "register_metadata",
    "remember_encoder",
    "renamed",
    "save_named",
    "saved_name",
    "score_models",
    "stack_of",
    "tell_page",
    "thumbnail",
    "token_gates",
    "training_backbone",
    "tune",
    "write_back",
    "zero_shot_masks",
]
