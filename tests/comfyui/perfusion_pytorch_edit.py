"""PyPI's perfusion-pytorch, another implementation of the paper, to compare with."""

from __future__ import annotations

import copy
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

WHY_NOT = (
    "perfusion-pytorch is not installed here; `make test` installs it where the environment is of "
    "its making, elsewhere it is: pip install --no-deps perfusion-pytorch==0.1.23 beartype "
    "opt-einsum"
)


def is_installed() -> bool:
    return all(importlib.util.find_spec(name) for name in ("perfusion_pytorch", "beartype"))


def _package() -> ModuleType:
    """Its module of the rank-one edit."""
    with _open_clip():
        import perfusion_pytorch.perfusion

    return perfusion_pytorch.perfusion


@contextmanager
def _open_clip() -> Iterator[None]:
    """Something to import as `open_clip`, which the edit has no use for, where it is not there."""
    if importlib.util.find_spec("open_clip") is not None:
        yield
        return
    stand_in: Any = ModuleType("open_clip")
    stand_in.tokenizer = ModuleType("open_clip.tokenizer")
    stand_in.tokenizer.tokenize = lambda texts: texts
    sys.modules["open_clip"] = stand_in
    try:
        yield
    finally:
        del sys.modules["open_clip"]


def covariance() -> Tensor:
    """C [768, 768] of SD 1.5's text encodings, estimated from 100,000 captions of LAION."""
    path = _package().COVARIANCE_FILENAME_BY_TEXT_IMAGE_MODEL["SD15"]
    matrix: Tensor = torch.load(path, weights_only=True, map_location="cpu")
    return matrix


def edit_module(
    linear: Any, C: Tensor, inputs: Tensor, outputs: Tensor, keys: bool, cholesky: bool = False
) -> Any:
    """Its module on a projection, in eval mode, as if it had been trained.

    Several concepts are merged from modules of one each: it cannot be made for several at once.

    Args:
        inputs: i [J, d].
        outputs: o [J, out].
        cholesky: its other way with several concepts.
    """
    blank = _package().Rank1EditModule(linear, C=C, is_key_proj=keys).to(inputs.dtype)
    singles = []
    for i, o in zip(inputs, outputs, strict=True):
        single = copy.deepcopy(blank)
        with torch.no_grad():
            single.initted.fill_(True)
            single.ema_concept_text_encs[0] = i
            single.concept_outputs[0] = o
        singles.append(single)
    if len(singles) == 1:
        return singles[0].eval()
    return _package().merge_rank1_edit_modules(*singles, use_cholesky=cholesky).eval()
