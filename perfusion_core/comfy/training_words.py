"""The word that is being learned, on a CLIP."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..families import ModelFamily
from .models import ComfyMismatch
from .prompts import with_words, word_tokens
from .protocols import Clip
from .tokenizers import tokenizers_of
from .vectors import Word


def with_training_word(
    clip: Clip, placeholder: str, embeddings: Mapping[str, Tensor], superclass: str = ""
) -> Clip:
    """A clone of ComfyUI's CLIP that knows the placeholder, as it is so far.

    Args:
        embeddings: text encoder -> its vectors [n, w].
        superclass: what it is among the ids of a tokenizer that has no encoder.

    Raises ComfyMismatch when the CLIP has such a tokenizer and there is no superclass.
    """
    words = {}
    for name, tokenizer in tokenizers_of(clip).items():
        if name in embeddings:
            words[name] = [Word(placeholder, embeddings[name])]
        elif superclass:
            ids = tuple(word_tokens(tokenizer, superclass))
            words[name] = [Word(placeholder, torch.empty(0, 0), ids=ids)]
        else:
            raise ComfyMismatch(
                f'"{placeholder}" has no vectors for the text encoder {name} of the connected '
                f"CLIP, only for {', '.join(embeddings)}: connect the CLIP of the model itself."
            )
    return with_words(clip, words)


def superclass_vectors(clip: Clip, family: ModelFamily, word: str) -> dict[str, Tensor]:
    """Text encoder -> the vectors [n, w] of an ordinary word, on the encoder's device.

    Raises ComfyMismatch for a word without tokens.
    """
    found, tokenizers = {}, tokenizers_of(clip)
    for name in family.encoders:
        tokens = word_tokens(tokenizers[name], word)
        table = getattr(clip.cond_stage_model, name).transformer.get_input_embeddings()
        ids = torch.tensor(tokens, device=table.weight.device)
        with torch.no_grad():
            found[name] = table(ids, out_dtype=torch.float32).detach().clone()
    return found
