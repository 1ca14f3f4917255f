"""The global key lock in the sampler: which prompt each conditioning is, and what is made of it.

A conditioning that comes as it was encoded holds its twin. Of one that went through nodes the twin
is worked out: where prompts were concatenated or batched, part by part; where they were averaged or
scaled, by the same sum of the twins. What cannot be worked out is said, once a run.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ..cache import BoundedCache
from ..families import ModelFamily
from ..method.edit import LockedPrompt
from .encoding import adapt
from .key_lock import LOCKED_PROMPTS, SUPERCLASS_BESIDE, encoded_prompts, prompt_beside
from .protocols import BaseModel, Executor

logger = logging.getLogger(__name__)

# Parts of a context are compared; shorter ones would be alike by chance.
_SHORTEST_PART = 8
_ROUNDINGS = 16  # of a number of a context, in its dtype, that a sum of two encodings may be off

_UNKNOWN = (
    "Perfusion: a concept's key lock is set to global, but no prompt of this run was encoded "
    "with the CLIP of its Perfusion Concept Loader; keys are locked locally. Connect that CLIP "
    "to your prompts."
)
_PLAIN = (
    "Perfusion: a concept's key lock is set to global, but a positive prompt of this run was not "
    "encoded with the CLIP of its Perfusion Concept Loader, or another node has made it anew; its "
    "keys are locked locally. Connect that CLIP to this prompt, or set key_lock to local."
)
_CHANGED = (
    "Perfusion: a concept's key lock is set to global, but a prompt of this run was changed after "
    "it was encoded, in a way that its superclass cannot follow; what was changed has its keys "
    "locked locally. Write it as one prompt, or use Conditioning (Combine) instead, or set "
    "key_lock to local."
)


@dataclass(frozen=True)
class _Resolved:
    """Prompts that a context is made of, and what is to be said of it, or ""."""

    prompts: tuple[LockedPrompt, ...]
    problem: str = ""


class PromptCarrier:
    """Hands the prompts of the global key lock on to the forward pass.

    The pass itself sees ComfyUI's options alone. The conditioning stays as it was, so that ComfyUI
    still runs cond and uncond in one batch.

    Args:
        family: of the model. Where its network has an adapter of the text, a prompt and its twin
            go through that too, since the layers see what it gives.
    """

    def __init__(self, family: ModelFamily) -> None:
        self._family = family
        self._resolved: Any = WeakTensorKeyDictionary()  # by context: once a run, not once a step
        self._said: BoundedCache[tuple[Any, str], bool] = BoundedCache(64)

    def __call__(
        self, executor: Executor, model: Any, conds: Any, x: Any, timestep: Any, options: Any
    ) -> Any:
        found: dict[int, LockedPrompt] = {}
        problems = []
        for number, group in enumerate(conds):
            for cond in group or ():
                # A guider that asks for one prompt alone may ask for the negative one.
                resolved = self._resolve(cond, number == 0 and len(conds) > 1, model, x.device)
                found.update((id(prompt), prompt) for prompt in resolved.prompts)
                problems.append(resolved.problem)
        warnings = {*problems} - {""}
        if not found and _CHANGED not in warnings:
            warnings = {_UNKNOWN}
        for problem in warnings:
            self._say(problem)
        inner = {**options.get("transformer_options", {}), LOCKED_PROMPTS: tuple(found.values())}
        return executor(model, conds, x, timestep, {**options, "transformer_options": inner})

    def _resolve(self, cond: Any, positive: bool, base: BaseModel, device: Any) -> _Resolved:
        context = cond.get("cross_attn")
        if not isinstance(context, Tensor):
            return _Resolved(())
        known: _Resolved | None = self._resolved.get(context)
        if known is None:
            known = _resolved(cond, context, positive)
            if self._family.adapter:
                known = self._adapted(known, cond, context, base, device)
            elif len(self._family.parts) > 1:
                known = self._joined(known, cond, context)
            self._resolved[context] = known
        return known

    def _adapted(
        self, known: _Resolved, cond: Any, context: Tensor, base: BaseModel, device: torch.device
    ) -> _Resolved:
        """The same as the model's layers see it; of prompts that are the whole of their context."""
        whole = [p for p in known.prompts if p.context.shape == context.shape]

        def seen(encoding: Tensor) -> Tensor:
            return adapt(encoding, cond, self._family, base, device)

        prompts = [LockedPrompt(seen(p.context), seen(p.superclass)) for p in whole]
        lost = len(whole) < len(known.prompts)
        return _Resolved(tuple(prompts), known.problem or (_CHANGED if lost else ""))

    def _joined(self, known: _Resolved, cond: Any, context: Tensor) -> _Resolved:
        """The same with the second text, of prompts that are the whole of their context."""
        whole = [p for p in known.prompts if p.context.shape == context.shape]
        twin = {
            name.removeprefix(SUPERCLASS_BESIDE): value
            for name, value in cond.items()
            if name.startswith(SUPERCLASS_BESIDE)
        }
        prompts = [
            LockedPrompt(
                self._family.joined(p.context, cond),
                self._family.joined(p.superclass, {**cond, **twin}),
            )
            for p in whole
        ]
        lost = len(whole) < len(known.prompts)
        return _Resolved(tuple(prompts), known.problem or (_CHANGED if lost else ""))

    def _say(self, text: str) -> None:
        from comfy_execution.utils import get_executing_context

        run = get_executing_context()
        key = (None if run is None else (run.prompt_id, run.node_id), text)
        if self._said.get(key):
            return
        self._said.put(key, True)
        logger.warning("%s", text)
        if run is not None:
            _tell_node(text, run.node_id)


def _tell_node(text: str, node: str) -> None:
    """Text on a node of the page that queued the run."""
    from server import PromptServer

    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.send_progress_text(text, node, server.client_id)


def _resolved(cond: Any, context: Tensor, positive: bool) -> _Resolved:
    # On the CPU: some devices have no float64, and it is done once a run.
    context = context.detach().cpu()
    beside = prompt_beside(cond, context)
    prompts, whole = _parts(context, [beside] if beside is not None else [])
    if whole or not bool(context.any()):  # no word in it
        return _Resolved(prompts)
    others = encoded_prompts.all()
    prompts, whole = _parts(context, [*([] if beside is None else [beside]), *others])
    if whole:
        return _Resolved(prompts)
    mixed = None if beside is None else _mixed(context, beside, others)
    if mixed is not None:
        return _Resolved((mixed,))
    if beside is None:
        return _Resolved(prompts, _PLAIN if positive else "")
    # A negative prompt without a concept has nothing to lose.
    bare = beside.superclass is beside.context or torch.equal(beside.superclass, beside.context)
    return _Resolved(prompts, _CHANGED if positive or not bare else "")


def _parts(
    context: Tensor, prompts: Iterable[LockedPrompt]
) -> tuple[tuple[LockedPrompt, ...], bool]:
    """Those parts of prompts that a context [B, T, d] holds, and whether it is made of them."""
    found: list[LockedPrompt] = []
    rows, tokens, width = context.shape
    covered = torch.zeros(rows, tokens, dtype=torch.bool)
    for prompt in prompts:
        own, twin = prompt.context, prompt.superclass
        size = math.gcd(tokens, own.shape[1])
        if own.shape[2] != width or size < min(_SHORTEST_PART, tokens):
            continue
        own = own.to(context)
        for row in range(len(own)):
            for at in range(0, own.shape[1], size):
                part = own[row : row + 1, at : at + size]
                same = (context.reshape(rows, -1, size, width) == part).flatten(-2).all(-1)
                if not bool(same.any()):
                    continue
                covered |= same.cpu().repeat_interleave(size, dim=1)
                original = prompt.context[row : row + 1, at : at + size]
                found.append(LockedPrompt(original, twin[row : row + 1, at : at + size]))
        if bool(covered.all()):
            return tuple(found), True
    return tuple(found), False


def _mixed(
    context: Tensor, beside: LockedPrompt, others: Sequence[LockedPrompt]
) -> LockedPrompt | None:
    """A context that is a multiple of a prompt, or an average of it and another, with its twin."""
    own = beside.context.to(context).double()
    if own.shape != context.shape:
        return None
    wanted = context.double()
    share = _share(wanted, own, context)
    if share is not None:
        return LockedPrompt(context, (share * beside.superclass.to(own)).to(context))
    for other in others:
        if other.context.shape[2] != own.shape[2] or len(other.context) != 1:
            continue
        base = _fitted(other.context.to(own), own.shape[1])
        share = _share(wanted - base, own - base, context)
        if share is not None:
            twins = beside.superclass.to(own), _fitted(other.superclass.to(own), own.shape[1])
            return LockedPrompt(context, torch.lerp(twins[1], twins[0], share).to(context))
    return None


def _share(part: Tensor, whole: Tensor, context: Tensor) -> float | None:
    """f with part = f whole but for rounding, or None."""
    square = float((whole * whole).sum())
    if not square:
        return None
    share = float((part * whole).sum()) / square
    error = float((part - share * whole).abs().max())
    allowed = _ROUNDINGS * torch.finfo(context.dtype).eps * float(context.abs().max())
    return share if error <= allowed else None


def _fitted(encoding: Tensor, tokens: int) -> Tensor:
    """As ComfyUI's average does: cut, or padded with zeros, to so many tokens."""
    cut = encoding[:, :tokens]
    return torch.nn.functional.pad(cut, (0, 0, 0, tokens - cut.shape[1]))
