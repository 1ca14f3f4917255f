"""Models that concepts do not fit, by the name of their class in ComfyUI, each with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from .base import CrossAttention


@dataclass(frozen=True)
class Refusal:
    """Models that concepts do not fit.

    Attributes:
        reason: why, as an error says it.
        attention: where their keys and values are, when they have the cross-attention that a
            concept could edit and only a family for it is missing.
    """

    reason: str
    attention: CrossAttention | None = None


_JOINT = Refusal(
    "its text and image tokens share one attention, so its keys and values are not projections of "
    "a fixed text encoding, which is what a Perfusion concept edits"
)
_NO_PROMPT = Refusal("it is conditioned on pictures and has no prompt")
_NO_PICTURE = Refusal(
    "it makes no pictures: it finds things, outlines or depth in the pictures that it is given"
)
_UPSCALER = Refusal("it is an upscaler; apply the concept to the model that makes the picture")
_FURTHER = Refusal("its text passes through a further network before it reaches attention")
_AUDIO = Refusal("it makes sound, and a Perfusion concept is learned from pictures")


def _later(attention: CrossAttention) -> Refusal:
    where = f"{attention.layer}.{attention.key}"
    return Refusal(
        f"its cross-attention ({where}) could carry concepts, but this version does not support it "
        "yet",
        attention,
    )


_OF_WAN = Refusal(
    "its network is derived of Wan's, with a video, a pose, a camera or sound beside the text, and "
    "this pack knows Wan's own alone"
)

# Name of ComfyUI's model class -> why. A class inherits its parent's refusal.
REFUSED: Mapping[str, Refusal] = MappingProxyType(
    {
        "SDXLRefiner": Refusal(
            "it reads only one of SDXL's two text encoders; use the base model for the concept, "
            "and the refiner after it without one"
        ),
        "SVD_img2vid": _NO_PROMPT,
        "Stable_Zero123": _NO_PROMPT,
        "Hunyuan3Dv2": _NO_PROMPT,
        "Hunyuan3Dv2_1": _NO_PROMPT,
        "Lotus": Refusal("it reads no prompt"),
        "SD_X4Upscaler": _UPSCALER,
        "SeedVR2": _UPSCALER,  # of videos; its two prompts are numbers in its own file
        "PiD": _UPSCALER,  # the second half of another model: it draws from that one's latents
        "TripoSplat": _NO_PROMPT,
        "Trellis2": _NO_PROMPT,
        "SAM3": _NO_PICTURE,
        "RT_DETR_v4": _NO_PICTURE,
        "DepthAnything3": _NO_PICTURE,
        "StableCascade_C": _FURTHER,
        "StableCascade_B": _FURTHER,
        "StableAudio1": _AUDIO,
        "StableAudio3": _AUDIO,
        "ACEStep": _AUDIO,
        "ACEStep15": _AUDIO,
        "MiniMaxMusic3": _AUDIO,
        "SD3": _JOINT,
        "AuraFlow": _JOINT,
        "Flux": _JOINT,
        "GenmoMochi": _JOINT,
        "HunyuanVideo": _JOINT,
        "HunyuanImage21": _JOINT,
        "HiDream": _JOINT,
        "Lumina2": _JOINT,
        "Omnigen2": _JOINT,
        "QwenImage": _JOINT,
        "CogVideoX": _JOINT,
        "ErnieImage": _JOINT,
        "HiDreamO1": _JOINT,
        "Ideogram4": _JOINT,
        "JoyImage": _JOINT,
        "Krea2": _JOINT,
        "Lens": _JOINT,
        "MiniMaxH3": _JOINT,
        "PixelDiTT2I": _JOINT,
        "LTXAV": Refusal("it makes video and sound together in two joined networks"),
        "Kandinsky5": Refusal(
            "its text passes through transformer blocks of its own before it reaches attention"
        ),
        "WAN21_CausalAR": _OF_WAN,
        "WAN21_Vace": _OF_WAN,
        "WAN21_Camera": _OF_WAN,
        "WAN21_HuMo": _OF_WAN,
        "WAN22_Animate": _OF_WAN,
        "WAN_Animate2": _OF_WAN,
        "WAN22_S2V": _OF_WAN,
        "WAN21_SCAIL": _OF_WAN,
        "WAN22_WanDancer": _OF_WAN,
        "WAN21_FlowRVS": _NO_PICTURE,
        # A block's second part; its first, for the picture alone, ends in "attn" as well.
        "CosmosVideo": _later(
            CrossAttention("blocks.1.block.attn", "to_k.0", "to_v.0", key_norm="to_k.1")
        ),
    }
)

# Part of a network that a class of `FAMILIES` can have -> why a model with it is refused.
REFUSED_PARTS: Mapping[str, Refusal] = MappingProxyType(
    # SDPose: the UNet of SD 2 or SDXL, with a head that reads poses out of it.
    {"heatmap_head": _NO_PICTURE}
)
