"""What other programs have learned: concepts of the two public implementations, embeddings.

- ChenDarYen's "Key-Locked-Rank-One-Editing-for-Text-to-Image-Personalization": a `.ckpt` of
  "C_inv", "target_input", "embedding" and, in "target_output", what each layer's keys and values
  give at each of a prompt's positions.
- lucidrains' `perfusion-pytorch`: "embed_params", "C_inv" and "key_value_params", a list of [target
  input, output] in the order of the network's modules, with no names.
- Textual inversions: of AUTOMATIC1111 ("string_to_param"), of ComfyUI ("emb_params"), of SDXL
  ("clip_l", "clip_g"), of diffusers (one tensor, by its word).

Here is what they hold; `comfy.foreign_concept` makes concepts of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .concept import ConceptError
from .foreign_file import Inert, read_foreign
from .safetensors_file import shortened

CHENDARYEN = "ChenDarYen's implementation"
PERFUSION_PYTORCH = "perfusion-pytorch"
_OUTPUT = ".target_output"
_MOST_NUMBERS = 1 << 24  # of one tensor; a small storage can pose as a huge one


@dataclass(frozen=True, eq=False)
class ForeignConcept:
    """A concept of another implementation, as its file says it; all in fp32 on the CPU.

    Attributes:
        program: which one.
        embedding: the placeholder's vectors [n, w].
        target_input: i [d].
        inverse: C^-1 [d, d] that its gate goes by.
        keys, values: layer path -> outputs [T, out], a row for each position of a prompt (one row
            where it knows no positions).
        pairs: in place of both where layers have no names: the two projections of each layer, in
            the order of the network's modules.
        superclass: the word it started from; "" where the file does not say.
    """

    program: str
    embedding: Tensor
    target_input: Tensor
    inverse: Tensor
    keys: Mapping[str, Tensor]
    values: Mapping[str, Tensor]
    pairs: tuple[tuple[Tensor, Tensor], ...] = ()
    superclass: str = ""


@dataclass(frozen=True, eq=False)
class ForeignEmbedding:
    """A textual inversion: vectors [n, w] for each text encoder that the file names.

    Attributes:
        vectors: ComfyUI's name of the encoder -> vectors; "" where the file names none.
        word: what the file calls it, or "".
    """

    vectors: Mapping[str, Tensor]
    word: str = ""


Foreign = ForeignConcept | ForeignEmbedding


def load_foreign(path: Path) -> Foreign:
    """Read a file of another program. Raises ConceptError with what it is and what to do."""
    path = Path(path)
    found = read_foreign(path)
    try:
        return _recognised(found)
    except ConceptError as error:
        raise ConceptError(f"{path}: {error}") from error


def _recognised(found: Mapping[str, Any]) -> Foreign:
    if {"target_input", "target_output", "C_inv"} <= found.keys():
        return _chendaryen(found)
    if {"key_value_params", "embed_params"} <= found.keys():
        return _perfusion_pytorch(found)
    if "string_to_param" in found:
        return _automatic1111(found)
    if "emb_params" in found:
        return ForeignEmbedding({"": _rows("emb_params", found["emb_params"])})
    encoders = {name: found[name] for name in ("clip_l", "clip_g", "clip_h") if name in found}
    if encoders and len(encoders) == len(found):
        return ForeignEmbedding({name: _rows(name, t) for name, t in encoders.items()})
    if len(found) == 1 and _tensor_of(next(iter(found.values()))) is not None:
        ((word, tensor),) = found.items()
        return ForeignEmbedding({"": _rows(str(word), tensor)}, str(word))
    if len(found) > 1 and all(_is_row(one) for one in found.values()):
        raise ConceptError(
            f"the file holds {len(found)} words ({_listed(found)}); one is learned at a time. "
            "Save the one you want as a file of its own."
        )
    raise ConceptError(
        f"this is neither a concept of {CHENDARYEN} or {PERFUSION_PYTORCH} nor a textual "
        f"inversion: it holds {_listed(found)}. LoRAs and checkpoints go through their own loaders."
    )


def _chendaryen(found: Mapping[str, Any]) -> ForeignConcept:
    embedding = found.get("embedding")
    if not isinstance(embedding, Mapping):
        raise ConceptError('its "embedding" is missing: the file is damaged. Get another copy.')
    ((_, vectors),) = _parameters(embedding.get("string_to_param"))
    outputs = found["target_output"]
    if not isinstance(outputs, Mapping) or not outputs:
        raise ConceptError('its "target_output" is empty: no layer was learned.')
    sides: dict[str, dict[str, Tensor]] = {"to_k": {}, "to_v": {}}
    for name, tensor in outputs.items():
        path, _, side = str(name).removesuffix(_OUTPUT).rpartition(".")
        if not str(name).endswith(_OUTPUT) or side not in sides:
            raise ConceptError(
                f'"{shortened(name)}" in its target_output is neither to_k nor to_v of a layer: '
                "this is another program's file, or a later version's."
            )
        sides[side][path] = _rows(str(name), tensor)
    keys, values = sides["to_k"], sides["to_v"]
    if keys.keys() != values.keys():
        raise ConceptError("it has keys and values for different layers: the file is damaged.")
    return ForeignConcept(
        CHENDARYEN,
        vectors,
        *_gate(found["target_input"], found["C_inv"]),
        keys,
        values,
        superclass=_first_word(embedding.get("initializer_words")),
    )


def _perfusion_pytorch(found: Mapping[str, Any]) -> ForeignConcept:
    if found["embed_params"] is None:
        raise ConceptError(
            "it has no embedding (its EmbeddingWrapper was not saved with it), so nothing says "
            "what its word is. Save it again from the model that has one."
        )
    vectors = _rows("embed_params", found["embed_params"])
    entries = found["key_value_params"]
    if not isinstance(entries, list) or len(entries) < 2 or len(entries) % 2:
        raise ConceptError("its key_value_params are no list of keys and values in pairs.")
    inputs, outputs = [], []
    for entry in entries:
        if not isinstance(entry, (list, tuple)) or len(entry) != 2:
            raise ConceptError("its key_value_params are not [target input, output] each.")
        inputs.append(_rows("a target input", entry[0]))
        outputs.append(_rows("an output", entry[1]))
    if len(vectors) != 1 or any(len(rows) != 1 for rows in (*inputs, *outputs)):
        raise ConceptError(
            f"it holds {len(vectors)} concepts that were merged; a concept file holds one. Import "
            "the files that they were merged from, and load these beside each other."
        )
    if len({one.shape for one in inputs}) != 1:
        raise ConceptError("its target inputs have several widths: the file is damaged.")
    every = torch.cat(inputs)
    mean = every.mean(dim=0)
    apart = float((every - mean).norm(dim=1).max() / mean.norm().clamp_min(1e-12))
    if apart > 0.02:
        raise ConceptError(
            f"its layers learned target inputs of their own, {100 * apart:.0f} % apart. A concept "
            "has one for all layers, so its gates cannot be carried over: train it again here."
        )
    if "C_inv" not in found:
        raise ConceptError("it has no C_inv, by which its gate goes. Get another copy.")
    pairs = tuple(zip(outputs[::2], outputs[1::2], strict=True))
    gate = _gate(mean, found["C_inv"])
    return ForeignConcept(PERFUSION_PYTORCH, vectors, *gate, {}, {}, pairs)


def _automatic1111(found: Mapping[str, Any]) -> ForeignEmbedding:
    ((word, vectors),) = _parameters(found["string_to_param"])
    name = found.get("name")
    return ForeignEmbedding({"": vectors}, name if isinstance(name, str) else word)


def _parameters(found: Any) -> tuple[tuple[str, Tensor]]:
    """The one word and its vectors, in a dictionary or in PyTorch's ParameterDict."""
    if isinstance(found, Inert):
        found = found.state.get("_parameters")
    if not isinstance(found, Mapping) or not found:
        raise ConceptError("it names no word with vectors: the file is damaged. Get another copy.")
    if len(found) != 1:
        raise ConceptError(
            f"it holds {len(found)} words ({_listed(found)}); one is learned at a time. Save the "
            "one you want as a file of its own."
        )
    ((word, tensor),) = found.items()
    return ((str(word), _rows(str(word), tensor)),)


def _gate(target: Any, inverse: Any) -> tuple[Tensor, Tensor]:
    """i [d] and C^-1 [d, d]."""
    i, whitening = _rows("target_input", target), _rows("C_inv", inverse)
    if len(i) != 1 or whitening.shape != (i.shape[1], i.shape[1]):
        raise ConceptError(
            f"its target input has the shape {list(i.shape)} and its C_inv "
            f"{list(whitening.shape)}; expected [d] and [d, d]. The file is damaged."
        )
    return i[0], whitening


def _first_word(found: Any) -> str:
    """The superclass: the first of the words that the placeholder started from."""
    if isinstance(found, Inert):  # a list of a configuration, each entry a node with its value
        found = found.state.get("_content")
    if not isinstance(found, list) or not found:
        return ""
    first = found[0]
    value = first.state.get("_val") if isinstance(first, Inert) else first
    return value if isinstance(value, str) else ""


def _rows(name: str, found: Any) -> Tensor:
    """A tensor as rows [n, w] in fp32. Raises ConceptError for what is none."""
    tensor = _tensor_of(found)
    if tensor is None or tensor.dim() not in (1, 2) or not 0 < tensor.numel() <= _MOST_NUMBERS:
        shape = "no tensor" if tensor is None else f"the shape {list(tensor.shape)}"
        raise ConceptError(f"{shortened(name, 60)} has {shape}; expected [n, width].")
    rows = tensor.detach().to("cpu", torch.float32, copy=True)
    if not bool(rows.isfinite().all()):
        raise ConceptError(
            f"{shortened(name, 60)} holds NaN or infinity: its training diverged. Get another copy."
        )
    return rows if rows.dim() == 2 else rows[None]


def _tensor_of(found: Any) -> Tensor | None:
    plain = isinstance(found, Tensor) and found.layout is torch.strided
    return found if plain and found.device.type == "cpu" else None


def _is_row(found: Any) -> bool:
    tensor = _tensor_of(found)
    return tensor is not None and tensor.dim() in (1, 2) and tensor.shape[-1] in (768, 1024, 1280)


def _listed(names: Mapping[Any, Any]) -> str:
    shown = ", ".join(shortened(name, 40) for name in list(names)[:4])
    return shown + (" ..." if len(names) > 4 else "") or "nothing"
