"""The command `report`: what training gives on a model of one's own, as one page to look at.

It trains through the ledger as `train` does, so that a run that was stopped goes on; then one more
job makes the pictures (`proof_pictures`), and `proof_page` writes what came of both.
"""

from __future__ import annotations

import argparse
import base64
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from perfusion_core.concept.files import write_atomically
from perfusion_core.method.templates import validation_prompts
from tools.locate import find_comfyui

from .devices import Device, devices_of
from .errors import FleetError
from .jobs import Hashes, Job, digest, file_spec, jobs_of, model_spec
from .ledger import JobState, Ledger
from .local_pool import LocalPool, WorkerPlan
from .manifest import DEMO, ModelEntry, read_manifest
from .model_options import model_of
from .proof_charts import front_of
from .proof_page import page
from .report import Progress, plan_text, seconds, size
from .run import run
from .train import CONCEPTS, put_results, with_arguments

LEDGER, MANIFEST = "ledger", "report.toml"
PAIR_SEEDS = 3  # pictures of two things by prompt: whether both come is a matter of luck as well


def report(options: argparse.Namespace) -> int:
    """The command; see `add_report_options`."""
    begun = time.monotonic()
    out = options.out.expanduser().resolve()
    devices = with_arguments(devices_of(options.devices), options.comfyui_args)[:1]
    model = model_of(options)
    manifest = out / MANIFEST
    write_atomically(manifest, manifest_text(options, model).encode())
    jobs = jobs_of(read_manifest(manifest))
    ledger = Ledger(out / LEDGER)
    print(plan_text(jobs, ledger, [device.name for device in devices]), flush=True)
    for job in jobs:
        ledger.add(job.id, job.spec)
    _run(jobs, ledger, devices, WorkerPlan(ledger.root, options=(30.0,)))
    for job in jobs:
        put_results(ledger, job, ledger.root / CONCEPTS)
    looking = _looking(options, model, jobs, ledger)
    ledger.add(looking.id, looking.spec)
    print("pictures: the sweep of bias" + (", both together" if len(jobs) > 1 else ""), flush=True)
    _run(
        [looking],
        ledger,
        devices,
        WorkerPlan(ledger.root, trainer="fleet.proof_pictures:ProofTrainer"),
    )
    found = json.loads(ledger.result(looking.id).read_bytes())
    found["training"] = [
        _trained(job, ledger.figures(JobState.DONE, job.id), options.hide_pictures) for job in jobs
    ]
    found["seconds_in_all"] = round(time.monotonic() - begun, 1)
    found["command"] = _command(options)
    if options.hide_pictures:
        for concept in found["concepts"]:
            concept["learned_from"] = []
    write_atomically(out / "report.html", page(found).encode())
    write_atomically(out / "report.json", json.dumps(_figures(found, out), indent=1).encode())
    told = size((out / "report.html").stat().st_size)
    print(f"{out / 'report.html'} ({told}), and report.json; {seconds(time.monotonic() - begun)}")
    return 0


def manifest_text(options: argparse.Namespace, model: ModelEntry) -> str:
    """The manifest of the trainings: it can be given to `python -m fleet train` as well."""
    asked = [(options.pictures, options.superclass)]
    asked += [(Path(options.second[0]), options.second[1])] if options.second else []
    lines = [f"ledger = {_quoted(LEDGER)}", ""]
    if model.files:
        lines.append("[models.model]")
        for part, paths in model.files.items():
            listed = [_quoted(str(path)) for path in paths]
            value = f"[{', '.join(listed)}]" if part == "clip" else listed[0]
            lines.append(f"{part} = {value}")
        if model.clip_type:
            lines.append(f"clip_type = {_quoted(model.clip_type)}")
        lines.append("")
    lines += ["[defaults]", f"model = {_quoted('model' if model.files else DEMO)}"]
    if options.steps is not None:
        lines.append(f"steps = {options.steps}")
    if options.batch_size is not None:
        lines.append(f"batch_size = {options.batch_size}")
    if options.resolution:
        lines.append(f"resolution = {options.resolution}")
    for number, (folder, word) in enumerate(asked, start=1):
        place = Path(folder).expanduser().resolve()
        if not place.is_dir():
            raise FleetError(f"{folder} is no folder: name one with 4 to 6 pictures of one thing")
        # Words of their own, also where both are of one kind.
        last = (word.split() or [""])[-1]
        mark = "*" if number == 1 or last != asked[0][1].split()[-1] else "2*"
        lines += ["", f"[concepts.{'first' if number == 1 else 'second'}]"]
        lines.append(f"pictures = {_quoted(str(place))}")
        lines += [f"placeholder = {_quoted(last + mark)}", f"superclass = {_quoted(word)}"]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """A text as TOML and JSON write it alike."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _run(jobs: Sequence[Job], ledger: Ledger, devices: Sequence[Device], plan: WorkerPlan) -> None:
    """Do what is left of some jobs. Raises FleetError for one that failed, with its reason."""
    for job in jobs:  # somebody who gives the command again wants it tried again
        if ledger.state(job.id) is JobState.FAILED:
            ledger.retry(job.id)
    progress = Progress(jobs, ledger)
    try:
        outcome = run(jobs, ledger, LocalPool(plan, devices), progress)
    finally:
        progress.close()
    for told in outcome.failed.values():
        raise FleetError(str(told["error"]))
    if outcome.stopped:
        raise FleetError(outcome.stopped)


def _looking(
    options: argparse.Namespace, model: ModelEntry, jobs: Sequence[Job], ledger: Ledger
) -> Job:
    """The job that makes the pictures of all that was learned."""
    hashes = Hashes(ledger.root / "hashes")
    concepts = []
    for job in jobs:
        file = (ledger.root / CONCEPTS / f"{job.names[0]}.safetensors").resolve()
        concepts.append({"file": file_spec(file, hashes), "pictures": job.spec["pictures"]})
    word = jobs[0].spec["superclass"]
    prompts = options.prompt or list(validation_prompts(word))[:3]
    spec = {
        "name": "pictures",
        # In this order: each concept's file, then its pictures.
        "pictures": [file for one in concepts for file in (one["file"], *one["pictures"])],
        "counts": [len(one["pictures"]) for one in concepts],
        "masks": [],
        "model": model_spec(model, hashes),
        "prompts": prompts,
        "pair_seeds": list(range(1, PAIR_SEEDS + 1)),
        "steps": options.sampling_steps,
        **{k: getattr(options, k) for k in ("biases", "seeds", "cfg", "sampler", "scheduler")},
        "side": options.side,
        # Of one that comes later the pictures are scored: by its name it is another job.
        "scorers": _scorers(),
    }
    files = [file["sha256"] for file in spec["pictures"]]
    key = str(spec["model"]["key"])
    cells = len(prompts) * len(options.seeds) * (len(options.biases) + 1) * len(jobs)
    return Job(digest({**spec, "pictures": files, "model": key}), ("pictures",), key, cells, spec)


def _scorers() -> list[str]:
    """The folders of CLIP models that ComfyUI has."""
    found = sorted((find_comfyui().path / "models" / "clip_vision").glob("*/config.json"))
    return [path.parent.name for path in found]


def _trained(job: Job, figures: Mapping[str, Any], hidden: bool) -> dict[str, Any]:
    """What is told of a training."""
    told = ("steps", "train_seconds", "seconds", "loss", "losses", "peak_bytes", "notes")
    names = [] if hidden else [Path(file["path"]).name for file in job.spec["pictures"]]
    return {
        "placeholder": job.spec["placeholder"],
        "superclass": job.spec["superclass"],
        "files": names,
        "captions": any(job.spec["captions"]),
        "sizes": figures["pictures"],
        "settings": {**job.spec["settings"], "resolution": job.spec["resolution"]},
        **{key: figures[key] for key in told if key in figures},
    }


def _figures(found: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """The figures of a report, with each picture as a file of its own in place of its bytes."""
    told: dict[str, Any] = json.loads(json.dumps(found))
    for name, one in zip(("first", "second"), told["concepts"], strict=False):
        one["front"] = front_of(one["rows"])
        one["learned_from"] = len(one["learned_from"])
        _to_files(one["rows"], out, name)
    if "pairs" in told:
        _to_files(told["pairs"]["rows"], out, "both")
    return told


def _to_files(rows: Sequence[dict[str, Any]], out: Path, name: str) -> None:
    for number, row in enumerate(rows, start=1):
        file = f"pictures/{name}_{number:02}.webp"
        write_atomically(out / file, base64.b64decode(row["picture"].partition(",")[2]))
        row["picture"] = file


def _command(options: argparse.Namespace) -> dict[str, Any]:
    """How it was called, without anybody's folders."""
    beside = ("command", "pictures", "second", "out", "unet", "clip", "vae", "model")
    told = {key: value for key, value in vars(options).items() if key not in beside and value}
    return told
