"""Where concepts' words attend in a finished picture, recorded in a few passes of the model.

It runs after the sampler, not within it: it adds the noise of some steps to the finished latents
again and runs the model on them with the prompt. So the sampler runs exactly as without a map, a
cached picture needs no sampling, and any latents can be mapped. Queries and keys are recorded
behind the layers' projections and norms; ComfyUI, or another pack, computes attention as ever.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from ..families import CrossAttention, ModelFamily
from ..method.attention import AttentionMaps, AttentionSums, own_words, word_attention
from ..method.edit import GatedEdit
from .concept_entry import edit_of
from .forward_swap import ForwardSwap
from .models import Before, ComfyMismatch, detect_family
from .protocols import Conditioning, Executor, Latent, Model
from .stack import stack_of

logger = logging.getLogger(__name__)

KEY = "perfusion_attention"

# Which noise does not matter much; that it is always the same does.
SEED = 0


@dataclass(frozen=True)
class AttentionScope:
    """What of the model an attention map is of.

    Attributes:
        steps: at how many amounts of noise, evenly spaced from start to end.
        start, end: the part of the sampling schedule, as fractions of ComfyUI's percent.
        group: "down", "middle" or "up": the layers of that part of the network (see
            `ModelFamily.groups`); "" for all.
    """

    steps: int = 8
    start: float = 0.0
    end: float = 1.0
    group: str = ""

    def percents(self) -> list[float]:
        """Raises ComfyMismatch when the end is before the start."""
        if not self.start <= self.end:
            raise ComfyMismatch(
                f"The attention map would start at {self.start:g} of the sampling and end before, "
                f"at {self.end:g}: set the start below the end."
            )
        part = (self.end - self.start) / self.steps
        # ComfyUI's schedule ends outside 0 and 1.
        return [min(max(self.start + part * (n + 0.5), 1e-5), 1 - 1e-5) for n in range(self.steps)]


def attention_maps(
    model: Model,
    positive: Conditioning,
    latent: Latent,
    scope: AttentionScope = AttentionScope(),
    on_step: Callable[[int, int], None] | None = None,
) -> AttentionMaps:
    """Where the words of the concepts on ComfyUI's MODEL attend.

    Args:
        positive: ComfyUI's CONDITIONING. Prompts for a part of the picture are not looked at.
        latent: ComfyUI's LATENT of the finished pictures, or of a video.
        on_step: called with (steps done, steps in all); may raise to stop.

    Raises ComfyMismatch when the model has no concepts, or no prompt is for the whole picture.
    """
    from comfy import sample
    from comfy.patcher_extension import WrappersMP

    stack = stack_of(model)
    if not stack:
        raise ComfyMismatch(
            "This model carries no Perfusion concept whose attention could be shown. Connect the "
            "model that the sampler had: the output of a Perfusion Concept Loader, Perfusion Apply "
            "Concepts or Perfusion Tune."
        )
    family = detect_family(model)
    latents = sample.fix_empty_latent_channels(model, latent["samples"])
    # A video's frames have a map each.
    frames = latents.shape[2] if latents.dim() == 5 else 1
    sums = AttentionSums(len(latents) * frames, len(stack), *latents.shape[-2:])
    recorder = AttentionRecorder(family, scope.group, edit_of(stack), sums, frames)
    clone = model.clone()
    clone.remove_additional_models("multigpu")  # what is added up lies on one GPU
    # Last, so that its hooks lie around those of the edit: they see the prompt as it comes, and the
    # keys as they go.
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, recorder)
    noise = sample.prepare_noise(latents, SEED, latent.get("batch_index"))
    _look_at(clone, positive, latents, noise, scope.percents(), on_step)
    if not recorder.layers:
        raise ComfyMismatch(
            "No prompt is for the whole picture in this part of the sampling, so there is nothing "
            "to map: connect the conditioning from before it is set to an area, or look at another "
            "part."
        )
    if recorder.left_out:
        logger.warning(
            "Perfusion: prompts for a part of the picture are not in the attention map, because "
            "the model sees that part alone; the map is of the prompts for the whole picture."
        )
    return sums.maps([entry.concept.placeholder for entry in stack])


def _look_at(
    model: Model,
    positive: Conditioning,
    latents: Tensor,
    noise: Tensor,
    percents: list[float],
    on_step: Callable[[int, int], None] | None,
) -> None:
    """A pass of ComfyUI's MODEL over noised latents at each of `percents`, as its sampling does it.

    So ComfyUI loads the model and readies prompts, hooks and ControlNets as ever.
    """
    from comfy import samplers

    class Passes(samplers.Sampler):  # type: ignore[misc]
        """Instead of sampling."""

        def sample(
            self,
            guider: Any,
            sigmas: Tensor,
            extra_args: dict[str, Any],
            callback: Any,
            noise: Tensor,
            latent_image: Tensor,
            *_: Any,
        ) -> Tensor:
            sampling = guider.inner_model.model_sampling
            for number, sigma in enumerate(sigmas, start=1):
                noisy = sampling.noise_scaling(sigma, noise, latent_image)
                guider(noisy, sigma.expand(len(noisy)), **extra_args)
                if on_step is not None:
                    on_step(number, len(sigmas))
            return latent_image

    class Prompt(samplers.CFGGuider):  # type: ignore[misc]
        """Predicts with the positive prompt alone, without guidance."""

        def predict_noise(
            self, x: Tensor, timestep: Tensor, model_options: Any = None, seed: Any = None
        ) -> Any:
            conds = [self.conds["positive"]]
            return samplers.calc_cond_batch(self.inner_model, conds, x, timestep, model_options)[0]

    sampling = model.get_model_object("model_sampling")
    sigmas = torch.tensor([float(sampling.percent_to_sigma(p)) for p in percents])
    guider = Prompt(model)
    guider.inner_set_conds({"positive": positive})
    with _uncompiled():
        guider.sample(noise, latents, Passes(), sigmas, disable_pbar=True, seed=SEED)


def _uncompiled() -> AbstractContextManager[Any]:
    """What other nodes have compiled runs as it was: the hooks of a few passes are not worth it."""
    stance = getattr(torch.compiler, "set_stance", None)  # since torch 2.6
    return stance("force_eager") if stance is not None else nullcontext()


class AttentionRecorder:
    """Adds up the attention of each pass: a wrapper around ComfyUI's `apply_model`.

    Args:
        group: of the layers to look at; "" for all. See `ModelFamily.groups`.
        frames: of each of the latents; they are counted as pictures.

    Attributes:
        layers: how many layers were recorded so far, counted again in each pass.
        left_out: how many passes were left out because they are over a part of the picture.
    """

    def __init__(
        self,
        family: ModelFamily,
        group: str,
        edit: GatedEdit,
        sums: AttentionSums,
        frames: int = 1,
    ) -> None:
        self.layers = self.left_out = 0
        self._family = family
        self._group = group
        self._edit = edit
        self._sums = sums
        self._frames = frames
        self._words: tuple[Tensor, Tensor] | None = None
        self._before: Before | None = None
        self._real: Tensor | None = None
        self._text: tuple[Tensor, Tensor] | None = None

    def __call__(self, executor: Executor, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        # A prompt for an area comes with that part of the latents, without its place.
        if tuple(x.shape[-2:]) != self._sums.size or len(x) * self._frames % self._sums.pictures:
            self.left_out += 1
            return executor(x, *args, **kwargs)
        # Of the network that this pass comes to: ComfyUI runs some prompts on a copy of the model.
        network, where = executor.class_obj.diffusion_model, self._family.attention
        modules = self._family.layer_modules(network)
        if self._group:
            groups = self._family.groups(modules)
            modules = {p: m for p, m in modules.items() if groups[p] == self._group}
        mask = kwargs.get(self._family.mask) if self._family.mask else None
        self._real = None if mask is None else mask > 0
        with ForwardSwap() as swap, recorded(modules, where, self._add):
            if where.before:
                self._before = Before(network.get_submodule(where.before), network, self._family)
                _follow(swap, self._before.module, self._on_text)
            return executor(x, *args, **kwargs)

    def _on_text(self, came: Tensor, given: Tensor) -> None:
        self._text = (came, given)

    def _encoding(self, context: Tensor) -> Tensor:
        """The text ahead of the part that is before the layers, where there is one."""
        if self._text is None or self._before is None:
            return context
        rows = self._before.text_of(context, *self._text)
        return context if rows is None else rows

    def _add(self, queries: Tensor, keys: Tensor, context: Tensor, heads: int) -> None:
        self.layers += 1
        # The layers of a pass share their context.
        if self._words is None or self._words[0] is not context:
            words = own_words(self._edit.similarity(self._encoding(context)))
            # Some networks have the rows of a whole batch one after the other.
            self._words = (context, words.reshape(len(queries), -1, words.shape[-1]))
        words = self._words[1]
        keys = keys.reshape(len(queries), -1, keys.shape[-1])
        shares = word_attention(queries, keys, heads, words, self._real)
        if self._frames > 1:  # the places of a layer are those of a frame, frame after frame
            shares = rearrange(shares, "r (f places) j -> (r f) places j", f=self._frames)
            words = words.repeat_interleave(self._frames, dim=0)
        self._sums.add(shares, words)


@contextmanager
def recorded(
    modules: Mapping[str, Any],
    where: CrossAttention,
    see: Callable[[Tensor, Tensor, Tensor, int], None],
) -> Iterator[None]:
    """Within this context `see` is called for each layer's attention; afterwards all is as before.

    Args:
        modules: the cross-attention modules.
        where: the names of what they hold.
        see: takes queries [R, Q, heads x width], keys [R, T, heads x width], the context [R, T, d]
            that came to the key projection, and the number of heads.
    """
    with ForwardSwap() as swap:
        for module in modules.values():
            layer = _SeenLayer(getattr(module, where.heads), where.fused, see)
            if where.turned:
                called = partial(_called, module.forward, where.turned, layer.on_turns)
                swap.put(module, forward=called)
            # Behind the norms, where there are any: attention takes what they give.
            _follow(swap, getattr(module, where.key), layer.on_context)
            _follow(swap, getattr(module, where.query_norm or where.query), layer.on_queries)
            _follow(swap, getattr(module, where.key_norm or where.key), layer.on_keys)
        yield


class _SeenLayer:
    """Gathers queries, keys and context of one layer, in whatever order it computes them."""

    def __init__(self, heads: int, fused: bool, see: Callable[..., None]) -> None:
        self._heads = heads
        self._fused = fused
        self._see = see
        self._context: Tensor | None = None
        self._turns: tuple[Tensor, Tensor] | None = None
        self._queries: Tensor | None = None
        self._keys: Tensor | None = None

    def on_context(self, came: Tensor, _: Tensor) -> None:
        self._context = came

    def on_turns(self, turns: tuple[Tensor, Tensor] | None) -> None:
        self._turns = turns

    def on_queries(self, _: Tensor, queries: Tensor) -> None:
        if self._turns is not None:
            queries = _turned(queries, *self._turns)
        self._queries = self._by_place(queries)
        self._tell()

    def on_keys(self, came: Tensor, keys: Tensor) -> None:
        # A fused projection gives the values as well, a norm behind it no more.
        both = self._fused and came is self._context
        self._keys = self._by_place(keys.chunk(2, dim=-1)[0] if both else keys)
        self._tell()

    def _by_place(self, projected: Tensor) -> Tensor:
        """[R, places, heads x width], also of a norm that sees the heads apart."""
        return projected.flatten(2)

    def _tell(self) -> None:
        if self._queries is None or self._keys is None or self._context is None:
            return
        queries, keys, context = self._queries, self._keys, self._context
        self._queries = self._keys = self._context = None
        self._see(queries, keys, context, self._heads)


def _turned(queries: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Queries [R, places, heads, width], each pair of numbers turned by the angle of its place."""
    first, second = rearrange(queries, "... (pairs two) -> two ... pairs", two=2)
    across = torch.stack([-second, first], dim=-1).flatten(-2)
    return queries * cosines[:, None] + across * sines[:, None]


def _called(original: Any, name: str, see: Callable[[Any], None], *args: Any, **kwargs: Any) -> Any:
    """Calls `see` with one argument of a call, then makes the call."""
    see(inspect.signature(original).bind(*args, **kwargs).arguments.get(name))
    return original(*args, **kwargs)


def _follow(swap: ForwardSwap, module: Any, see: Callable[[Tensor, Tensor], None]) -> None:
    """Call `see` with the input and output of every call of a module."""
    swap.put(module, forward=partial(_seen, module.forward, see))


def _seen(
    original: Any, see: Callable[[Tensor, Tensor], None], came: Tensor, *args: Any, **kwargs: Any
) -> Any:
    output = original(came, *args, **kwargs)
    see(came, output)
    return output
