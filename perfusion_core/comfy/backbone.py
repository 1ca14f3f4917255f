"""Training on ComfyUI's models: the `Backbone` that the training loop asks for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from functools import partial

import torch
from torch import Tensor

from ..method.backbone import TrainingPrompts
from ..method.batches import TrainingError
from ..method.edit import GatedEdit
from .checkpointing import checkpointed
from .differentiable import Differentiable
from .encoder_checkpointing import all_checkpointed, checkpointed_encoder
from .encoding import encode
from .forward_patch import Differences, edited
from .memory import out_of_memory
from .models import compute_dtype, detect_family, layers_of
from .protocols import Clip, Model, ModelPatcher, ModelSampling
from .training_checks import check_latents, check_pair, check_prompts
from .training_memory import kept_bytes
from .training_pass import (
    batches_of_one_length,
    conditions,
    prediction_errors,
    rows_of,
    transformer_options,
)
from .training_words import superclass_vectors, with_training_word
from .weights import fine_bytes, is_dynamic, no_room, trainable_weights

# Bytes. Ask for more memory than any GPU has, so that ComfyUI unloads all other models.
EVERYTHING = 1e20

CHECKPOINTING = ("auto", "on", "off")


class ComfyBackbone:
    """ComfyUI's MODEL and CLIP, ready to train on; made by `training_backbone`.

    Args:
        batch: shape [B, C, ..., H, W] of one batch of latents.
        checkpointing: of `CHECKPOINTING`.
        once: whether all prompts are encoded before the first step, and then `retire_encoder` is
            called: the two are then never on the device at the same time, as far as they can.
    """

    def __init__(
        self, model: Model, clip: Clip, batch: Sequence[int], checkpointing: str, once: bool = False
    ) -> None:
        self._model = model
        self._clip = clip
        self._family = detect_family(model)
        self._layers = layers_of(model, self._family)
        self._base = model.model
        self._batch = tuple(batch)
        self._wanted = checkpointing
        self._once = once
        self._encodes = True
        self._ready = ExitStack()
        self._schedule: ModelSampling = self._base.model_sampling  # a copy from `resume` on
        self.checkpointing = False
        # SDXL's pooled vector sees the placeholder too; the others need no run for each prompt.
        self._pooled = bool(getattr(self._base, "adm_channels", 0))

    def resume(self) -> None:
        """Load what is needed onto the device, unload all other models, make the weights fit for
        autograd.

        Raises TrainingError when the weights do not fit into the device's memory.
        """
        from comfy import model_management

        if self._once and self._encodes:
            # Without gradients ComfyUI may load as little of them as it likes.
            model_management.load_models_gpu(self._encoding_patchers())
            return
        try:
            self._load()
        except Exception as error:
            if not out_of_memory(error):
                raise
            raise TrainingError(no_room(self._training_patchers())) from error
        # A copy on the CPU: reading a number from the device waits for it, and every step reads one
        # for each picture.
        self._schedule = deepcopy(self._base.model_sampling).cpu()

    def _has_to_checkpoint(self) -> bool:
        """Whether a step would not fit into the free memory otherwise, or it is wanted."""
        from comfy import model_management

        if self._wanted != "auto":
            return self._wanted == "on"
        clip = self._clip if self._encodes else None
        kept = kept_bytes(self._base, clip, self._family, self._batch)
        if clip is not None:
            kept += fine_bytes(clip.patcher)
        return bool(kept > model_management.get_free_memory(self.device))

    def _encoding_patchers(self) -> list[ModelPatcher]:
        text = self._clip.patcher
        return [self._model, text] if self._family.adapter else [text]

    def _training_patchers(self) -> list[ModelPatcher]:
        return [self._model, self._clip.patcher] if self._encodes else [self._model]

    def _load(self) -> None:
        from comfy import model_management

        patchers = self._training_patchers()
        if any(map(is_dynamic, patchers)):
            # Loading a dynamic model takes no other off the device.
            model_management.free_memory(EVERYTHING, self.device)
        model_management.load_models_gpu(patchers, memory_required=EVERYTHING, force_full_load=True)
        self._ready.enter_context(trainable_weights(self._model))
        self.checkpointing = self._has_to_checkpoint()
        if self._encodes:
            # Where its layers run again for backward, one layer's are cast at a time.
            once = not (self.checkpointing and all_checkpointed(self._clip.cond_stage_model))
            self._ready.enter_context(trainable_weights(self._clip.patcher, fine=once))

    def retire_encoder(self) -> None:
        """See `Backbone`: the text encoder leaves the device."""
        self.release()
        self._encodes = False
        self.resume()

    def release(self) -> None:
        """Give both their own weights back."""
        self._ready.close()

    @contextmanager
    def paused(self) -> Iterator[tuple[Model, Clip]]:
        """Gives the MODEL and the CLIP with their own weights, for example to sample a picture."""
        self.release()
        try:
            with torch.inference_mode():
                yield self._model, self._clip
        finally:
            self.resume()

    @property
    def family(self) -> str:
        return self._family.id

    @property
    def layers(self) -> Mapping[str, int]:
        return {path: layer.out for path, layer in self._layers.items()}

    @property
    def device(self) -> torch.device:
        return torch.device(self._model.load_device)

    @property
    def underflows(self) -> bool:
        return compute_dtype(self._base) == torch.float16

    def superclass_embeddings(self, word: str) -> Mapping[str, Tensor]:
        """See `Backbone`. Raises ComfyMismatch for a word without tokens."""
        return superclass_vectors(self._clip, self._family, word)

    def encode(
        self,
        prompts: Sequence[str],
        placeholder: str,
        embeddings: Mapping[str, Tensor],
        superclass: str = "",
    ) -> TrainingPrompts:
        clip = with_training_word(self._clip, placeholder, embeddings, superclass)
        distinct = list(dict.fromkeys(prompts))  # templates come up again within a batch
        with ExitStack() as stack:
            stack.enter_context(Differentiable())
            if self.checkpointing:
                stack.enter_context(checkpointed_encoder(clip.cond_stage_model))
            guard = torch.autograd.graph.saved_tensors_hooks(_guarded, _unchanged)
            stack.enter_context(guard)
            encoding = encode(clip, distinct, pooled=self._pooled, base=self._base)
        # The last vector of the placeholder: the only one that has seen all the others.
        positions = encoding.vectors & ~encoding.vectors.roll(-1, dims=1)
        rows = [distinct.index(prompt) for prompt in prompts]
        pooled = None if encoding.pooled is None else rows_of(encoding.pooled, rows)
        beside = {name: rows_of(encoding.beside[name], rows) for name in self._family.beside}
        return TrainingPrompts(
            rows_of(encoding.context, rows), rows_of(positions, rows), pooled, beside
        )

    def check_prompts(
        self,
        prompts: Sequence[str],
        placeholder: str,
        embeddings: Mapping[str, Tensor],
        superclass: str = "",
    ) -> None:
        check_prompts(self._clip, prompts, placeholder, embeddings, superclass)

    def value_projection(self, layer: str, encoding: Tensor) -> Tensor:
        return self._projected("value", layer, encoding)

    def key_projection(self, layer: str, encoding: Tensor) -> Tensor:
        return self._projected("key", layer, encoding)

    def _projected(self, kind: str, layer: str, encoding: Tensor) -> Tensor:
        with torch.no_grad():
            context = encoding[None, None].to(self.device, compute_dtype(self._base))
            return self._layers[layer].project(kind, context)[0, 0].float()

    def loss(
        self,
        latents: Tensor,
        noise: Tensor,
        times: Tensor,
        encoded: TrainingPrompts,
        edit: GatedEdit,
        differences: Mapping[str, Tensor],
        key_differences: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        base, device = self._base, self.device
        sampling = base.model_sampling
        clean = base.process_latent_in(latents.to(device))
        noise = noise.to(device)
        # ComfyUI's own schedule: its percent 0 is all noise, and its ends are outside it.
        percents = (1 - times.double()).clamp(1e-5, 1 - 1e-5).tolist()
        levels = [float(self._schedule.percent_to_sigma(p)) for p in percents]
        sigmas = torch.tensor(levels, device=device)
        noisy = sampling.noise_scaling(sigmas, noise, clean, False)
        learned = (edit, differences, key_differences)
        parts = batches_of_one_length(self._family, encoded)
        if len(parts) == 1:
            denoised = self._denoised(noisy, sigmas, parts[0][1], *learned)
        else:
            by_row: dict[int, Tensor] = {}
            for rows, prompts in parts:
                some = self._denoised(noisy[rows], sigmas[rows], prompts, *learned)
                by_row |= dict(zip(rows, some, strict=True))
            denoised = torch.stack([by_row[row] for row in range(len(noisy))])
        return prediction_errors(sampling, sigmas, denoised, clean).square()

    def _denoised(
        self,
        noisy: Tensor,
        sigmas: Tensor,
        prompts: TrainingPrompts,
        edit: GatedEdit,
        differences: Mapping[str, Tensor],
        key_differences: Mapping[str, Tensor] | None,
    ) -> Tensor:
        """What the edited model makes of noisy latents [B, C, ..., H, W]."""
        base = self._base
        arguments = conditions(base, self._family, prompts, noisy)
        hooks = partial(
            edited,
            self._layers,
            differences=Differences(differences),
            device=noisy.device,
            dtype=compute_dtype(base),
            key_differences=Differences(key_differences) if key_differences else None,
        )
        with ExitStack() as stack:
            current = stack.enter_context(hooks(edits=dict.fromkeys(self._layers, edit)))
            stack.enter_context(Differentiable(self._family.overwrites))
            if self.checkpointing:
                stack.enter_context(
                    checkpointed(
                        base.diffusion_model,
                        self._family,
                        self._layers,
                        prepare=lambda context: current.prepare(edit, context),
                        again=lambda paths: hooks(
                            edits=dict.fromkeys(paths, edit), current=current
                        ),
                    )
                )
            options = transformer_options(self._model)
            denoised: Tensor = base.apply_model(
                noisy, sigmas, transformer_options=options, **arguments
            )
        return denoised


def _guarded(saved: Tensor) -> Tensor:
    # ComfyUI's text encoder adds in place to tensors that autograd has saved, so autograd gets a
    # copy. Tensors that do not depend on the placeholder, such as cast weights, need none.
    return saved.clone() if saved.requires_grad else saved


def _unchanged(saved: Tensor) -> Tensor:
    return saved


@contextmanager
def training_backbone(
    model: Model,
    clip: Clip,
    batch: Sequence[int],
    checkpointing: str = "auto",
    *,
    half: bool = False,
    once: bool = False,
) -> Iterator[ComfyBackbone]:
    """A backbone on clones of ComfyUI's MODEL and CLIP; both are afterwards as before.

    Args:
        batch: shape [B, C, ..., H, W] of one batch of latents.
        checkpointing: of `CHECKPOINTING`. "auto": where the batch would not fit otherwise. What is
            learned is the same, a step takes about half as long again.
        half: the caller scales the loss of a backbone that underflows, so that the model may stay
            in fp16 where the device has no bf16.
        once: see `ComfyBackbone`; for a training whose embeddings stay as they are.

    Raises ComfyMismatch when they do not go together or are not to be trained on.
    """
    check_pair(model, clip)
    check_latents(model, batch)
    if checkpointing not in CHECKPOINTING:
        raise TrainingError(
            f'checkpointing is "{checkpointing}"; it must be one of {", ".join(CHECKPOINTING)}'
        )
    model, clip = _for_training(model, half), clip.clone()
    backbone = ComfyBackbone(model, clip, batch, checkpointing, once)
    with torch.inference_mode(False), torch.enable_grad():
        try:
            backbone.resume()
            yield backbone
        finally:
            backbone.release()


def _for_training(model: Model, half: bool) -> Model:
    """A clone that computes in a precision to train in.

    In fp16 small gradients become 0. So it is bf16 in its place where the device has that, else
    fp32, but for a GPU without bf16 and a caller that scales its loss (`half`): fp16 takes half the
    memory of fp32 there, and less time. A CPU would gain nothing.
    """
    from comfy import model_management

    clone = model.clone()
    dtype, device = compute_dtype(model.model), torch.device(model.load_device)
    if dtype in (torch.float32, torch.bfloat16):
        return clone
    if model_management.should_use_bf16(device):
        clone.set_model_compute_dtype(torch.bfloat16)
    elif not (half and dtype == torch.float16 and device.type == "cuda"):
        clone.set_model_compute_dtype(torch.float32)
    return clone
