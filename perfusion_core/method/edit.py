"""The gated rank-one edit of cross-attention (arXiv 2305.01644, Eq. 3, Eq. 4 and Appendix B).

Dimensions: T tokens, d width of the text encodings, J concepts, out width of a projection.

For a context e [..., T, d] and a projection W the edited output is

    h = W e + sum_j g_j(e) (o_j - s_j(e) W i_j)

with the target input i_j, the coordinate s = G^-1 b of e along each concept beside the others
(b_j = u_j . e, u_j = C^-1 i_j, G_jk = u_j . i_k) and the gate
g_j = sigmoid((s_j - bias_j) / temperature_j): what of a word is the concept gives way to the
concept's target output, as far as the gate is open. The locked key is o_j = W_K p_j, the learned
value o_j = W_V p_j + D_j, with the encoding p_j of the superclass word. All but D_j goes through W,
so

    e' = e + sum_j g_j (p_j - s_j i_j)       key = W_K e'        value = W_V e' + sum_j g_j D_j

and one edited context e', computed once, serves the keys and the values of every layer: the layers'
own forwards run on it unchanged, whatever LoRA, bias or quantisation they carry.

The paper has no gate on the subtraction, h = W (e - sum_j s_j i_j) + sum_j g_j o_j: there a concept
that is merely loaded takes its direction off every word of every prompt. Here a word that is not
the concept stays as it is, and so does the whole model as the bias goes to infinity.

With one concept s is the paper's b / G. With several the paper's gates have s_j = b_j / G_jj, each
as if it were alone, so that one concept's word also opens the gates of those that resemble it: at a
correlation of 0.3 a gate of a third, and the other's colours in the picture. Here s_j is what of e
is concept j once the others have their share: 1 at its own word, 0 at theirs. What unequal
strengths and all but parallel concepts make of it, `similarity_matrix` says.

A row of the context that is all zero is padding and no word: its weights are exactly 0.

Under the global key lock the keys come from the encoding e_s [..., T, d] of the same prompt with
the superclass words in the concepts' places, aligned position by position: key = W_K e_s. Concepts
that are locked locally are then edited within e_s.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .gram import similarity_matrix
from .settings import ConceptSettings, KeyLock

logger = logging.getLogger(__name__)


# Since torch 2.4 it says of any device whether autocast is on.
_TELLS_DEVICES = hasattr(torch.amp, "is_autocast_available")


@dataclass(frozen=True)
class PreparedContext:
    """What the cross-attention layers need of one context.

    Attributes:
        context: e' [..., T, d], to be passed to the value projections.
        keys: to be passed to the key projections [..., T, d]: e' itself, unless keys are locked
            globally.
        weights: strength_j * g_j [..., T, J], for `add_values`.
    """

    context: Tensor
    keys: Tensor
    weights: Tensor


@dataclass(frozen=True)
class LockedPrompt:
    """A prompt for the global key lock.

    Attributes:
        context: its encoding e [B, T, d].
        superclass: e_s [B, T, d], that of the same prompt with superclass words for concepts.
    """

    context: Tensor
    superclass: Tensor
    _moved: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def like(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Both encodings on the device and in the dtype of `context`, kept for the next pass."""
        key = (context.device, context.dtype)
        if key not in self._moved:
            self._moved[key] = (self.context.to(context), self.superclass.to(context))
        return self._moved[key]


class GatedEdit:
    """The edit of J concepts, ready for contexts of any length, batch shape, dtype and device.

    Args:
        target_inputs: i [J, d], on the CPU.
        whitened: u = C^-1 i [J, d], on the CPU.
        superclasses: p [J, d].
        settings: one per concept.
        names: what to call the concepts in a warning.
        parts: widths of the texts that lie side by side in a row [d] of a context, of which all but
            one are zero: each has coordinates of its own. None for one text.

    Gates and J x J algebra are computed in fp32 at least, under autocast as well. Differentiable in
    the context and in `superclasses`. Raises ValueError when shapes disagree.
    """

    def __init__(
        self,
        target_inputs: Tensor,
        whitened: Tensor,
        superclasses: Tensor,
        settings: Sequence[ConceptSettings],
        names: Sequence[str] | None = None,
        parts: Sequence[int] | None = None,
    ) -> None:
        shapes = [tuple(t.shape) for t in (target_inputs, whitened, superclasses)]
        count = len(settings)
        if target_inputs.dim() != 2 or len(set(shapes)) != 1 or shapes[0][0] != count or not count:
            raise ValueError(
                f"target inputs, whitened inputs and superclasses have the shapes {shapes} for "
                f"{count} settings; all three must be [concepts, width]"
            )
        self.target_inputs = target_inputs
        self.whitened = whitened
        self.superclasses = superclasses
        self.settings = tuple(settings)
        self.names = tuple(names) if names is not None else tuple(f"#{j + 1}" for j in range(count))
        self.parts = tuple(parts) if parts is not None else (shapes[0][1],)
        self._moved: dict[tuple[torch.device, torch.dtype], _Tensors] = {}
        # Whether any concept has a strength above 0; if not, nothing is to be patched.
        self.active = any(s.strength > 0 for s in self.settings)
        locks = [s.strength for s in self.settings if s.key_lock is KeyLock.GLOBAL]
        self._lock = max(locks, default=0.0)
        self._local = self._locally_locked()

    def _locally_locked(self) -> GatedEdit | None:
        """The edit of the locally locked concepts alone; None when no key is locked globally."""
        if not self._lock:
            return None
        settings = [
            replace(s, strength=0.0) if s.key_lock is KeyLock.GLOBAL else s for s in self.settings
        ]
        return GatedEdit(
            self.target_inputs, self.whitened, self.superclasses, settings, self.names, self.parts
        )

    def similarity(self, context: Tensor) -> Tensor:
        """s [..., T, J] of a context [..., T, d]: 1 at the target input, 0 at the others'."""
        with _exactly(context):
            return self._similarity(_fine(context))

    def gates(self, context: Tensor) -> Tensor:
        """g [..., T, J] of a context [..., T, d], between 0 and 1, without the strength."""
        return self.gates_at(self.similarity(context))

    def _similarity(self, fine: Tensor) -> Tensor:
        own = self._on(fine)
        return fine @ own.whitened.T @ own.similar

    def gates_at(self, similarity: Tensor) -> Tensor:
        """g [..., T, J] at similarities s [..., T, J]."""
        own = self._on(similarity)
        return torch.sigmoid((similarity - own.biases) / own.temperatures)

    def prepare(self, context: Tensor, prompts: Iterable[LockedPrompt] = ()) -> PreparedContext:
        """e', the keys' context and the concepts' weights for a context [..., T, d], in its dtype.

        With every strength at 0 the context comes back itself, not a copy.

        Args:
            prompts: for the global key lock. A prompt is found in `context` by its own encoding,
                repeated or side by side with others, in any row; where none is found, keys are
                locked locally.
        """
        if context.shape[-1] != self.target_inputs.shape[1]:
            raise ValueError(
                f"the text encodings are {context.shape[-1]} wide, the concepts "
                f"{self.target_inputs.shape[1]}: they are for another model family"
            )
        if not self.active:
            weights = context.new_zeros(*context.shape[:-1], len(self.names))
            return PreparedContext(context, context, weights)
        with _exactly(context):
            own = self._on(context)
            fine = _fine(context)
            similarity = self._similarity(fine)
            weights = own.strengths * self.gates_at(similarity)
            weights = weights * (fine != 0).any(dim=-1, keepdim=True)
            # e + sum g_j (p_j - s_j i_j) in one product: it is done in every pass, on few numbers.
            moves = torch.cat([self._taken(similarity, weights), weights], dim=-1)
            moves = moves.flatten(end_dim=-2)
            edited = torch.addmm(fine.flatten(end_dim=-2), moves, own.moves)
            edited = edited.reshape(context.shape).to(context.dtype)
            keys = self._locked_keys(context, edited, prompts)
            return PreparedContext(edited, keys, weights.to(context.dtype))

    def _taken(self, similarity: Tensor, weights: Tensor) -> Tensor:
        """How much of each i_j gives way to p_j [..., T, J]; the lab compares others."""
        return weights * similarity

    def _locked_keys(
        self, context: Tensor, edited: Tensor, prompts: Iterable[LockedPrompt]
    ) -> Tensor:
        """`edited`, but where `context` holds one of `prompts`, that prompt's superclass encoding.

        Rows are compared, because other nodes may have repeated, reordered or mixed them. It needs
        no wait for the device.
        """
        if self._local is None:
            return edited
        strength = self._on(context).lock.to(context.dtype)
        known = torch.zeros_like(context[..., :1], dtype=torch.bool)
        locked = context
        for prompt in prompts:
            owns, superclasses = prompt.like(context)
            tokens = owns.shape[-2]
            if context.shape[-2] % tokens:
                continue
            parts = (*context.shape[:-2], -1, tokens, context.shape[-1])
            for own, superclass in zip(owns, superclasses, strict=True):
                same = (context.reshape(parts) == own).flatten(-2).all(dim=-1)[..., None, None]
                other = torch.lerp(own, superclass, strength)
                locked = torch.where(same, other, locked.reshape(parts)).reshape(context.shape)
                found = same.expand(*same.shape[:-2], tokens, 1).reshape(known.shape)
                known = known | found
        return torch.where(known, self._local.prepare(locked).context, edited)

    def move_to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Have the edit's tensors ready for contexts of that kind, and keep them."""
        key = (device, _fine_dtype(dtype))
        if key not in self._moved:
            self._moved[key] = self._tensors(*key)
        if self._local is not None:
            self._local.move_to(device, dtype)

    def _on(self, context: Tensor) -> _Tensors:
        """The edit's tensors on the context's device."""
        key = (context.device, _fine_dtype(context.dtype))
        if key not in self._moved:
            self.move_to(context.device, context.dtype)
        return self._moved[key]

    def _tensors(self, device: torch.device, dtype: torch.dtype) -> _Tensors:
        def moved(t: Tensor) -> Tensor:
            return t.to(dtype).to(device)  # in this order: some devices have no float64

        def row(name: str) -> Tensor:
            values = [getattr(s, name) for s in self.settings]
            return torch.tensor(values, device=device, dtype=dtype)

        inputs, whitened = self.target_inputs.double(), self.whitened.double()
        strengths = [s.strength for s in self.settings]
        by_part, similar, first = [], [], 0
        for width in self.parts:
            inside = torch.zeros_like(whitened)
            inside[:, first : first + width] = whitened[:, first : first + width]
            gram = inside.detach() @ inputs.detach().T
            by_part.append(inside)
            similar.append(similarity_matrix(gram, strengths, self.names).T)
            first += width
        return _Tensors(
            whitened=moved(torch.cat(by_part)),
            similar=moved(torch.cat(similar)),
            moves=moved(torch.cat([-inputs, self.superclasses.cpu().double()])),
            biases=row("bias"),
            temperatures=row("temperature"),
            strengths=row("strength"),
            # One prompt has one set of keys: the strongest concept decides how far they are locked.
            lock=torch.tensor(self._lock, device=device, dtype=dtype),
        )


@dataclass(frozen=True)
class _Tensors:
    """u [P J, d], S^T [P J, J], -i over p [2 J, d], sliders [J], the global lock's strength.

    P parts of a row: u has zeros outside of its own.
    """

    whitened: Tensor
    similar: Tensor
    moves: Tensor
    biases: Tensor
    temperatures: Tensor
    strengths: Tensor
    lock: Tensor


def add_values(
    values: Tensor, weights: Tensor, differences: Tensor, *, in_place: bool = False
) -> Tensor:
    """The values of edited layers: W_V e' + sum_j strength_j g_j D_j.

    Args:
        values: W_V e' [..., T, out], what the layer's own forward gave.
        weights: strength * g [..., T, J], of `GatedEdit.prepare`.
        differences: D [J, out], the learned values less W_V p, of this layer.
        in_place: nobody else holds `values`, so that it may be overwritten.

    Returns [..., T, out] in the dtype of `values`.
    """
    flat = values.reshape(-1, values.shape[-1])
    add = flat.addmm_ if in_place else flat.addmm
    added = add(weights.reshape(-1, weights.shape[-1]).to(values.dtype), differences.to(values))
    return added.reshape(values.shape)


def _fine_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _fine(context: Tensor) -> Tensor:
    return context.to(_fine_dtype(context.dtype))


def _exactly(context: Tensor) -> AbstractContextManager[object]:
    """Computes as written, where autocast is on for the context's device.

    Elsewhere nothing is turned off: torch knows no autocast of some devices (DirectML's), and
    raises.
    """
    device = context.device.type
    on = torch.is_autocast_enabled(device) if _TELLS_DEVICES else device in ("cpu", "cuda")
    return torch.autocast(device, enabled=False) if on else nullcontext()
