"""What the tables say of transformers with cross-attention, supported or not yet, on networks.

Each is ComfyUI's own class, small, with random weights, and runs: the text is followed on its way
to the keys.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import comfy.ldm.cosmos.model
import comfy.ldm.cosmos.predict2
import comfy.ldm.hydit.models
import comfy.ldm.lightricks.model
import comfy.ldm.pixart.pixartms
import comfy.ldm.wan.model
import comfy.model_base
import comfy.ops
import pytest
import torch
from tiny_models import randomise
from torch import Tensor, nn

from perfusion_core.families import REFUSED, CrossAttention
from perfusion_core.families.anima import ANIMA
from perfusion_core.families.cosmos import COSMOS2
from perfusion_core.families.hunyuan_dit import HUNYUAN_DIT
from perfusion_core.families.ltxv import LTXV
from perfusion_core.families.pixart import PIXART_ALPHA
from perfusion_core.families.wan import WAN21

TEXT, TOKENS, BLOCKS = 24, 7, 2  # a text width that no other part of these networks has
ADAPTED, PADDED = 5, 512  # encodings that Anima's adapter gives, and as many with the zeros behind


@dataclass(frozen=True)
class Small:
    """A small network.

    Attributes:
        made: its class, or a function that is called like it.
        width: of its keys.
        arguments: of its class.
        picture: shape of its input.
        more: further inputs of its forward.
        before: what makes the context of a prompt's encoding, where that is not the forward.
    """

    made: Callable[..., nn.Module]
    width: int
    arguments: dict[str, Any]
    picture: tuple[int, ...]
    more: Callable[[], dict[str, Any]] = dict
    before: Callable[[Any, Tensor], Tensor] = lambda _, context: context

    def network(self) -> nn.Module:
        network = self.made(
            **self.arguments,
            dtype=torch.float32,
            device="cpu",
            operations=comfy.ops.disable_weight_init,
        )
        randomise(network, seed=0)
        return network.eval()

    def run(self, network: nn.Module, context: Tensor) -> Tensor:
        """One pass on a fixed picture."""
        picture = torch.randn(self.picture, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            given = self.before(network, context.clone())
            output: Tensor = network(picture, torch.tensor([0.5]), given, **self.more())
        return output


_COSMOS: dict[str, Any] = {
    "max_img_h": 16,
    "max_img_w": 16,
    "max_frames": 4,
    "in_channels": 4,
    "out_channels": 4,
    "patch_spatial": 2,
    "patch_temporal": 1,
    "model_channels": 96,
    "num_blocks": BLOCKS,
    "num_heads": 4,
    "crossattn_emb_channels": TEXT,
    "pos_emb_cls": "rope3d",
    "use_adaln_lora": True,
    "adaln_lora_dim": 16,
}


def second_encoding() -> dict[str, Any]:
    """HunyuanDiT's T5 encodings, and that no token of either encoding is padding."""
    generator = torch.Generator().manual_seed(2)
    return {
        "text_embedding_mask": torch.ones(1, TOKENS),
        "encoder_hidden_states_t5": torch.randn(1, 5, 32, generator=generator),
        "text_embedding_mask_t5": torch.ones(1, 5),
    }


def small_anima(**arguments: Any) -> nn.Module:
    """Anima with a small adapter in the place of its own, whose size is fixed."""
    from comfy.ldm.anima.model import Anima, LLMAdapter

    network: nn.Module = Anima(**arguments)
    made_as = {name: arguments[name] for name in ("dtype", "device", "operations")}
    network.llm_adapter = LLMAdapter(
        source_dim=TEXT, target_dim=TEXT, model_dim=32, num_layers=2, num_heads=4, **made_as
    )
    return network


def adapted(network: Any, context: Tensor) -> Tensor:
    """What the layers of Anima see of a prompt: made once, by the model object, before sampling."""
    tokens_of_t5 = torch.arange(2, 2 + ADAPTED)[None]
    given: Tensor = network.preprocess_text_embeds(context, tokens_of_t5)
    if given.shape[1] < PADDED:  # ComfyUI 0.12.1 pads there, and not in the network
        given = nn.functional.pad(given, (0, 0, 0, PADDED - given.shape[1]))
    return given


SMALL = {
    "PixArt": Small(
        comfy.ldm.pixart.pixartms.PixArtMS,
        48,
        {
            "hidden_size": 48,
            "depth": BLOCKS,
            "num_heads": 4,
            "caption_channels": TEXT,
            "micro_condition": False,
        },
        (1, 4, 64, 64),  # a smaller one, and ComfyUI's position embedding divides by zero
    ),
    "HunyuanDiT": Small(
        comfy.ldm.hydit.models.HunYuanDiT,
        64,
        {
            "hidden_size": 64,
            "depth": BLOCKS,
            "num_heads": 4,
            "text_states_dim": TEXT,
            "text_states_dim_t5": 32,
            "text_len": TOKENS,
            "text_len_t5": 5,
        },
        (1, 4, 16, 16),
        second_encoding,
    ),
    "WAN21": Small(
        comfy.ldm.wan.model.WanModel,
        48,
        {
            "dim": 48,
            "num_heads": 4,
            "num_layers": BLOCKS,
            "ffn_dim": 64,
            "freq_dim": 32,
            "text_dim": TEXT,
            "in_dim": 4,
            "out_dim": 4,
        },
        (1, 4, 1, 4, 4),
    ),
    "CosmosVideo": Small(
        comfy.ldm.cosmos.model.GeneralDIT,
        96,
        {
            **_COSMOS,
            "block_config": "FA-CA-MLP",
            "block_x_format": "THWBD",
            "affline_emb_norm": True,
            "extra_per_block_abs_pos_emb": True,
            "extra_per_block_abs_pos_emb_type": "learnable",
        },
        (1, 4, 1, 8, 8),
    ),
    "CosmosPredict2": Small(comfy.ldm.cosmos.predict2.MiniTrainDIT, 96, _COSMOS, (1, 4, 1, 8, 8)),
    "LTXV": Small(
        comfy.ldm.lightricks.model.LTXVModel,
        32,
        {
            "in_channels": 8,
            "cross_attention_dim": 32,
            "attention_head_dim": 8,
            "num_attention_heads": 4,
            "caption_channels": TEXT,
            "num_layers": BLOCKS,
        },
        (1, 8, 1, 2, 2),
        lambda: {"attention_mask": None},
    ),
}
if hasattr(comfy.model_base, "Anima"):  # not in 0.3.75
    SMALL["Anima"] = Small(small_anima, 96, _COSMOS, (1, 4, 1, 8, 8), before=adapted)
LATER = {
    name: refusal.attention
    for name, refusal in REFUSED.items()
    if refusal.attention and hasattr(comfy.model_base, name)
}
# And those that are supported, the same way.
WAYS = {
    **LATER,
    "CosmosPredict2": COSMOS2.attention,
    "WAN21": WAN21.attention,
    "PixArt": PIXART_ALPHA.attention,
    "LTXV": LTXV.attention,
    "HunyuanDiT": HUNYUAN_DIT.attention,
    "Anima": replace(ANIMA.attention, before=ANIMA.adapter),
}


def text(seed: int = 0) -> Tensor:
    return torch.randn(1, TOKENS, TEXT, generator=torch.Generator().manual_seed(seed))


def rows(tensor: Tensor) -> Tensor:
    """Tokens, whatever the order of batch and tokens."""
    return tensor.reshape(-1, tensor.shape[-1])


def test_every_entry_with_cross_attention_has_its_network_here() -> None:
    assert SMALL.keys() == {name for name in WAYS if hasattr(comfy.model_base, name)}
    assert all(hasattr(comfy.model_base, name) for name in SMALL)


@pytest.mark.parametrize("name", SMALL)
def test_the_text_takes_the_way_that_the_table_says(name: str) -> None:
    where, small = WAYS[name], SMALL[name]
    network, context = small.network(), text()
    layers = {path: part for path, part in network.named_modules() if where.is_layer(path)}
    assert len(layers) == BLOCKS

    calls: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def watch(part: nn.Module, called: str) -> None:
        def note(_: nn.Module, given: tuple[Any, ...], output: Tensor) -> None:
            calls.setdefault(called, []).append((given[0].clone(), output.clone()))

        part.register_forward_hook(note)

    for path, layer in layers.items():
        key, value = layer.get_submodule(where.key), layer.get_submodule(where.value)
        assert (key is value) == where.fused
        assert (key.bias is not None) == (value.bias is not None) == where.bias
        assert key.out_features == small.width * (2 if where.fused else 1)
        watch(key, f"{path} keys")
        watch(value, f"{path} values")
        if where.key_norm:
            watch(layer.get_submodule(where.key_norm), f"{path} norm")
        else:
            assert not [part for part, _ in layer.named_modules() if "norm" in part]
    if where.before:
        watch(network.get_submodule(where.before), "before")
    assert bool(small.run(network, context).isfinite().all())

    arriving = calls["before"][0][1] if where.before else context
    for path in layers:
        given, output = calls[f"{path} keys"][0]
        if name == "HunyuanDiT":  # the first encoding goes there straight
            assert torch.equal(rows(given)[:TOKENS], rows(context))
        if name == "Anima":  # zeros behind it
            assert rows(given).shape[0] == PADDED
            assert not bool(rows(given)[ADAPTED:].any())
            assert torch.equal(rows(given)[:ADAPTED], rows(arriving))
        else:
            assert torch.equal(rows(given)[-len(rows(arriving)) :], rows(arriving))
        assert torch.equal(calls[f"{path} values"][0][0], given)
        if where.key_norm:
            keys = output[..., : small.width]
            normed, after = calls[f"{path} norm"][0]
            assert torch.equal(normed.flatten().sort().values, keys.flatten().sort().values)
            assert not torch.allclose(after, normed)


@pytest.mark.parametrize("name", [name for name, where in WAYS.items() if where.fused])
def test_the_first_half_of_a_fused_projection_is_the_keys(name: str) -> None:
    where, small = WAYS[name], SMALL[name]

    def depends_on_the_text(silent: slice) -> bool:
        network = small.network()
        for part in fused_projections(network, where):
            with torch.no_grad():
                part.weight[silent] = 0
                part.bias[silent] = 0
        return not torch.equal(small.run(network, text()), small.run(network, text(seed=3)))

    # Without values nothing of the text arrives, whatever the keys are; without keys, its mean.
    assert not depends_on_the_text(slice(small.width, None))
    assert depends_on_the_text(slice(0, small.width))


def fused_projections(network: nn.Module, where: CrossAttention) -> list[Any]:
    found = [part for path, part in network.named_modules() if where.is_layer(path)]
    return [layer.get_submodule(where.key) for layer in found]
