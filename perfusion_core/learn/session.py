"""One training from pictures to a concept, on ComfyUI's models: for the node and for who has none.

The session owns the loop. Between two steps, and never within one, it saves copies, paints
validation pictures and looks for a Cancel. A failure there is noted and does not end the training.
When a step fails, the session saves what was learned before it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from torch import Tensor

from ..comfy.backbone import ComfyBackbone, training_backbone
from ..comfy.cancel import is_cancel, stop_when_asked, take_cancel
from ..comfy.clip_covariance import covariance_of
from ..comfy.concept_folder import default_name, save_named, saved_name
from ..comfy.memory import out_of_memory
from ..comfy.models import detect_family
from ..comfy.painter import BackbonePainter
from ..comfy.pictures import (
    bring_to_size,
    flipped,
    look_like_backgrounds,
    picture_groups,
    prompt_lines,
    read_pictures,
    thumbnail,
)
from ..comfy.protocols import Clip, Model, Vae
from ..comfy.scores import ClipScorer
from ..comfy.training_checks import refuse_known_word
from ..concept.concept import Concept, check_words
from ..families import ModelFamily
from ..limits import MAX_VALIDATION
from ..method.batches import PictureGroup, TrainingError
from ..method.covariance import Covariance
from ..method.templates import validation_prompts
from ..method.training import Training
from ..method.validation import Validation
from .plan import Learned, Plan, Progress

logger = logging.getLogger(__name__)

_BACKGROUND_MASKS = (
    "Most masks cover the edges of their pictures and leave out the middle: they look like masks "
    "of the background. Load Image's mask is where a picture is transparent; put Invert Mask "
    "behind it."
)


def learn(
    model: Model,
    clip: Clip,
    vae: Vae,
    images: Sequence[Tensor | None],
    masks: Sequence[Tensor | None],
    captions: Sequence[str],
    plan: Plan,
    progress: Progress,
) -> Learned:
    """Learn a concept with ComfyUI's MODEL, CLIP and VAE, which are afterwards as before.

    Args:
        images, masks, captions: see `read_pictures`.

    Raises ConceptError, ComfyMismatch or TrainingError with what is wrong and what to do, before
    the first step wherever it can be known by then; and ComfyUI's Cancel where it does not keep.
    """
    word, kind = plan.placeholder.strip(), plan.superclass.strip()
    # Everything that can be refused is refused before anything takes long.
    check_words(word, kind)
    family = detect_family(model)
    if plan.covariance is not None:
        plan.covariance.check_family(family)
    refuse_known_word(clip, word)
    pictures = read_pictures(images, masks, captions, word)
    asked = prompt_lines(plan.prompts, word, "validation prompt")
    if len(asked) > MAX_VALIDATION:
        raise TrainingError(
            f"There are {len(asked)} validation prompts; at most {MAX_VALIDATION} are looked at. "
            "Each is a picture at every look: some five are enough."
        )
    prompts = asked or validation_prompts(kind)
    if plan.select and not plan.look_every:
        raise TrainingError(
            "select is on, but preview_every is 0: set preview_every to how often, in steps, "
            "the concept is to be scored (50 is usual), or select to off."
        )
    if plan.select and plan.snapshots is not None:
        raise TrainingError(
            "select is on, and so are snapshots, which do not hold what validation saw: a training "
            "that goes on from one could select another step. Set select to off."
        )
    pictures, sizes = bring_to_size(pictures, family.resolution, plan.resolution, family.cell)
    scorer = ClipScorer([p.pixels for p in pictures], plan.scorer) if plan.select else None
    preview = thumbnail(pictures[0].pixels)
    session = _Session(plan, progress, preview)
    if look_like_backgrounds(pictures):
        session.note(_BACKGROUND_MASKS)
    try:
        every = flipped(pictures) if plan.flip else pictures
        groups = picture_groups(vae, every, stop_when_asked)
        covariance = plan.covariance or covariance_of(
            clip, on_captions=stop_when_asked, model=model
        )
        shape = max((group.latents.shape[1:] for group in groups), key=lambda s: s.numel())
        batch = (plan.settings.batch_size, *shape)
        once = not plan.settings.embedding_rate
        with training_backbone(
            model, clip, batch, plan.checkpointing, half=True, once=once
        ) as backbone:
            painter = BackbonePainter(backbone, vae, shape, plan.settings.seed, stop_when_asked)
            # Without a scorer only the first prompt is shown, so paint only that.
            shown = prompts if scorer else prompts[:1]
            validation = Validation(shown, painter, scorer)
            training = session.run(backbone, groups, word, kind, covariance, validation)
            concept = session.selected(validation) or training.concept
    except Exception as error:
        if out_of_memory(error):
            raise TrainingError(_no_memory(plan, family, sizes) + session.rescued) from error
        if session.rescued:
            raise TrainingError(f"{str(error).rstrip('.')}.{session.rescued}") from error
        raise
    return Learned(
        replace(concept, preview=preview),
        training.losses,
        training.finished,
        validation.looks,
        [prompt.replace("{}", word) for prompt in shown],
        sizes,
        session.notes,
    )


def _no_memory(plan: Plan, family: ModelFamily, sizes: str) -> str:
    usual = "" if plan.resolution else f" (0 means {family.resolution} here)"
    more = "" if plan.checkpointing == "on" else ", or set checkpointing to on"
    return (
        f"Training ran out of memory, at batch size {plan.settings.batch_size} and pictures of "
        f"{sizes}. Lower batch_size first, then resolution{usual}{more}; these are inputs of this "
        "node."
    )


class _Session:
    """The loop over a training's steps, and what is done between them.

    Attributes:
        notes: what failed there.
        rescued: where what was learned is, after a step that failed; a sentence, or "".
    """

    def __init__(self, plan: Plan, progress: Progress, preview: bytes) -> None:
        self.notes: list[str] = []
        self.rescued = ""
        self._plan = plan
        self._progress = progress
        self._preview = preview
        self._blind = False  # no further picture is painted, because one failed
        self._cancelled = False

    def note(self, text: str) -> None:
        """Something to tell with what was learned."""
        self.notes.append(text)
        logger.warning("Perfusion: %s", text)

    def run(
        self,
        backbone: ComfyBackbone,
        groups: Sequence[PictureGroup],
        placeholder: str,
        superclass: str,
        covariance: Covariance,
        validation: Validation,
    ) -> Training:
        """All steps, or as many as a Cancel leaves."""
        training = Training(
            backbone,
            groups,
            placeholder=placeholder,
            superclass=superclass,
            covariance=covariance,
            settings=self._plan.settings,
            start=self._plan.start,
        )
        state = None if self._plan.snapshots is None else self._plan.snapshots.load()
        if state is not None:
            training.restore(state)
        while not (training.finished or self.cancelled()):
            try:
                training.step()
            except BaseException as error:
                if not training.losses or not self._ended(error, training):
                    raise
                break
            self._between(training, validation)
        return training

    def selected(self, validation: Validation) -> Concept | None:
        """The concept that validation prefers, tuned unless cancelled; None without a score."""
        if validation.best is None:
            return None
        if not self.cancelled() and not self._blind:
            with self._beside("the best bias and temperature were not looked for, because a picture"
                              " failed"):  # fmt: skip
                return validation.tuned(self._progress.tried)
        return validation.kept()

    def cancelled(self) -> bool:
        """Whether training is to end here, and the rest of the graph to go on."""
        if self._plan.keep and take_cancel():
            self._cancelled = True
        return self._cancelled

    def _between(self, training: Training, validation: Validation) -> None:
        """After a step."""
        done, total = len(training.losses), self._plan.settings.steps
        with self._beside("its progress could not be shown"):
            self._progress.step(done, total, training.losses[-1])
        if _due(done, self._plan.save_every) and done < total:
            with self._beside(f"the copy of step {done} was not saved"):
                self._save(training.concept)
        if self._plan.snapshots is not None and self._plan.snapshots.due(done):
            with self._beside(f"the snapshot of step {done} was not saved"):
                self._plan.snapshots.save(training.state)
        scored = bool(self._plan.look_every) and validation.scores and done == total
        if not self._blind and (_due(done, self._plan.look_every) or scored):
            with self._beside(f"no pictures from step {done} on, because one failed", blinds=True):
                self._progress.painting(done, total)
                self._progress.look(validation.look(done, training.concept), done, total)
        if not self._plan.keep:
            stop_when_asked()

    def _ended(self, error: BaseException, training: Training) -> bool:
        """A step after the first failed: whether training ends with what was learned before it.

        Else what was learned is saved, and `rescued` says where.
        """
        if is_cancel(error):
            self._cancelled = self._plan.keep
            return self._plan.keep
        # Not when Python itself is to end; and where there are snapshots, there is one.
        if isinstance(error, Exception) and self._plan.snapshots is None:
            try:
                concept = training.concept
                steps, file = concept.training["steps_done"], self._save(concept)
                self.rescued = (
                    f' What was learned in the {steps} steps before that is saved as "{file}": '
                    "load it as it is, or connect it to resume to go on."
                )
            except Exception as second:
                self.rescued = f" What was learned before that could not be saved: {second}"
        return False

    @contextmanager
    def _beside(self, what: str, blinds: bool = False) -> Iterator[None]:
        """Runs something beside training: a failure is noted, and training goes on.

        Args:
            what: has happened then, for people.
            blinds: no further picture is painted then.
        """
        try:
            yield
        except BaseException as error:
            # A Cancel is no Exception in newer versions of ComfyUI.
            if is_cancel(error) and self._plan.keep:
                self._cancelled = True
                return
            if is_cancel(error) or not isinstance(error, Exception):
                raise
            self._blind = self._blind or blinds
            self.note(f"training went on, but {what}: {error}")

    def _save(self, concept: Concept) -> str:
        """Save a concept on the way, under a name of its own; returns the file's."""
        # Of all steps behind it, those before a resume too.
        name = f"{default_name(concept.name)}_step{concept.training['steps_done']}"
        concept = replace(concept, preview=self._preview)
        return saved_name(save_named(concept, name, overwrite=False))


def _due(done: int, every: int) -> bool:
    return bool(every) and done % every == 0
