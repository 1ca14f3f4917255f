"""For concepts beside other nodes: ComfyUI's, called as it calls them, and what to feed them."""

from __future__ import annotations

import copy
import os
from typing import Any

import comfy.cldm.cldm
import comfy.controlnet
import comfy.utils
import folder_paths
import nodes
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.sd import CLIP
from tiny_models import CPU, UNET, randomise

from perfusion_core.comfy.concept_entry import ConceptEntry
from perfusion_core.comfy.models import detect_family, layers_of
from perfusion_core.comfy.prompts import add_concepts

Model = Any
Conditioning = Any

TEXT = "a photo of a teddy* on a blue background"
LORA = "beside_concepts.safetensors"


def run_node(node: Any, **inputs: Any) -> tuple[Any, ...]:
    """What a node of ComfyUI gives, whether it is written for ComfyUI's old API or its new one.

    Versions of ComfyUI differ in that for one and the same node.
    """
    with torch.inference_mode():
        result = getattr(node(), node.FUNCTION)(**inputs)
    outputs: tuple[Any, ...] = result if isinstance(result, tuple) else result.result
    return outputs


def knowing(clip: CLIP, *entries: ConceptEntry) -> CLIP:
    """The CLIP of a Concept Loader for these concepts."""
    return add_concepts(clip, [e.concept for e in entries], [e.settings.key_lock for e in entries])


def encode(clip: CLIP, text: str) -> Conditioning:
    """ComfyUI's CLIP Text Encode."""
    return run_node(nodes.CLIPTextEncode, clip=clip, text=text)[0]


class Prompts:
    """Encodes prompts and remembers each, with that of its superclass twin.

    Args:
        clip: a loader's; its placeholders are their superclass and a star, such as "teddy*".
        stock: the same without concepts.
    """

    def __init__(self, clip: CLIP, stock: CLIP) -> None:
        self.texts: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._clip, self._stock = clip, stock

    def __call__(self, text: str) -> Conditioning:
        own = encode(self._clip, text)
        self.texts.append((own[0][0], encode(self._stock, text.replace("*", ""))[0][0]))
        return own


def ksample(
    model: Model,
    positive: Conditioning,
    negative: Conditioning,
    steps: int = 2,
    latent: dict[str, torch.Tensor] | None = None,
    scheduler: str = "normal",
) -> torch.Tensor:
    """The picture of ComfyUI's KSampler."""
    (out,) = run_node(
        nodes.KSampler,
        model=model,
        seed=5,
        steps=steps,
        cfg=4.0,
        sampler_name="euler",
        scheduler=scheduler,
        positive=positive,
        negative=negative,
        latent_image=latent or {"samples": torch.zeros(1, 4, 8, 8)},
    )
    picture: torch.Tensor = out["samples"]
    return picture.clone()


def differ(*pictures: torch.Tensor) -> bool:
    """Whether no two of the pictures are alike, to a viewer and not just in the last bit."""
    pairs = [(a, b) for i, a in enumerate(pictures) for b in pictures[:i]]
    return not any(torch.allclose(a, b, atol=1e-2) for a, b in pairs)


def lora_weights(model: Model, clip: CLIP) -> dict[str, torch.Tensor]:
    """A LoRA of rank 4 on all cross-attention, all self-attention's queries, and the CLIP."""
    generator = torch.Generator().manual_seed(3)
    weights: dict[str, torch.Tensor] = {}
    shapes = {
        name.removesuffix(".weight"): tensor.shape
        for name, tensor in model.model.state_dict().items()
        if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight", "attn1.to_q.weight"))
    }
    shapes |= {
        f"text_encoders.{name.removesuffix('.weight')}": tensor.shape
        for name, tensor in clip.cond_stage_model.state_dict().items()
        if name.endswith("fc1.weight")
    }
    for name, (out, width) in shapes.items():
        weights[f"{name}.lora_up.weight"] = torch.randn(out, 4, generator=generator)
        weights[f"{name}.lora_down.weight"] = (
            torch.randn(4, width, generator=generator) / width**0.5
        )
    return weights


def lora_file(model: Model, clip: CLIP) -> str:
    """The name of a file with `lora_weights`, where ComfyUI looks for LoRAs."""
    folder = folder_paths.get_folder_paths("loras")[0]
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, LORA)
    if not os.path.exists(path):
        comfy.utils.save_torch_file(lora_weights(model, clip), path)
    return LORA


def tiny_controlnet(width: int = 192, seed: int = 11) -> comfy.controlnet.ControlNet:
    """A CONTROL_NET of ComfyUI's own class, cross-attending to texts of `width`."""
    network = comfy.cldm.cldm.ControlNet(
        **copy.deepcopy(UNET), context_dim=width, hint_channels=3, dtype=torch.float32, device=CPU
    )
    randomise(network, seed)
    return comfy.controlnet.ControlNet(network.eval(), load_device=CPU)


def block_of(path: str) -> tuple[str, int]:
    """How ComfyUI calls the block that a cross-attention layer is in."""
    group, number = path.split(".")[:2]
    name = group.removesuffix("_blocks").removesuffix("_block")
    return name, 0 if name == "middle" else int(number)


def add_image_prompt(
    model: Model, seen: list[tuple[str, torch.Tensor, torch.Tensor]] | None = None
) -> Model:
    """What IPAdapter does: attention to image tokens, by projections of its own, is added.

    Args:
        seen: path, keys and values of the text, as the adapter gets them.
    """
    generator = torch.Generator().manual_seed(13)
    clone = model.clone()
    for path, layer in layers_of(model, detect_family(model)).items():
        tokens = torch.randn(4, layer.text_width, generator=generator)
        to_k, to_v = (torch.nn.Linear(layer.text_width, layer.out, bias=False) for _ in "kv")
        for number, own in enumerate((to_k, to_v)):
            randomise(own, 14 + number, scale=1.0)

        def attend(
            q: Any, k: Any, v: Any, options: Any, path: str = path, own: Any = (tokens, to_k, to_v)
        ) -> Any:
            if seen is not None:
                seen.append((path, k.clone(), v.clone()))
            tokens, to_k, to_v = own
            rows, heads = q.shape[0], options["n_heads"]
            image_k, image_v = (to(tokens).expand(rows, -1, -1) for to in (to_k, to_v))
            text = optimized_attention(q, k, v, heads)
            return text + optimized_attention(q, image_k, image_v, heads)

        clone.set_model_attn2_replace(attend, *block_of(path))
    return clone


def add_regions(model: Model, *regions: Conditioning) -> Model:
    """What attention couple does: cond attends to each region's prompt, merged side by side."""
    texts = [region[0][0] for region in regions]

    def spread(q: Any, k: Any, v: Any, options: Any) -> tuple[Any, Any, Any]:
        kinds = options["cond_or_uncond"]
        queries, contexts = [], []
        for kind, query, context in zip(
            kinds, q.chunk(len(kinds)), k.chunk(len(kinds)), strict=True
        ):
            own = [context] if kind == 1 else [t.to(context).expand_as(context) for t in texts]
            queries += [query] * len(own)
            contexts += own
        context = torch.cat(contexts)
        return torch.cat(queries), context, context

    def merge(n: Any, options: Any) -> Any:
        counts = [1 if kind == 1 else len(texts) for kind in options["cond_or_uncond"]]
        rows = n.shape[0] // sum(counts)
        tokens = torch.arange(n.shape[1])
        columns = round(n.shape[1] ** 0.5)
        region = tokens % columns * len(texts) // columns
        merged = []
        for part in n.split([rows * count for count in counts]):
            if part.shape[0] > rows:
                part = torch.stack(part.chunk(len(texts)))[region, :, tokens].movedim(0, 1)
            merged.append(part)
        return torch.cat(merged)

    clone = model.clone()
    clone.set_model_attn2_patch(spread)
    clone.set_model_attn2_output_patch(merge)
    return clone
