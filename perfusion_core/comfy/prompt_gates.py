"""What the plots on the nodes show of a prompt: each token's similarity to each concept.

Whenever a node puts concepts onto a CLIP, that CLIP is remembered, weakly: the host decides how
long it lives. So are concepts that come from another node rather than from a file. A page may then
ask about any prompt, and the text encoder runs for it while ComfyUI has nothing to run. ComfyUI
waits for none of it: see `beside`.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any

import torch

from ..concept.concept import Concept, check_words
from ..concept.placeholder import same_word
from ..draw.token_gates import TokenGates
from ..families import FAMILIES
from ..limits import MAX_CONCEPTS, MAX_KEPT, MAX_NODES, MAX_TEXT
from .beside_queue import Busy, IdleQueue, beside
from .clip_covariance import family_of_clip
from .models import HostMismatch
from .prompts import add_concepts
from .stack import recommended
from .token_gates import gates_with
from .tokenizers import encoder_widths


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


def _gates_beside(clip: Any, text: str, concepts: Sequence[Concept]) -> TokenGates:
    """Similarities and gates while nothing runs, with a text encoder that nothing has to wait for.

    Raises Busy when anything has run meanwhile.
    """
    from comfy import model_management

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


def _patches_of(clip: Any) -> Any:
    """Which LoRAs are in the weights: ComfyUI may take them out while it runs nothing."""
    return getattr(clip.patcher.model, "current_weight_patches_uuid", None)


class Encoders:
    """The CLIPs and concepts that went through our nodes, and what was answered with each CLIP.

    Holds none of them alive, and `MAX_KEPT` answers for each that lives.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._by_node: OrderedDict[str, weakref.ref[Any]] = OrderedDict()
        self._concepts: dict[str, list[weakref.ref[Concept]]] = {}
        self._widths: dict[str, dict[str, int]] = {}
        self._kept: weakref.WeakKeyDictionary[Any, OrderedDict[Any, TokenGates]] = (
            weakref.WeakKeyDictionary()
        )

    def remember(self, node: str, clip: Any, concepts: Sequence[Concept] = ()) -> None:
        """`clip` is what the node of that id puts `concepts` on."""
        widths = encoder_widths(clip)
        with self._lock:
            self._widths[node] = widths
            self._by_node[node] = weakref.ref(clip)
            self._by_node.move_to_end(node)
            self._concepts[node] = [weakref.ref(concept) for concept in concepts]
            while len(self._by_node) > MAX_NODES:
                forgotten, _ = self._by_node.popitem(last=False)
                del self._concepts[forgotten], self._widths[forgotten]

    def applied(self, node: str, placeholder: str) -> Concept:
        """The concept of that word that a node put on its CLIP. Raises NoConcept."""
        with self._lock:
            alive = [concept for ref in self._concepts.get(node, ()) if (concept := ref())]
        for concept in alive:
            if same_word(concept.placeholder, placeholder.strip()):
                return concept
        raise NoConcept

    def similarities(self, node: str, concepts: Sequence[Concept], text: str) -> Similarities:
        """Similarity of every token of `text` to every concept.

        Args:
            node: id of the node that asks; its CLIP is taken, else the last one of the family.

        Raises Busy, NoEncoder, or HostMismatch when the concepts do not go together, or the encoder
        gives no numbers.
        """
        clip, own = self._clip_for(node, concepts[0])
        key = (text, *((concept.hash, concept.placeholder) for concept in concepts))
        gates = self._known(clip, key)
        if gates is None:
            gates = _gates_beside(clip, text, concepts)
            if not bool(gates.similarities.isfinite().all()):
                raise HostMismatch(
                    "The text encoder gives NaN or infinity for this prompt, with or without "
                    "concepts: its weights, or a LoRA on it, are broken, or its precision is too "
                    "low (start ComfyUI with --fp32-text-enc)."
                )
            self._keep(clip, key, gates)
        return Similarities(
            tuple(gates.words),
            tuple(tuple(column) for column in gates.similarities.T.tolist()),
            family_of_clip(clip).id,
            own,
        )

    def _clip_for(self, node: str, concept: Concept) -> tuple[Any, bool]:
        with self._lock:
            alive = {name: clip for name, ref in self._by_node.items() if (clip := ref())}
            gone = [self._widths[name] for name in self._by_node if name not in alive]
        own = alive.get(node)
        encoders = dict(FAMILIES[concept.family].encoders)
        fitting = [clip for clip in alive.values() if encoder_widths(clip) == encoders]
        # A node of another graph, for another family, may have the same id.
        if own is not None and (own in fitting or not fitting):
            return own, True
        if not fitting:
            raise EncoderGone if encoders in gone else NoEncoder
        return fitting[-1], False

    def _known(self, clip: Any, key: Any) -> TokenGates | None:
        with self._lock:
            kept = self._kept.get(clip)
            if kept is None or key not in kept:
                return None
            kept.move_to_end(key)
            return kept[key]

    def _keep(self, clip: Any, key: Any, gates: TokenGates) -> None:
        with self._lock:
            kept = self._kept.setdefault(clip, OrderedDict())
            kept[key] = gates
            while len(kept) > MAX_KEPT:
                kept.popitem(last=False)


encoders = Encoders()


def remember_encoder(clip: Any, concepts: Sequence[Concept] = ()) -> None:
    """Remember the CLIP that the node now running puts concepts on, and those of no file.

    Outside a run: nothing.
    """
    from comfy_execution.utils import get_executing_context

    context = get_executing_context()
    if context is not None and clip is not None:
        encoders.remember(context.node_id, clip, concepts)


def applied_concept(node: str, placeholder: str) -> Concept:
    """`Encoders.applied` of what has gone through the nodes of this host."""
    return encoders.applied(node, placeholder)


def prompt_similarities(node: str, concepts: Sequence[Concept], text: str) -> Similarities:
    """`Encoders.similarities` of what has gone through the nodes of this host.

    Raises HostMismatch as well for a prompt or a chain that is too long.
    """
    if not 1 <= len(concepts) <= MAX_CONCEPTS:
        raise HostMismatch(f"{len(concepts)} concepts were asked for; 1 to {MAX_CONCEPTS} fit")
    if len(text) > MAX_TEXT:
        raise HostMismatch(f"the prompt has {len(text)} characters; at most {MAX_TEXT} are shown")
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
