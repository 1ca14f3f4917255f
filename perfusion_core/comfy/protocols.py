"""ComfyUI's objects as types: exactly the attributes and methods that this pack relies on.

ComfyUI's modules carry few types, so its objects come in as `Any` and are given these names in our
signatures. Nothing is checked while the pack runs, and nothing inherits from these classes. All
that is named here has been in ComfyUI since the oldest version that the pack runs in; what came
later is asked for with `getattr` where it is used. `contract.py` has the version of every single
one, and `test_contract.py` compares this file with it and with the ComfyUI at hand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, TypedDict

import torch
from torch import Tensor, nn

# A tokenized prompt: text encoder -> chunks -> entries (token, weight) or (token, weight, word id).
# A token is an id, or a vector [w].
Tokens = dict[str, list[list[Any]]]

# CONDITIONING: entries [encoding [B, T, d], what goes with it by name].
Conditioning = Sequence[Sequence[Any]]


class _Samples(TypedDict):
    samples: Tensor


class Latent(_Samples, total=False):
    """LATENT: `samples` [B, C, H, W], and for some the place of each in its batch, and a mask."""

    batch_index: Sequence[int]
    noise_mask: Tensor


class Modules(Protocol):
    """What ComfyUI's models have of `torch.nn.Module`."""

    def modules(self) -> Iterator[nn.Module]: ...

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]: ...


class ModelSampling(Protocol):
    """A model's noise schedule, and what its predictions mean."""

    def percent_to_sigma(self, percent: float) -> float:
        """The noise level at a part of the sampling: 0 all noise, 1 none."""

    def noise_scaling(
        self, sigma: Tensor, noise: Tensor, latent_image: Tensor, max_denoise: bool = False
    ) -> Tensor: ...

    def calculate_denoised(
        self, sigma: Tensor, model_output: Tensor, model_input: Tensor
    ) -> Tensor: ...

    def cpu(self) -> ModelSampling:
        """As of `torch.nn.Module`."""


class LatentFormat(Protocol):
    """The latents that a model works on."""

    latent_channels: int


class Condition(Protocol):
    """One argument of a model's forward pass, before it is made as large as the batch."""

    cond: Any

    def process_cond(self, batch_size: int, **kwargs: Any) -> Condition: ...


class Projection(Protocol):
    """What gives a layer's keys or values: a linear layer, or what another pack put there."""

    in_features: int
    out_features: int

    def __call__(self, context: Tensor) -> Tensor: ...


class BaseModel(Modules, Protocol):
    """The network with its schedule and latents: `MODEL.model`."""

    diffusion_model: nn.Module
    model_sampling: ModelSampling
    latent_format: LatentFormat
    manual_cast_dtype: torch.dtype | None

    def apply_model(
        self,
        x: Tensor,
        t: Tensor,
        c_concat: Tensor | None = None,
        c_crossattn: Tensor | None = None,
        control: Any = None,
        transformer_options: Mapping[str, Any] = ...,
        **kwargs: Any,
    ) -> Tensor: ...

    def extra_conds(self, **kwargs: Any) -> Mapping[str, Condition]: ...

    def get_dtype(self) -> torch.dtype: ...

    def process_latent_in(self, latent: Tensor) -> Tensor: ...


class ModelPatcher(Protocol):
    """A model's weights, where they lie, and what clones of it add; of a MODEL or of a CLIP."""

    @property
    def model(self) -> Modules: ...

    load_device: torch.device
    model_options: dict[str, Any]
    backup: Mapping[str, Any]
    patches: dict[str, Any]
    patches_uuid: object
    wrappers: Mapping[str, Mapping[str | None, list[Any]]]

    def model_size(self) -> int:
        """Bytes of all weights."""

    def patch_weight_to_device(
        self, key: str, device_to: torch.device | None = None, **kwargs: Any
    ) -> Any: ...


class Model(ModelPatcher, Protocol):
    """MODEL."""

    @property
    def model(self) -> BaseModel: ...

    def clone(self) -> Model: ...

    def get_attachment(self, key: str) -> Any: ...

    def set_attachments(self, key: str, attachment: Any) -> None: ...

    def get_wrappers(self, wrapper_type: str, key: str) -> list[Any]: ...

    def add_wrapper_with_key(self, wrapper_type: str, key: str, wrapper: Any) -> None: ...

    def remove_wrappers_with_key(self, wrapper_type: str, key: str) -> None: ...

    def remove_additional_models(self, key: str) -> None: ...

    def get_model_object(self, name: str) -> Any: ...

    def set_model_compute_dtype(self, dtype: torch.dtype) -> None: ...


class Executor(Protocol):
    """What a wrapper is given to go on with; `class_obj` is the model around `apply_model`."""

    class_obj: BaseModel

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


class Tokenizer(Protocol):
    """The tokenizer of one text encoder (`SDTokenizer`); `tokenizer` is Hugging Face's within."""

    tokenizer: Any
    embedding_size: int
    tokens_start: int
    start_token: int | None
    end_token: int | None
    inv_vocab: Mapping[Any, str]
    max_length: int
    max_word_length: int
    pad_to_max_length: bool

    def tokenize_with_weights(
        self, text: str, return_word_ids: bool = False, **kwargs: Any
    ) -> list[list[Any]]: ...

    def pad_tokens(self, tokens: list[Any], amount: int) -> None: ...


class TextEncoder(Protocol):
    """All text encoders of a CLIP; each is an attribute, under its name."""

    def reset_clip_options(self) -> None: ...

    def set_clip_options(self, options: Mapping[str, Any]) -> None: ...

    def encode_token_weights(self, token_weight_pairs: Tokens) -> Sequence[Any]:
        """(encodings [B, T, d], a pooled vector [B, p] or None, and others of a conditioning)."""

    def state_dict(self) -> Mapping[str, Tensor]:
        """As of `torch.nn.Module`."""


class Clip(Protocol):
    """CLIP."""

    patcher: ModelPatcher
    cond_stage_model: TextEncoder
    tokenizer: Any  # an object that has a `Tokenizer` for each text encoder, under its name
    layer_idx: int | None

    def clone(self) -> Clip: ...

    def tokenize(self, text: str) -> Tokens: ...

    def encode_from_tokens_scheduled(self, tokens: Tokens) -> Conditioning: ...


class Vae(Protocol):
    """VAE. Pictures are [B, H, W, C], 0 to 1."""

    def encode(self, pixel_samples: Tensor) -> Tensor: ...

    def decode(self, samples_in: Tensor) -> Tensor: ...


class PromptQueue(Protocol):
    """ComfyUI's queue of graphs."""

    task_counter: int

    def get_tasks_remaining(self) -> int: ...
