"""Similarity and gate of every token of a prompt, for each concept."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..concept.concept import Concept
from ..draw.gate_table import TokenGates
from ..limits import MAX_PROMPT
from .beside_queue import Busy, IdleQueue, beside
from .concept_entry import ConceptEntry, edit_of, recommended
from .encoding import encode
from .inner_tokenizer import SPACES
from .models import ComfyMismatch
from .prompts import add_concepts
from .protocols import BaseModel, Clip, Model, Tokenizer
from .tokenizers import clip_family, texts_tokens, vectors_of

AT_ONCE = 8  # chunks of a prompt, of 77 tokens each


def gates_of_prompt(
    clip: Clip, text: str, entries: Sequence[ConceptEntry], model: Model | None = None
) -> TokenGates:
    """Similarity and gate of every token of a prompt, for the concepts of a stack.

    Args:
        clip: ComfyUI's CLIP; it need not know the placeholders yet.
        model: ComfyUI's MODEL; looked at only where its network has an adapter of the text.

    Raises ComfyMismatch when there is no concept, the CLIP is of another family, or the prompt has
    more than `MAX_PROMPT` letters.
    """
    from comfy import model_management

    if not entries:
        raise ComfyMismatch(
            "There is no concept to look at: connect a concept of a Perfusion Concept Loader, or a "
            "stack of Perfusion Combine Concepts."
        )
    if len(text) > MAX_PROMPT:
        raise ComfyMismatch(
            f"The prompt has {len(text)} letters; at most {MAX_PROMPT} are looked at. Look at a "
            "part of it."
        )
    knowing = add_concepts(clip, [entry.concept for entry in entries])
    family = clip_family(knowing)
    adapting = model if family is not None and family.adapter else None
    patchers = [knowing.patcher] if adapting is None else [knowing.patcher, adapting]
    model_management.load_models_gpu(patchers)
    return gates_with(knowing, text, entries, None if adapting is None else adapting.model)


def gates_with(
    knowing: Clip, text: str, entries: Sequence[ConceptEntry], base: BaseModel | None = None
) -> TokenGates:
    """`gates_of_prompt` of a CLIP that knows the placeholders, with its weights where they are."""
    edit = edit_of(entries)
    words: list[str] = []
    similarities: list[Tensor] = []
    gates: list[Tensor] = []
    for part in _blocks(knowing, text):
        with torch.no_grad():
            encoding = encode(part, [text], base=base)
        context = encoding.context[encoding.mask].float()
        words += [
            word
            for row, kept in zip(_words(part, text), encoding.mask.tolist(), strict=True)
            for word, keep in zip(row, kept, strict=False)
            if keep
        ]
        similarities.append(edit.similarity(context).cpu())
        gates.append(edit.gates(context).cpu())
    return TokenGates(
        words,
        [entry.concept.placeholder for entry in entries],
        torch.cat(similarities),
        torch.cat(gates),
        [entry.settings for entry in entries],
    )


def gates_while_idle(clip: Clip, text: str, concepts: Sequence[Concept]) -> TokenGates:
    """`gates_of_prompt` at the recommended settings, without ComfyUI ever waiting for it.

    Raises Busy when ComfyUI runs something, or ran something meanwhile.
    """
    from comfy import model_management

    family = clip_family(clip)
    if family is not None and family.adapter:
        raise ComfyMismatch(
            f"In {family.title} the text passes through a part of the model before its layers see "
            "it, and a plot does not run the model. Perfusion Gate Inspector shows the gates: "
            "connect the model there."
        )
    entries = [recommended(concept) for concept in concepts]
    queue = IdleQueue()
    knowing = add_concepts(clip, concepts)
    for _ in range(2):
        patches = _patches_of(clip)
        try:
            # As ComfyUI runs its nodes: weights may have been made so.
            with torch.inference_mode():
                gates = gates_with(beside(knowing, queue.check), text, entries)
        except model_management.InterruptProcessingException:
            # ComfyUI's layers raise a Cancel once, to whoever asks first. Where something runs by
            # now it was meant for that; if not, it came too late for its run, and is passed over.
            try:
                queue.check()
            except Busy:
                model_management.interrupt_current_processing(True)
                raise
            continue
        queue.check()
        if patches == _patches_of(clip):
            return gates
    raise Busy


def _patches_of(clip: Clip) -> Any:
    """Which LoRAs are in the weights: ComfyUI may take them out while it runs nothing."""
    return getattr(clip.patcher.model, "current_weight_patches_uuid", None)


def _blocks(clip: Clip, text: str) -> Iterator[Clip]:
    """Stand-ins for ComfyUI's CLIP, each of which encodes `AT_ONCE` chunks of the prompt.

    Chunks do not depend on each other, so a prompt of thousands of words needs no more memory than
    one of some hundred.
    """
    tokens = clip.tokenize(text)
    chunks = len(next(iter(tokens.values())))
    for first in range(0, chunks, AT_ONCE):
        part: Any = copy.copy(clip)
        block = {key: rows[first : first + AT_ONCE] for key, rows in tokens.items()}
        part.tokenize = lambda _, block=block: block
        yield part


def _words(clip: Clip, text: str) -> list[list[str]]:
    """Every token of a prompt as a user knows it, chunk by chunk, one for each row of the text."""
    texts = [_words_of(*tokens) for tokens in texts_tokens(clip, clip.tokenize(text))]
    return [[word for part in chunk for word in part] for chunk in zip(*texts, strict=True)]


def _words_of(tokenizer: Tokenizer, chunks: list[list[Any]]) -> list[list[str]]:
    special: dict[Any, str] = {tokenizer.start_token: "<start>", tokenizer.end_token: "<end>"}
    found = iter(vectors_of(tokenizer).find(token for chunk in chunks for token, *_ in chunk))

    def name(token: Any) -> str:
        placeholder = next(found)
        if placeholder is not None:
            return placeholder[0].text
        if torch.is_tensor(token):
            return "(embedding)"
        if token in special:
            return special[token]
        letters = str(tokenizer.inv_vocab[token]).removesuffix("</w>")
        return letters.strip(SPACES) or letters

    return [[name(token) for token, *_ in chunk] for chunk in chunks]
