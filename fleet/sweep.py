"""A sweep: every concept at every bias, temperature, seed and prompt, as jobs of a ledger.

So it runs on as many devices as a training, goes on after a stop, and makes nothing twice.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from perfusion_core.concept.concept import Concept, ConceptError
from perfusion_core.concept.concept_file import load_concept, save_concept
from perfusion_core.concept.files import write_atomically
from perfusion_core.method.settings import ConceptSettings
from perfusion_core.method.templates import validation_prompts

from .devices import devices_of
from .errors import FleetError
from .jobs import Hashes, Job, digest, file_spec, model_spec
from .ledger import JobState, Ledger
from .local_pool import WorkerPlan
from .manifest import PlannedConcept, read_manifest
from .model_options import named_model
from .report import Progress, end_text
from .run import run
from .sweep_table import best_settings, write_table
from .train import pool_of, with_arguments


def sweep(options: argparse.Namespace) -> int:
    """The command; see `add_sweep_options`."""
    devices = with_arguments(devices_of(options.devices), options.comfyui_args)
    ledger = Ledger(options.out / "ledger")
    jobs = sweep_jobs(options, Hashes(ledger.root / "hashes"))
    pictures = sum(job.steps for job in jobs)
    print(f"{len(jobs)} concepts, {pictures} pictures, on {', '.join(d.name for d in devices)}")
    for job in jobs:
        ledger.add(job.id, job.spec)
    plan = WorkerPlan(ledger.root, trainer="fleet.sweep_pictures:SweepTrainer")
    begun, progress = time.monotonic(), Progress(jobs, ledger)
    try:
        outcome = run(jobs, ledger, pool_of(plan, devices, options.ray), progress)
    finally:
        progress.close()
    rows = _put_results(ledger, jobs, options.out)
    tables = write_table(rows, options.out)
    if options.write_bias:
        write_best(jobs, rows)
    names = {job.id: ", ".join(job.names) for job in jobs}
    where = f"{options.out} (a sheet for each; {', '.join(path.name for path in tables)})"
    print(end_text(outcome, names, where, time.monotonic() - begun))
    return int(bool(outcome.failed or outcome.stopped))


def sweep_jobs(options: argparse.Namespace, hashes: Hashes) -> list[Job]:
    """A job for each concept. Raises FleetError or ConceptError."""
    for bias in options.biases:
        for temperature in options.temperatures:
            try:
                ConceptSettings(bias, temperature)
            except ValueError as error:
                raise FleetError(f"--biases or --temperatures: {error}") from error
    model = model_spec(named_model(options.model, options.manifest), hashes)
    learned_from = _pictures(options.manifest)
    names = Counter(path.stem for path in options.concepts)
    jobs = []
    for number, path in enumerate(options.concepts, start=1):
        concept = _concept(path)
        name = path.stem if names[path.stem] == 1 else f"{path.stem}_{number}"
        pictures = [file_spec(p, hashes) for p in learned_from.get(path.stem, ())]
        spec = {
            "name": name,
            "pictures": [file_spec(path.resolve(), hashes), *pictures],
            "masks": [],
            "model": model,
            "prompts": options.prompt or list(validation_prompts(concept.superclass)),
            "must_score": options.write_bias,
            **{key: getattr(options, key) for key in ("biases", "temperatures", "seeds")},
            **{key: getattr(options, key) for key in ("steps", "cfg", "sampler", "scheduler")},
        }
        # By the tensors: writing a bias into the file does not make it another.
        files = [concept.hash, *(p["sha256"] for p in pictures)]
        deciding = {**spec, "pictures": files, "model": model["key"]}
        count = len(options.biases) * len(options.temperatures) * len(options.seeds)
        count *= len(spec["prompts"])
        jobs.append(Job(digest(deciding), (name,), str(model["key"]), count, spec))
    return jobs


def _concept(path: Path) -> Concept:
    try:
        return load_concept(path)
    except ConceptError as error:
        raise FleetError(str(error)) from error


def _pictures(manifest: Path | None) -> dict[str, Sequence[Path]]:
    """Name -> pictures that a concept was learned from."""
    planned: Sequence[PlannedConcept] = () if manifest is None else read_manifest(manifest).concepts
    return {one.name: one.pictures for one in planned}


def _put_results(ledger: Ledger, jobs: Sequence[Job], out: Path) -> list[dict[str, Any]]:
    """The sheets into the folder; the rows of all tables."""
    rows: list[dict[str, Any]] = []
    for job in jobs:
        if ledger.state(job.id) is JobState.DONE:
            write_atomically(out / f"{job.names[0]}.png", ledger.result(job.id).read_bytes())
            found = ledger.figures(JobState.DONE, job.id)["rows"]
            rows += [{"concept": job.names[0], **row} for row in found]
    return rows


def write_best(jobs: Sequence[Job], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write into each concept file the bias and temperature that score best in the table."""
    for job in jobs:
        best = best_settings([row for row in rows if row["concept"] == job.names[0]])
        if best is None:
            continue  # it failed, which is told
        bias, temperature, score = best
        path = Path(job.spec["pictures"][0]["path"])
        save_concept(replace(load_concept(path), bias=bias, temperature=temperature), path)
        print(f"{job.names[0]}: bias {bias:g}, temperature {temperature:g} (score {score:.4f})")
