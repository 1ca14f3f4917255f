"""The commands `train` and `export`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from perfusion_core.concept.concept import ConceptError
from perfusion_core.concept.concept_file import load_concept, save_concept
from tools.console import words_of

from .devices import Device, devices_of
from .errors import FleetError
from .jobs import Job, jobs_of
from .ledger import JobState, Ledger
from .local_pool import LocalPool, WorkerPlan
from .manifest import read_manifest
from .report import Progress, end_text, plan_text
from .run import Pool, run

CONCEPTS = "concepts"  # in the ledger: the results by their names


def train(options: argparse.Namespace) -> int:
    """Learn what is not learned yet."""
    manifest = read_manifest(options.manifest)
    devices = with_arguments(devices_of(options.devices), options.comfyui_args)
    ledger = Ledger(manifest.ledger)
    jobs = jobs_of(manifest)
    workers = [device.name for device in devices]
    print(plan_text(jobs, ledger, workers if options.ray is None else ["Ray"]), flush=True)
    if options.dry_run:
        return 0
    for job in jobs:
        ledger.add(job.id, job.spec)
    named = {job.id: job for job in jobs}
    folder = ledger.root / CONCEPTS
    for job in jobs:
        if ledger.state(job.id) is JobState.DONE:
            put_results(ledger, job, folder)
    plan = WorkerPlan(ledger.root, options=(options.snapshot_every,))
    begun, progress = time.monotonic(), Progress(jobs, ledger)
    try:
        outcome = run(
            jobs,
            ledger,
            pool_of(plan, devices, options.ray),
            progress,
            lambda job: put_results(ledger, named[job], folder),
        )
    finally:
        progress.close()
    for job_id in outcome.elsewhere:
        put_results(ledger, named[job_id], folder)
    names = {job.id: ", ".join(job.names) for job in jobs}
    print(end_text(outcome, names, str(folder), time.monotonic() - begun))
    return int(bool(outcome.failed or outcome.stopped))


def pool_of(plan: WorkerPlan, devices: Sequence[Device], ray: str | None) -> Pool:
    """The workers: processes of this machine, or actors of the Ray cluster at an address."""
    if ray is None:
        return LocalPool(plan, devices)
    try:
        from .ray_pool import RayPool
    except ImportError as error:
        raise FleetError(
            f"Ray is not installed here ({error}): add it with `python -m pip install ray`, with "
            "the Python of your ComfyUI, or leave --ray out"
        ) from error
    pool: Pool = RayPool(plan, devices, ray)
    return pool


def with_arguments(devices: Sequence[Device], arguments: str) -> list[Device]:
    """The devices, with more options for ComfyUI."""
    try:
        more = tuple(words_of(arguments))
    except ValueError as error:
        raise FleetError(f'--comfyui-args "{arguments}" cannot be read: {error}') from error
    return [replace(device, arguments=(*device.arguments, *more)) for device in devices]


def put_results(ledger: Ledger, job: Job, folder: Path) -> None:
    """A finished job's concept as a file of each of its names, unless that is there already.

    Raises FleetError where the disk does not take it, or the result was damaged.
    """
    try:
        concept = load_concept(ledger.result(job.id))
        for name in job.names:
            path = folder / f"{name}.safetensors"
            if not path.exists() or load_concept(path).hash != concept.hash:
                save_concept(replace(concept, name=name), path)
    except ConceptError as error:
        raise FleetError(f"{error} Then run the same command again.") from error


def export(options: argparse.Namespace) -> int:
    """Copy a manifest's concepts into a folder."""
    manifest = read_manifest(options.manifest)
    ledger = Ledger(manifest.ledger)
    done = 0
    open_names: list[str] = []
    for job in jobs_of(manifest):
        if ledger.state(job.id) is JobState.DONE:
            put_results(ledger, job, options.folder)
            done += len(job.names)
        else:
            open_names += job.names
    missing = f"; not done yet: {', '.join(open_names)}" if open_names else ""
    print(f"{done} concepts are in {options.folder}{missing}")
    return int(bool(open_names))
