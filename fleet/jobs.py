"""Jobs: what a worker has to know, and the hash of all that decides the result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from perfusion_core.concept.files import write_atomically
from perfusion_core.method.training_settings import TrainingSettings

from .errors import FleetError
from .manifest import Manifest, ModelEntry, PlannedConcept

# Goes into every hash: raise it when the same job gives another concept than before.
TRAINS_AS = 1
# Files of the emoji world's model, as from the pack's folder.
DEMO_WEIGHTS = ("unet", "clip", "vae")
_LARGE = 4 << 20  # bytes, from which on a file's hash is kept in the ledger
_RENAMED = {"train_bias": "bias", "train_temperature": "temperature"}
_BESIDE = {"resolution": 0, "flip": False, "checkpointing": "auto"}


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        id: hash of all that decides the result.
        names: of the concepts that it is for; several where a manifest says the same twice.
        model: what tells the model from others.
        steps: of the training.
        spec: what a worker has to know, as JSON takes it.
    """

    id: str
    names: tuple[str, ...]
    model: str
    steps: int
    spec: Mapping[str, Any]


def training_settings(given: Mapping[str, Any]) -> TrainingSettings:
    """The settings of the training loop among those of a manifest. Raises TrainingError."""
    named = {_RENAMED.get(key, key): value for key, value in given.items() if key not in _BESIDE}
    return TrainingSettings(**named)


def jobs_of(manifest: Manifest) -> list[Job]:
    """The jobs of a manifest, in its order; what is asked for twice is one job.

    Reads every picture. Raises FleetError for what cannot be read.
    """
    hashes = Hashes(manifest.ledger / "hashes")
    models: dict[str, dict[str, Any]] = {}
    jobs: dict[str, Job] = {}
    for entry in manifest.concepts:
        if entry.model.name not in models:
            models[entry.model.name] = model_spec(entry.model, hashes)
        job = _job(entry, models[entry.model.name], hashes)
        known = jobs.get(job.id)
        names = (*known.names, entry.name) if known else job.names
        jobs[job.id] = Job(job.id, names, job.model, job.steps, known.spec if known else job.spec)
    return list(jobs.values())


def _job(entry: PlannedConcept, model: Mapping[str, Any], hashes: Hashes) -> Job:
    settings = training_settings(entry.settings)
    beside = {key: entry.settings.get(key, usual) for key, usual in _BESIDE.items()}
    pictures = [file_spec(path, hashes) for path in entry.pictures]
    masks = [file_spec(path, hashes) for path in entry.masks]
    spec = {
        "name": entry.name,
        "placeholder": entry.placeholder.strip(),
        "superclass": entry.superclass.strip(),
        "pictures": pictures,
        "masks": masks,
        "captions": list(entry.captions),
        "model": dict(model),
        "settings": asdict(settings),
        **beside,
    }
    # Neither names nor places, and not how a step is computed.
    deciding = {
        **{k: v for k, v in spec.items() if k not in ("name", "checkpointing", "model")},
        "pictures": [one["sha256"] for one in pictures],
        "masks": [one["sha256"] for one in masks],
        "model": model["key"],
        "trains_as": TRAINS_AS,
    }
    return Job(digest(deciding), (entry.name,), str(model["key"]), settings.steps, spec)


def model_spec(model: ModelEntry, hashes: Hashes) -> dict[str, Any]:
    """A model as a worker takes it, with "key": the hash of its files and of how they are read."""
    if model.files:
        files = {part: [str(p) for p in paths] for part, paths in model.files.items()}
    else:
        weights = Path(__file__).resolve().parent.parent / "demo" / "weights"
        files = {part: [str(weights / f"{part}.safetensors")] for part in DEMO_WEIGHTS}
    contents = {part: [hashes.of(Path(p)) for p in paths] for part, paths in files.items()}
    size = sum(Path(p).stat().st_size for paths in files.values() for p in paths)
    demo = not model.files
    told = {"contents": contents, "clip_type": model.clip_type, "demo": demo}
    return {
        "key": digest(told),
        "name": model.name,
        "demo": demo,
        "files": {} if demo else files,
        "clip_type": model.clip_type,
        "bytes": size,
    }


def file_spec(path: Path, hashes: Hashes) -> dict[str, str]:
    """A file as `read_inputs` takes it."""
    return {"path": str(path), "sha256": hashes.of(path)}


def digest(told: object) -> str:
    """A hash (hex) of what JSON can hold."""
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:40]


class Hashes:
    """Hashes of files; those of large ones are kept in a folder until the file changes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def of(self, path: Path) -> str:
        """sha256 (hex) of a file's content. Raises FleetError."""
        try:
            status = path.stat()
            if status.st_size < _LARGE:
                return hashlib.sha256(path.read_bytes()).hexdigest()
            version = f"{path} {status.st_size} {status.st_mtime_ns} {status.st_ino}"
            kept = self._folder / hashlib.sha256(version.encode()).hexdigest()
            if kept.is_file():
                return kept.read_text(encoding="ascii")
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            reason = error.strerror or error
            raise FleetError(f"{path} cannot be read: {reason}. Correct the manifest.") from error
        if self._folder.is_dir():
            write_atomically(kept, found.encode())
        return found


def read_inputs(spec: Mapping[str, Any]) -> Iterator[tuple[str, bytes]]:
    """The name and the bytes of a job's pictures, then of its masks.

    Raises FleetError for a file that is not there any more, or not as it was when the job was made.
    """
    files: Sequence[Mapping[str, str]] = [*spec["pictures"], *spec["masks"]]
    for file in files:
        path = Path(file["path"])
        try:
            data = path.read_bytes()
        except OSError as error:
            raise FleetError(f"{path} cannot be read: {error.strerror or error}") from error
        if hashlib.sha256(data).hexdigest() != file["sha256"]:
            raise FleetError(
                f"{path} was changed since this job was made: run the train command again, which "
                "makes a job of the picture as it is now"
            )
        yield path.name, data
