"""Checks of MODEL, CLIP, latents and captions before a training; each says what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from ..concept.placeholder import not_mentioned, same_word
from ..method.batches import TrainingError
from .models import ComfyMismatch, detect_family
from .protocols import Clip, Model
from .stack import stack_of
from .tokenizers import encoder_widths, row_tokens, tokenizers_of, vectors_of
from .training_words import with_training_word


def refuse_known_word(clip: Clip, placeholder: str) -> None:
    """Raises ComfyMismatch when ComfyUI's CLIP has a concept of that word already."""
    for tokenizer in tokenizers_of(clip).values():
        # Not by their class: another copy of the pack may have put them there.
        for word in getattr(getattr(tokenizer, "known", None), "words", ()):
            if same_word(word.text, placeholder):
                raise ComfyMismatch(
                    f'The connected CLIP already knows the concept "{word.title}" by the word '
                    f'"{word.text}", which is to be learned: it comes from a Perfusion Concept '
                    "Loader. Connect the checkpoint's own CLIP and MODEL; to go on with that "
                    "concept, connect the loader's concept output to resume."
                )


def check_pair(model: Model, clip: Clip) -> None:
    """Raises ComfyMismatch unless a CLIP is of the model's family, and no concept is on it yet."""
    family = detect_family(model)
    found = encoder_widths(clip)
    if found != family.tokenizers:
        raise ComfyMismatch(
            f"The connected model is of {family.title}, whose text encoders are "
            f"{family.tokenizers} (name: width); the connected CLIP has {found}. Connect the "
            "model's own CLIP."
        )
    if stack_of(model):
        carried = ", ".join(entry.title for entry in stack_of(model))
        raise ComfyMismatch(
            f"The model to train on already carries the concept {carried}, which would become part "
            "of what is learned. Connect the model from before its Perfusion Concept Loader."
        )


def check_latents(model: Model, batch: Sequence[int]) -> None:
    """Raises ComfyMismatch unless latents of the shape [B, C, ...] are the model's."""
    family, expected = detect_family(model), model.model.latent_format.latent_channels
    if (len(batch) == 5) != family.frames:
        shape = "[pictures, channels, frames, height, width]" if family.frames else "no frames"
        raise ComfyMismatch(
            f"The connected VAE makes latents of the shape {list(batch)}, but the model is of "
            f"{family.title}, whose latents have {shape}. Connect the model's own VAE."
        )
    if batch[1] != expected:
        raise ComfyMismatch(
            f"The connected VAE makes latents of {batch[1]} channels, but the model is of "
            f"{family.title}, whose latents have {expected}. Connect the model's own "
            "VAE."
        )


def check_prompts(
    clip: Clip,
    prompts: Sequence[str],
    placeholder: str,
    embeddings: Mapping[str, Tensor],
    superclass: str = "",
) -> None:
    """Raises TrainingError or ComfyMismatch unless these prompts can be encoded to train on.

    Args:
        placeholder: the new word.
        embeddings: text encoder -> its vectors [n, w].
        superclass: see `with_training_word`.
    """
    refuse_known_word(clip, placeholder)
    knowing = with_training_word(clip, placeholder, embeddings, superclass)
    tokenizer = next(iter(tokenizers_of(knowing).values()))
    vectors = len(next(iter(embeddings.values())))
    room = int(tokenizer.max_length) - 2
    if vectors >= room:
        raise TrainingError(
            f'"{placeholder}" takes {vectors} vectors, and the text encoder reads {room} '
            "tokens at a time: set vectors to 0, or to less than 10"
        )
    for prompt in prompts:
        rows, chunks = row_tokens(knowing, knowing.tokenize(prompt))
        found = vectors_of(rows).find(token for row in chunks for token, *_ in row)
        if not any(found):
            raise TrainingError(
                f'the caption "{prompt}" {not_mentioned(prompt, placeholder)}, so the text '
                "encoder does not see it: write it apart from other letters and digits"
            )
        if len(chunks) > 1:
            raise TrainingError(
                f'the caption "{prompt}" is too long: the text encoder reads {room} tokens at '
                f'a time, of which "{placeholder}" takes {vectors}. Use a shorter caption or '
                "superclass."
            )
