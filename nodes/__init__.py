"""The nodes, one file per job. They hold no maths: that is in `perfusion_core`."""

from __future__ import annotations

import sys

from comfy_api.latest import ComfyExtension, io

from ..perfusion_core.comfy.concept_folder import register_folder
from ..perfusion_core.comfy.foreign_folder import register_foreign_folder
from ..perfusion_core.comfy.masks import register_mask_folder
from ..perfusion_core.comfy.metadata import register_metadata
from .apply import PerfusionApplyConcepts
from .attention_map import PerfusionAttentionMap
from .combine import PerfusionCombineConcepts
from .covariance import PerfusionCovariance
from .demo_model import PerfusionDemoModel
from .import_concept import PerfusionImport
from .info import PerfusionConceptInfo
from .inspect import PerfusionGateInspector
from .loader import PerfusionConceptLoader
from .mask import PerfusionZeroShotMask
from .pictures import PerfusionTrainingPictures
from .routes import add_routes
from .save import PerfusionSaveConcept
from .sweep import PerfusionSweep
from .train import PerfusionTrainConcept
from .tune import PerfusionTune

NODES: list[type[io.ComfyNode]] = [
    PerfusionConceptLoader,
    PerfusionCombineConcepts,
    PerfusionApplyConcepts,
    PerfusionTune,
    PerfusionTrainingPictures,
    PerfusionTrainConcept,
    PerfusionSaveConcept,
    PerfusionImport,
    PerfusionCovariance,
    PerfusionZeroShotMask,
    PerfusionGateInspector,
    PerfusionAttentionMap,
    PerfusionSweep,
    PerfusionConceptInfo,
    PerfusionDemoModel,
]


class PerfusionExtension(ComfyExtension):
    """The pack, as ComfyUI sees it."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        # Here and not at import: ComfyUI asks for the nodes' inputs next, which list the folders.
        register_folder()
        register_foreign_folder()
        register_mask_folder()
        _register_routes()
        register_metadata()
        return NODES


def _register_routes() -> None:
    # The server is there before its nodes are asked for, and takes up routes after that. Where
    # nodes run without it, nobody has to be answered, and importing it would start half of it.
    module = sys.modules.get("server")
    server = getattr(getattr(module, "PromptServer", None), "instance", None)
    if server is not None:
        add_routes(server.routes)
