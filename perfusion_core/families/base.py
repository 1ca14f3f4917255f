"""What a model family answers: all that differs between models, in one object."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from .captions import ordinary_captions


@dataclass(frozen=True)
class CrossAttention:
    """Where the text enters the cross-attention layers of a network.

    Attributes:
        layer: end of the path of every such layer and of no other: as many of its last parts as
            that takes.
        key, value: names of the projections within the layer; the same name where one projection
            gives both, keys first (fused).
        query: name of the projection of the queries within the layer.
        heads: name of the layer's number of heads.
        bias: whether the projections add a bias.
        key_norm, query_norm: names of the norms that follow keys and queries; "" for none.
        turned: name of the argument of the layer's forward by which queries are turned behind the
            norm, pair by pair: cosines and sines [places, width of a head]; "" for none.
        before: the part of the network that every row of the text passes through, in the forward,
            before these layers; "" for none. The text is edited ahead of it.
        outside: first part of the paths that end like those of the layers and are not meant.
    """

    layer: str
    key: str
    value: str
    query: str = "to_q"
    heads: str = "heads"
    bias: bool = False
    key_norm: str = ""
    query_norm: str = ""
    turned: str = ""
    before: str = ""
    outside: str = ""

    @property
    def fused(self) -> bool:
        """Whether one projection gives both keys and values."""
        return self.key == self.value

    def is_layer(self, path: str) -> bool:
        """Whether the module at `path` of a network is such a layer."""
        meant = not self.outside or path.partition(".")[0] != self.outside
        return meant and f".{path}".endswith(f".{self.layer}")


@dataclass(frozen=True, kw_only=True)
class ModelFamily:
    """Models whose text reaches cross-attention in the same way, so that a concept fits them all.

    Attributes:
        id: what a concept file says. Stable: never renamed once released.
        title: what a user reads.
        encoders: text encoder -> width of its token embeddings, in the order in which their
            encodings are joined into the context. The keys are ComfyUI's names of the encoders.
        resolution: side in pixels of the square pictures that the models were made for.
        network: name of the class of the models' network in ComfyUI.
        attention: where keys and values are.
        blocks: names of the classes of the network's blocks, none within another, that hold nearly
            all that backward needs: what gradient checkpointing runs again.
        kept: bytes that autograd keeps of a forward pass until backward, for each cell of the
            latents and each byte of the dtype, where attention is one kernel.
        overwrites: whether these blocks write into what they are given first.
        kept_of: how many blocks the network has that `kept` was counted on, and how wide its values
            are: others of the family keep as much less or more; None where all keep the same.
        context: name of the argument by which the text comes to these blocks.
        pixels: side in pixels of a cell of the latents.
        patch: side in cells of what the network takes for one place and has no half of; 1 where it
            fills up what is missing.
        frames: whether latents have an axis of frames, [B, C, F, H, W]; a picture is one frame.
        prompt: how many tokens of a prompt the encoders run on, pads included, to count memory by.
        kept_text: bytes that autograd keeps of the text encoders, which run in fp32, for each
            token, layer and number of an encoding.
        ids: tokenizers beside the encoders, whose tokens reach the network as ids alone -> what
            ComfyUI says is their width. A placeholder is its superclass's ids there.
        rows: name of the tokenizer whose tokens the rows of the context follow; "" for the first.
        adapter: the part of the MODEL's network that a whole prompt passes through, once, before it
            is the context of the layers; "" for none. `adapt` runs it.
        beside: names of what the text encoders give beside an encoding and the network wants along
            with it, such as a mask of the pads: tensors [B, T, ...].
        mask: which of `beside` says of each row whether it is a word; "" where the network looks at
            every row.
        joins: whether rows of zeros make prompts equally long, to be a batch: the network leaves
            pads out, or has them itself. Else every length is a batch of its own.
        captions: gives the captions that a covariance is estimated from when the user has none.
    """

    id: str
    title: str
    encoders: Mapping[str, int]
    resolution: int
    network: str
    attention: CrossAttention
    blocks: tuple[str, ...]
    kept: int
    kept_of: tuple[int, int] | None = None
    overwrites: bool = False
    context: str = "context"
    pixels: int = 8
    patch: int = 1
    frames: bool = False
    prompt: int = 77
    kept_text: int = 80  # counted on CLIP-L: 78; those of SD 2 and SDXL keep less, 46
    ids: Mapping[str, int] = field(default_factory=dict)
    rows: str = ""
    adapter: str = ""
    beside: tuple[str, ...] = ()
    mask: str = ""
    joins: bool = True
    captions: Callable[[], tuple[str, ...]] = ordinary_captions

    def __post_init__(self) -> None:
        object.__setattr__(self, "encoders", MappingProxyType(dict(self.encoders)))
        object.__setattr__(self, "ids", MappingProxyType(dict(self.ids)))

    @property
    def context_width(self) -> int:
        """d: the width of the text encodings that reach the cross-attention layers."""
        return sum(self.encoders.values())

    @property
    def parts(self) -> tuple[int, ...]:
        """Widths of the texts that have places of their own in the context, one after the other in
        a row of it, of which all but one are zero; one width where all encoders share a place."""
        return (self.context_width,)

    @property
    def cell(self) -> int:
        """Side in pixels of what the sizes of pictures are whole multiples of."""
        return self.pixels * self.patch

    @property
    def tokenizers(self) -> dict[str, int]:
        """Every tokenizer of the CLIP -> its width: by these a CLIP is known."""
        return {**self.encoders, **self.ids}

    def reads_like(self, other: ModelFamily) -> bool:
        """Whether its text encodings are those of another family: the same encoders, and no part
        of the model, give them."""
        if self.adapter or other.adapter:
            return self.id == other.id
        return (self.tokenizers, self.rows) == (other.tokenizers, other.rows)

    def adapt(self, network: Any, encoding: Any, beside: Mapping[str, Any]) -> Any:
        """What the layers see of a prompt [1, T, d].

        Args:
            network: a `diffusion_model` of ComfyUI's, on the device of `encoding`.
            encoding: what the text encoder gave for it [1, t, d], in the network's dtype.
            beside: what else it gave, by ComfyUI's names.
        """
        return encoding

    def joined(self, encoding: Any, beside: Mapping[str, Any]) -> Any:
        """The text e [B, T, d] of prompts, as it is edited.

        Args:
            encoding: what ComfyUI says is the encoding [B, t, ...].
            beside: what the text encoders gave beside it.
        """
        return encoding

    def given(self, text: Any, beside: Mapping[str, Any]) -> dict[str, Any]:
        """What the network is given of texts that `joined` gave: ComfyUI's names -> tensors."""
        return {**beside, "cross_attn": text}

    def text_of(self, network: Any, context: Any, came: Any, gave: Any) -> Any:
        """The text that a context of the layers was made of, ahead of what is `before` them.

        Args:
            network: a `diffusion_model` of ComfyUI's.
            context: what the layers see, of any shape [..., T, width].
            came: what came to the part before the layers [..., t, d] in this pass.
            gave: what that part gave for it [..., t, width].

        Returns e [..., T, d], with as many rows as `context` in its order, or None when that is not
        made of this text.
        """
        alike = context.shape[-1] == gave.shape[-1] and context.numel() == gave.numel()
        return came if alike else None

    def context_of(
        self, network: Any, edited: Any, rows: Any, through: Callable[[Any], Any], context: Any
    ) -> Any:
        """What the layers see [..., T, width] of an edited text [..., T, d].

        Args:
            edited: the text after the edit.
            rows: the same before it: what `text_of` gave.
            through: the part before the layers.
            context: what the layers see of it without the edit; None where nobody knows.
        """
        return through(edited)

    def kept_by(self, network: Any) -> float:
        """`kept` of one network: models of a family may differ in size."""
        if not self.kept_of:
            return self.kept
        where = self.attention
        outs = (getattr(n, where.value).out_features for n in self.layer_modules(network).values())
        blocks, width = self.kept_of
        return self.kept * sum(map(int, outs)) / (1 + where.fused) / (blocks * width)

    # What models are of this family.

    def recognises(self, network: Any) -> bool:
        """Whether a network, a `diffusion_model` of ComfyUI's, is of this family: by its class and
        its shape."""
        return self.is_of_class(network) and self.text_widths(network) == {self.context_width}

    def is_of_class(self, network: Any) -> bool:
        """Whether the network is of the family's class; other families may share it."""
        return self.network in (ancestor.__name__ for ancestor in type(network).__mro__)

    def text_widths(self, network: Any) -> set[int]:
        """Widths of the text that the layers of a network take, or what is before them."""
        if self.attention.before:
            before = network.get_submodule(self.attention.before).modules()
            widths = (int(part.in_features) for part in before if hasattr(part, "in_features"))
            return {next(widths)}
        parts = self.layer_modules(network).values()
        return {int(getattr(part, self.attention.key).in_features) for part in parts}

    def recognises_file(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Whether a checkpoint on disk, of tensors of these names and shapes, is of this family.

        Told by the width of the text that enters the keys; `has_part` tells other networks apart.
        """
        end = f"{self.attention.layer}.{self.attention.key}.weight"
        widths = {
            shape[1]
            for name, shape in shapes.items()
            if len(shape) == 2 and f".{name}".endswith(f".{end}") and self.has_part(name)
        }
        return widths == {self.context_width}

    def widths_in_file(self, shapes: Mapping[str, tuple[int, ...]], end: str) -> set[int]:
        """Widths that the matrices take whose names end so, in a checkpoint on disk."""
        named = ((f".{name}", shape) for name, shape in shapes.items())
        return {shape[1] for name, shape in named if name.endswith(f".{end}") and len(shape) == 2}

    def has_part(self, name: str) -> bool:
        """Whether a tensor of this name in a checkpoint on disk can be of such a network."""
        raise NotImplementedError

    # Their layers.

    def layer_modules(self, network: Any) -> dict[str, Any]:
        """The cross-attention layers of a network by path, in the network's order."""
        where = self.attention
        # torch.compile puts its own part into a path.
        named = ((path.replace("_orig_mod.", ""), part) for path, part in network.named_modules())
        return {p: part for p, part in named if where.is_layer(p) and hasattr(part, where.key)}

    def may_have(self, path: str) -> bool:
        """Whether `path` can be that of a cross-attention layer of these models."""
        return self.attention.is_layer(path)

    @property
    def group_names(self) -> tuple[str, str, str]:
        """What people call the first, the middle and the last of the groups of layers."""
        return "early", "middle", "late"

    def groups(self, paths: Iterable[str]) -> dict[str, str]:
        """Which part of the network each layer is in: "down", "middle" or "up", which are its
        first, middle and last third where it is no UNet.

        Args:
            paths: of all the network's layers.
        """
        ordered = in_order(paths)
        thirds = ("down", "middle", "up")
        return {path: thirds[3 * n // len(ordered)] for n, path in enumerate(ordered)}


def in_order(paths: Iterable[str]) -> list[str]:
    """Paths of layers in the network's order: by their parts, numbers as numbers."""

    def in_parts(path: str) -> list[tuple[int, str]]:
        return [(int(p), "") if p.isdecimal() else (-1, p) for p in path.split(".")]

    return sorted(paths, key=in_parts)
