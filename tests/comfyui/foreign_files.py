"""Files as the public implementations and trainers of embeddings write them, key by key.

The learned numbers are made by their formulas on a small model of ComfyUI's, so that what an import
gives can be compared with what the other program would have computed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

POSITIONS, LEARNED_AT = 77, 5


def node(module: str, name: str) -> type:
    """A class of another package as a pickle names it, for as long as `in_modules` is open."""
    return type(name, (), {"__module__": module, "__qualname__": name})


LIST = node("omegaconf.listconfig", "ListConfig")
ANY_NODE = node("omegaconf.nodes", "AnyNode")
METADATA = node("omegaconf.base", "ContainerMetadata")


@contextmanager
def in_modules(*classes: type) -> Iterator[None]:
    """Their modules can be imported, as a pickle's writer wants to see."""
    made = {one.__module__.partition(".")[0]: ModuleType("package") for one in classes}
    for one in classes:
        module = made.setdefault(one.__module__, ModuleType(one.__module__))
        setattr(module, one.__name__, one)
    sys.modules.update(made)
    try:
        yield
    finally:
        for name in made:
            del sys.modules[name]


def configured(word: str) -> Any:
    """["word"] as OmegaConf keeps it, which is how it gets into the checkpoint."""
    inner, outer, metadata = ANY_NODE(), LIST(), METADATA()
    metadata.__dict__.update(ref_type=list, object_type=list, optional=True, key="words", flags={})
    inner.__dict__.update(_metadata=metadata, _parent=outer, _val=word)
    outer.__dict__.update(_metadata=metadata, _parent=None, _content=[inner])
    return outer


def chendaryen(
    path: Path, layers: dict[str, Any], width: int, word: str = "teddy", seed: int = 0
) -> dict[str, Any]:
    """A checkpoint of its `on_save_checkpoint`; returns what is in it.

    Keys and values start at what the layers give for the superclass's prompt; at one position the
    values have moved, as they do where the concept stood.
    """
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    prompt, parameters, outputs = random(POSITIONS, width), nn.ParameterDict(), {}
    parameters["*"] = nn.Parameter(random(1, width))
    for name, layer in layers.items():
        outputs[f"{name}.to_k.target_output"] = prompt @ layer.key.weight.float().T
        values = prompt @ layer.value.weight.float().T
        values[LEARNED_AT] += random(layer.out)
        outputs[f"{name}.to_v.target_output"] = values
    mixing = random(width, width) / width**0.5
    saved = {
        "global_step": 400,
        "C_inv": torch.linalg.inv(torch.eye(width) + mixing @ mixing.T),
        "target_input": random(width),
        "embedding": {
            "initializer_words": configured(word),
            "string_to_token": {"*": 265},
            "string_to_param": parameters,
        },
        "target_output": outputs,
    }
    with in_modules(LIST, ANY_NODE, METADATA):
        torch.save(saved, path)
    return {**saved, "prompt": prompt}


def perfusion_pytorch(
    path: Path, order: list[Any], width: int, seed: int = 0, concepts: int = 1
) -> dict[str, Any]:
    """A file of its `save`: [target input, output] of each key and value projection in turn."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    superclass, i, params = random(width), random(concepts, width), []
    for layer in order:
        key = superclass @ layer.key.weight.float().T
        value = superclass @ layer.value.weight.float().T + random(layer.out)
        params += [[i, key.expand(concepts, -1).clone()], [i, value.expand(concepts, -1).clone()]]
    saved = {
        "embed_params": random(concepts, width),
        "key_value_params": params,
        "C_inv": torch.eye(width) * 2,
    }
    torch.save(saved, path)
    return {**saved, "superclass": superclass}


def published_values(layer: Any, e: Tensor, saved: dict[str, Any], rows: Tensor) -> Tensor:
    """What a value projection gives for encodings [T, d], by ChenDarYen's `ROELinear.forward`."""
    i, inverse = saved["target_input"], saved["C_inv"]
    energy = i @ inverse @ i
    similarity = (e @ inverse @ i)[:, None]
    gate = torch.sigmoid((similarity / energy - 0.6) / 0.15)
    found: Tensor = (e - similarity * i / energy) @ layer.value.weight.float().T + gate * rows
    return found
