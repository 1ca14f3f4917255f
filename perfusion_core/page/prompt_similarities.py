"""What the plots on the nodes show of a prompt: each token's similarity to each concept.

A node that puts concepts onto a CLIP has the CLIP remembered, by a weak reference: ComfyUI decides
how long it lives. Concepts that come from no file are remembered in the same way. The page may then
ask about any prompt; the text encoder runs for it while ComfyUI has nothing to run, and ComfyUI
never waits for it: see `gates_while_idle`.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any, NamedTuple

from ..cache import BoundedCache
from ..comfy.clip_covariance import family_of_clip
from ..comfy.gates_of_prompt import gates_while_idle
from ..comfy.live import running_node
from ..comfy.models import ComfyMismatch
from ..comfy.protocols import Clip
from ..comfy.tokenizers import encoder_widths
from ..concept.concept import Concept, check_words
from ..concept.placeholder import same_word
from ..draw.gate_table import TokenGates
from ..families import FAMILIES, ModelFamily
from ..limits import MAX_CONCEPTS, MAX_KEPT, MAX_NODES, MAX_TEXT


class NoEncoder(Exception):
    """No CLIP of the concepts' family has gone through a node of ours yet, or none lives still."""


class EncoderGone(NoEncoder):
    """A CLIP of the concepts' family went through a node of ours, and ComfyUI kept it no longer."""


class NoConcept(Exception):
    """A concept that is in no file has not gone through its node yet, or does not live still."""


@dataclass(frozen=True)
class Similarities:
    """The answer to one prompt.

    Attributes:
        words: T tokens, the first and the last special one included.
        similarities: J lists of T numbers, one list a concept.
        family: id of the CLIP's family.
        own: whether it is the CLIP of the node with the asked id in the last graph that had one;
            if not, it is the last one of its family.
    """

    words: tuple[str, ...]
    similarities: tuple[tuple[float, ...], ...]
    family: str
    own: bool


class _Node(NamedTuple):
    """What went through one of our nodes; nothing of it is held alive."""

    clip: weakref.ref[Clip]
    concepts: tuple[weakref.ref[Concept], ...]
    widths: dict[str, int]  # of the CLIP's text encoders


_Answers = BoundedCache[Any, TokenGates]  # (prompt, concepts) -> what the page is shown of it


class Encoders:
    """The CLIPs and concepts that went through our nodes, and what was answered with each CLIP.

    Holds none of them alive, and `MAX_KEPT` answers for each that lives.
    """

    def __init__(self) -> None:
        self._nodes: BoundedCache[str, _Node] = BoundedCache(MAX_NODES)
        self._answers: weakref.WeakKeyDictionary[Any, _Answers] = weakref.WeakKeyDictionary()
        self._lock = Lock()  # of `_answers`

    def remember(self, node: str, clip: Clip, concepts: Sequence[Concept] = ()) -> None:
        """`clip` is what the node of that id puts `concepts` on."""
        refs = tuple(weakref.ref(concept) for concept in concepts)
        self._nodes.put(node, _Node(weakref.ref(clip), refs, encoder_widths(clip)))

    def applied(self, node: str, placeholder: str) -> Concept:
        """The concept of that word that a node put on its CLIP. Raises NoConcept."""
        # Not by `get`, which would make the node the one that was used last.
        refs = next((known.concepts for name, known in self._nodes.items() if name == node), ())
        for concept in (ref() for ref in refs):
            if concept is not None and same_word(concept.placeholder, placeholder.strip()):
                return concept
        raise NoConcept

    def similarities(self, node: str, concepts: Sequence[Concept], text: str) -> Similarities:
        """Similarity of every token of `text` to every concept.

        Args:
            node: id of the node that asks; its CLIP is taken, else the last one of the family.

        Raises Busy, NoEncoder, or ComfyMismatch when the concepts do not go together, or the
        encoder gives NaN or infinity.
        """
        clip, own = self._clip_for(node, concepts[0])
        key = (text, *((concept.hash, concept.placeholder) for concept in concepts))
        answers = self._answers_of(clip)
        gates = answers.get(key)
        if gates is None:
            gates = gates_while_idle(clip, text, concepts)
            if not bool(gates.similarities.isfinite().all()):
                raise ComfyMismatch(
                    "The text encoder gives NaN or infinity for this prompt, with or without "
                    "concepts: its weights, or a LoRA on it, are broken, or its precision is too "
                    "low (start ComfyUI with --fp32-text-enc)."
                )
            answers.put(key, gates)
        return Similarities(
            tuple(gates.words),
            tuple(tuple(column) for column in gates.similarities.T.tolist()),
            _family(clip, concepts[0]).id,
            own,
        )

    def _clip_for(self, node: str, concept: Concept) -> tuple[Clip, bool]:
        nodes = self._nodes.items()  # the last remembered is the last
        alive = {name: clip for name, known in nodes if (clip := known.clip())}
        gone = [known.widths for name, known in nodes if name not in alive]
        own = alive.get(node)
        encoders = FAMILIES[concept.family].tokenizers
        fitting = [clip for clip in alive.values() if encoder_widths(clip) == encoders]
        # A node of another graph, for another family, may have the same id.
        if own is not None and (own in fitting or not fitting):
            return own, True
        if not fitting:
            raise EncoderGone if encoders in gone else NoEncoder
        return fitting[-1], False

    def _answers_of(self, clip: Clip) -> _Answers:
        with self._lock:
            return self._answers.setdefault(clip, BoundedCache(MAX_KEPT))


def _family(clip: Clip, concept: Concept) -> ModelFamily:
    """The CLIP's family: the concept's, where several have the same text encoders."""
    family = FAMILIES[concept.family]
    return family if family.tokenizers == encoder_widths(clip) else family_of_clip(clip)


encoders = Encoders()


def remember_encoder(clip: Clip | None, concepts: Sequence[Concept] = ()) -> None:
    """Remember the CLIP that the node now running puts concepts on, and those of no file.

    Without a CLIP, and outside a run: nothing.
    """
    run = running_node()
    if run is not None and clip is not None:
        encoders.remember(run.node_id, clip, concepts)


def applied_concept(node: str, placeholder: str) -> Concept:
    """`Encoders.applied` of what has gone through the nodes of this ComfyUI."""
    return encoders.applied(node, placeholder)


def prompt_similarities(node: str, concepts: Sequence[Concept], text: str) -> Similarities:
    """`Encoders.similarities` of what has gone through the nodes of this ComfyUI.

    Raises ComfyMismatch as well for a prompt or a chain that is too long.
    """
    if not 1 <= len(concepts) <= MAX_CONCEPTS:
        raise ComfyMismatch(f"{len(concepts)} concepts were asked for; 1 to {MAX_CONCEPTS} fit")
    if len(text) > MAX_TEXT:
        raise ComfyMismatch(f"the prompt has {len(text)} characters; at most {MAX_TEXT} are shown")
    return encoders.similarities(node, concepts, text)


def renamed(concept: Concept, placeholder: str) -> Concept:
    """The concept under another placeholder; the same one for an empty word, or for its own.

    Raises ConceptError for a word that cannot be one.
    """
    word = placeholder.strip()
    if not word or word == concept.placeholder:
        return concept
    check_words(word, concept.superclass)
    return replace(concept, placeholder=word)
