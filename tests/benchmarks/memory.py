"""What a training step takes of a GPU's memory, at true shapes, without a GPU and without weights.

    python -m tools run -- -m tests.benchmarks.memory [--only SD15] [--write]

The step is the one that users run (`ComfyBackbone.loss` and its backward) on ComfyUI's own
networks, with torch's fake tensors: every operation happens with its shapes and dtypes, no number
is computed. An account is kept of the storages that live: a storage counts from the operation that
makes it until nothing holds it. What the account cannot see, and docs/memory.md says: what a GPU's
own kernels take for themselves, and what its allocator wastes. The attention is that of one kernel
(flash), which keeps its inputs, its output and a number a row. `--write` puts the table into
docs/memory.md.
"""

from __future__ import annotations

import argparse
import itertools
import re
import sys
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tools.inprocess import open_modules
from tools.locate import ROOT
from tools.ready import ready_comfyui

PAGE = ROOT / "docs" / "memory.md"
BEGIN, END = "<!-- table -->", "<!-- /table -->"
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """A kind of model at its true size.

    Attributes:
        config: name of ComfyUI's config class.
        side: of the pictures, in pixels.
        encoder: weights of its text encoders, as ComfyUI's classes have them.
        words: how many of them are tables of words.
        depths: (layers, width) of each encoder, to count by what autograd keeps of a prompt.
        goals: batch -> bytes that a step should stay within.
    """

    title: str
    config: str
    side: int
    encoder: int
    words: int
    depths: tuple[tuple[int, int], ...]
    goals: dict[int, float]


CASES = (
    Case("SD 1.5, 512 px", "SD15", 512, 123_060_480, 37_945_344, ((12, 768),), {4: 5e9}),
    Case(
        "SDXL, 1024 px", "SDXL", 1024, 817_720_320, 101_187_584, ((12, 768), (32, 1280)), {1: 8e9}
    ),
    Case("Anima, 1024 px", "Anima", 1024, 596_049_920, 155_582_464, ((28, 1024),), {1: 8e9}),
)


class Account(TorchDispatchMode):
    """Counts the bytes of storages that live, and the most that lived at once."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def take(self, tensor: torch.Tensor) -> None:
        """Count a tensor's storage, once."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, torch.Tensor):
                self.take(leaf)
        return found


class Flash(torch.autograd.Function):
    """Attention as one kernel: what it keeps, and what it gives."""

    @staticmethod
    def forward(ctx: Any, q: Any, k: Any, v: Any) -> Any:
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, _: Any) -> Any:  # type: ignore[override]
        q, k, v, *_rest = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _flash(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> Any:
    return Flash.apply(q, k, v)


@contextmanager
def at_true_shapes() -> Iterator[FakeTensorMode]:
    """Fake tensors; attention is one kernel."""
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake, mock.patch("torch.nn.functional.scaled_dot_product_attention", _flash):
        yield fake


def step(case: Case, batch: int, checkpointing: bool, half: torch.dtype) -> tuple[int, int]:
    """Bytes of the network's weights, and the most that lived during a step, the weights included.

    Args:
        half: of the weights and of the computation.
    """
    from true_models import META, true_model

    from perfusion_core.comfy.backbone import ComfyBackbone
    from perfusion_core.comfy.models import detect_family
    from perfusion_core.method.backbone import TrainingPrompts
    from perfusion_core.method.edit import GatedEdit
    from perfusion_core.method.settings import ConceptSettings

    model = true_model(case.config, META, dtype=half)
    base, family = model.model, detect_family(model)
    latents = [batch, base.latent_format.latent_channels]
    latents += [1] if family.frames else []
    latents += [case.side // family.pixels] * 2
    width = family.context_width
    # Some vectors with true numbers, for they are looked at when the edit is made.
    i = torch.randn(1, width)
    edit = GatedEdit(i, i, i, [ConceptSettings(0.75, 0.1)], ["teddy*"])
    edit.move_to(CPU, half)
    with at_true_shapes(), Account() as account:
        for part in base.diffusion_model.modules():
            for table in (part._parameters, part._buffers):
                for name, tensor in table.items():
                    if tensor is not None:
                        made = torch.empty(tensor.shape, dtype=tensor.dtype, device=CPU)
                        real = isinstance(tensor, torch.nn.Parameter)
                        table[name] = torch.nn.Parameter(made, False) if real else made
        weights = account.live
        clip: Any = None  # its part is counted apart
        backbone = ComfyBackbone(model, clip, latents, "on" if checkpointing else "off")
        backbone.checkpointing = checkpointing
        backbone._schedule = SimpleNamespace(percent_to_sigma=lambda percent: 1.0)
        rows = 512 if family.adapter else 77
        context = torch.empty(batch, rows, width, requires_grad=True)
        pooled = torch.empty(batch, 1280) if case.config == "SDXL" else None
        encoded = TrainingPrompts(context, torch.zeros(batch, rows, dtype=torch.bool), pooled)
        learned = {
            path: torch.empty(1, out, requires_grad=True) for path, out in backbone.layers.items()
        }
        noise = torch.empty(latents)
        times = _Times(batch)
        loss = backbone.loss(torch.empty(latents), noise, times, encoded, edit, learned)
        loss.mean().backward()
        return weights, account.peak


class _Times:
    """Times of noise whose numbers can be asked for."""

    def __init__(self, count: int) -> None:
        self._count = count

    def double(self) -> _Times:
        return self

    def __rsub__(self, _: float) -> _Times:
        return self

    def clamp(self, *_: float) -> _Times:
        return self

    def tolist(self) -> list[float]:
        return [0.5] * self._count


def text_bytes(case: Case, batch: int, checkpointing: bool) -> int:
    """What the text encoders take beside the network, by their sizes; ComfyUI loads them in 16 bits
    and runs them in fp32.

    Checkpointed (CLIP alone): their weights, each layer's input, and of one layer what was cast and
    what autograd keeps. Otherwise all that is cast, and what autograd keeps of all layers.
    """
    from perfusion_core.families import FAMILIES

    family = FAMILIES[{"SD15": "sd1", "SDXL": "sdxl", "Anima": "anima"}[case.config]]
    tokens = batch * family.prompt
    if checkpointing and not family.adapter:
        inputs = 4 * tokens * sum(layers * width for layers, width in case.depths)
        widest = max(width for _, width in case.depths)
        return 2 * case.encoder + inputs + 4 * 12 * widest**2 + family.kept_text * tokens * widest
    kept = family.kept_text * tokens * sum(layers * width for layers, width in case.depths)
    return 2 * case.encoder + 4 * (case.encoder - case.words) + kept


def rows(only: str, told: Any) -> Iterator[str]:
    """The lines of the table."""
    yield (
        "| model | batch | checkpointing | weights | step, bf16 | step, fp16 | "
        "step with the text encoder | goal |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    for case in CASES:
        if only not in ("", case.config):
            continue
        for batch, checkpointing in itertools.product((1, 4), (True, False)):
            peaks = {}
            for dtype in (torch.bfloat16, torch.float16):
                weights, peaks[dtype] = step(case, batch, checkpointing, dtype)
            text = text_bytes(case, batch, checkpointing)
            goal = case.goals.get(batch)
            line = [
                case.title,
                str(batch),
                "on" if checkpointing else "off",
                f"{weights / 1e9:.2f}",
                *(f"{peak / 1e9:.2f}" for peak in peaks.values()),
                f"{(peaks[torch.bfloat16] + text) / 1e9:.2f}",
                "" if goal is None else f"{goal / 1e9:g}",
            ]
            told(line)
            yield f"| {' | '.join(line)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", choices=[case.config for case in CASES])
    parser.add_argument("--write", action="store_true", help="into docs/memory.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        arguments = ("--cpu", "--use-pytorch-cross-attention")
        open_modules(ready_comfyui(), Path(folder), arguments)
        sys.path.insert(0, str(ROOT / "tests" / "comfyui"))
        table = list(rows(options.only, lambda line: print(*line, sep="\t", flush=True)))
    if options.write:
        text = PAGE.read_text(encoding="utf-8")
        made = "\n".join([BEGIN, *table, END])
        pattern = f"{re.escape(BEGIN)}.*{re.escape(END)}"
        PAGE.write_text(re.sub(pattern, lambda _: made, text, flags=re.DOTALL), encoding="utf-8")


if __name__ == "__main__":
    main()
