"""The global key lock's way from the CLIP to the sampler: every prompt takes its twin along.

The twin is the same prompt with superclass words for concepts. It lies beside the encoding in the
conditioning, as plain tensors, so that it can be saved and loaded with it. Of what ComfyUI's nodes
do to a conditioning (`twins.py`), most is done to the twin as well.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from threading import Lock
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ..method.edit import LockedPrompt
from .protocols import TextEncoder, Tokens
from .vectors import KnownVectors, Word

# Entries of a conditioning: a prompt's encoding [B, T, d], which later nodes do not change, and its
# superclass twin [B, T, d].
LOCKED_PROMPT = "perfusion_prompt"
SUPERCLASS_PROMPT = "perfusion_superclass_prompt"
# With the name of what an encoder gives beside the encoding: the same of the twin.
SUPERCLASS_BESIDE = "perfusion_superclass_"
# Entry of a pass's options: a tuple of `LockedPrompt`.
LOCKED_PROMPTS = "perfusion_locked_prompts"


class EncodedPrompts:
    """What encoders with a key lock have encoded, as long as ComfyUI keeps the encodings.

    A conditioning's other entries do not go through every node: a scheduled hook on the CLIP drops
    them, and an average keeps those of one prompt. Holds no encoding alive.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._prompts: Any = WeakTensorKeyDictionary()

    def remember(self, encoding: Tensor, prompt: LockedPrompt) -> None:
        """`encoding` [B, T, d] is what the encoder gave, `prompt` the same and its twin."""
        with self._lock:
            self._prompts[encoding] = prompt

    def of(self, encoding: Any) -> LockedPrompt | None:
        """The prompt of an encoding that is the very tensor that the encoder gave."""
        with self._lock:
            prompt: LockedPrompt | None = self._prompts.get(encoding)
        return prompt

    def all(self) -> list[LockedPrompt]:
        """All that live, the latest first."""
        with self._lock:
            return list(self._prompts.values())[::-1]


encoded_prompts = EncodedPrompts()


def prompt_beside(entries: Mapping[str, Any], encoding: Any) -> LockedPrompt | None:
    """The prompt and twin that go with an encoding, from what lies beside it, or from memory.

    Args:
        entries: of a conditioning, whatever wrote them.
    """
    own, twin = entries.get(LOCKED_PROMPT), entries.get(SUPERCLASS_PROMPT)
    if isinstance(own, Tensor) and isinstance(twin, Tensor) and own.shape == twin.shape:
        return LockedPrompt(own, twin)
    return encoded_prompts.of(encoding) if isinstance(encoding, Tensor) else None


class TwinEncoding:
    """A CLIP's `encode_token_weights` that encodes each prompt's twin as well.

    ComfyUI puts what an encoder returns in third place into the conditioning.
    """

    def __init__(self, encoder: TextEncoder, words: Iterable[Word]) -> None:
        self.encoder = encoder
        self._known = KnownVectors(words)

    def __call__(self, tokens: Tokens) -> Sequence[Any]:
        """As the encoder's own; with the entries of this module among the conditioning's."""
        output = self.encoder.encode_token_weights(tokens)
        twin, replaced = self._twin(tokens)
        # Another tensor than the one that goes into the conditioning, which is remembered by itself
        # and so must not be held by what is remembered of it.
        own = output[0].detach()
        # A prompt without such a word is its own twin: its keys stay as they are.
        other = self.encoder.encode_token_weights(twin) if replaced else output
        superclass = other[0].detach() if replaced else own
        encoded_prompts.remember(output[0], LockedPrompt(own, superclass))
        beside = {LOCKED_PROMPT: own, SUPERCLASS_PROMPT: superclass}
        if len(other) > 2:  # a second text has a twin as well
            beside |= {
                f"{SUPERCLASS_BESIDE}{name}": value.detach()
                for name, value in other[2].items()
                if isinstance(value, Tensor) and value.dim() == own.dim()
            }
        return output[0], output[1], {**(output[2] if len(output) > 2 else {}), **beside}

    def _twin(self, tokens: Tokens) -> tuple[Tokens, int]:
        """The tokens with superclass words for concepts, and how many were replaced."""
        twin: Tokens = {}
        replaced = 0
        for key, chunks in tokens.items():
            found = iter(self._known.find(entry[0] for chunk in chunks for entry in chunk))
            twin[key] = []
            for chunk in chunks:
                row = []
                for entry in chunk:
                    vector = next(found)
                    if vector is not None and vector[0].superclass:
                        replaced += 1
                        entry = (vector[0].stand_in(vector[1]), *entry[1:])
                    row.append(entry)
                twin[key].append(row)
        return twin, replaced


def with_key_lock(encoder: TextEncoder, words: Iterable[Word]) -> TextEncoder:
    """A CLIP's encoder, with the global key lock when any of `words` asks for it.

    The same object's class and parts, so that whoever asks for either finds them.
    """
    encoder = without_key_lock(encoder)
    words = tuple(words)
    if not any(word.superclass for word in words):
        return encoder
    locking: Any = copy.copy(encoder)
    locking.encode_token_weights = TwinEncoding(encoder, words)
    lock: TextEncoder = locking
    return lock


def without_key_lock(encoder: TextEncoder) -> TextEncoder:
    """The encoder that `with_key_lock` was given."""
    own = vars(encoder).get("encode_token_weights")
    return own.encoder if isinstance(own, TwinEncoding) else encoder
