"""`python -m fleet` on the emoji world: what a user starts, in processes of its own."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from demo import model as emoji_world
from fleet.ledger import JobState, Ledger
from perfusion_core.concept.concept_file import load_concept
from perfusion_core.learn.plan import Plan
from perfusion_core.learn.session import learn
from perfusion_core.method.training_settings import TrainingSettings

STEPS = 12
CAPTIONS = [f"a {{}} on a {colour} background" for colour in ("white", "blue", "gray")]


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "fleet", *map(str, words)]


def options(repo: Path) -> dict[str, Any]:
    """As many threads as this process has: sums of another order round otherwise."""
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    return {"cwd": repo, "env": {**os.environ, **threads}, "text": True, "encoding": "utf-8"}


def fleet(repo: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """A command of the fleet's, to its end."""
    return subprocess.run(
        command(*words), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300,
        **options(repo),
    )  # fmt: skip


def begin(repo: Path, *words: object) -> subprocess.Popen[str]:
    """The same, to be killed: in a process group of its own."""
    return subprocess.Popen(
        command(*words), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        **options(repo),
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, repo: Path) -> Path:
    """A folder with spaces and umlauts: pictures of two things, and a manifest."""
    made = tmp_path / "Änne's große Bilder"
    for name in ("berry", "taxi"):
        target = made / "Bilder" / f"{name} ü"
        target.mkdir(parents=True)
        pictures = sorted((repo / "demo" / "concepts" / name).glob("*.png"))[: len(CAPTIONS)]
        for picture, caption in zip(pictures, CAPTIONS, strict=True):
            shutil.copy(picture, target)
            (target / picture.name).with_suffix(".txt").write_text(caption, encoding="utf-8")
    (made / "männer.toml").write_text(
        f"""
ledger = "Ergebnisse ß"
[defaults]
model = "demo"
steps = {STEPS}
batch_size = 2
seed = 3
value_rate = 0.1
[concepts.berry]
pictures = "Bilder/berry ü"
placeholder = "teddy*"
superclass = "teddy"
[concepts.taxi]
pictures = "Bilder/taxi ü"
placeholder = "car*"
superclass = "car"
""",
        encoding="utf-8",
    )
    return made


@pytest.fixture
def manifest(folder: Path) -> Path:
    return folder / "männer.toml"


@pytest.fixture
def ledger(folder: Path) -> Path:
    return folder / "Ergebnisse ß"


def ended(output: str) -> list[str]:
    """The names of the jobs that a run says it did."""
    lines = [line for line in output.splitlines() if line.startswith("done ")]
    return sorted(line.split()[1].rstrip(":") for line in lines)


def results(ledger: Path) -> dict[str, bytes]:
    """The concept files by name, byte for byte."""
    found = Ledger(ledger)
    return {
        found.figures(JobState.DONE, job)["name"]: found.result(job).read_bytes()
        for job in found.names("done")
    }


def of_node(nodes: dict[str, Any], folder: Path) -> Any:
    """What the training node learns of the same pictures with the same settings and seed."""
    import folder_paths
    import nodes as comfyui  # ComfyUI's

    load, pictures = comfyui.LoadImage(), folder / "Bilder" / "berry ü"
    usual = folder_paths.get_input_directory()
    folder_paths.set_input_directory(str(pictures))  # newer versions load from nowhere else
    try:
        images = [load.load_image(path.name)[0] for path in sorted(pictures.glob("*.png"))]
    finally:
        folder_paths.set_input_directory(usual)
    with torch.inference_mode():
        model, clip, vae, *_ = nodes["PerfusionDemoModel"].execute().args
        given = {
            "model": model, "clip": clip, "vae": vae, "placeholder": "teddy*",
            "superclass": "teddy", "steps": STEPS, "batch_size": 2, "seed": 3, "value_rate": 0.1,
        }  # fmt: skip
        listed = {name: [value] for name, value in given.items()}
        trainer = nodes["PerfusionTrainConcept"].PREPARE_CLASS_CLONE(None)
        captions = ["\n".join(CAPTIONS)]
        return trainer.execute(images=images, captions=captions, **listed).args[0].concept


def wait_for_step(ledger: Path, step: int, process: subprocess.Popen[str]) -> dict[str, Any]:
    """Waits until a job is at a step; what its worker says then."""
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        held = list(Ledger(ledger).leases.all()) if (ledger / "ledger.json").exists() else []
        for one in held:
            if one.get("step", 0) >= step:
                return one
        time.sleep(0.02)
    raise AssertionError(f"no job came to step {step}: {process.communicate()[0]}")


def test_snapshots_and_the_selection_of_a_step_are_not_had_together() -> None:
    """What validation saw is not in a snapshot: what goes on from one could select another step."""
    model, clip, vae = emoji_world.load()
    snapshots = SimpleNamespace(load=lambda: None)
    plan = Plan(
        "teddy*", "teddy", TrainingSettings(steps=1), look_every=1, select=True,
        snapshots=snapshots,
    )  # fmt: skip
    pictures = [torch.rand(2, 64, 64, 3)]
    with pytest.raises(ValueError, match="select is on, and so are snapshots.*Set select to off"):
        learn(model, clip, vae, pictures, [], [], plan, SimpleNamespace())


@pytest.mark.slow
def test_it_learns_what_the_node_learns_byte_for_byte(
    nodes: dict[str, Any], folder: Path, manifest: Path, ledger: Path, repo: Path
) -> None:
    run = fleet(repo, "train", manifest, "--devices", "cpu")
    assert run.returncode == 0, run.stdout
    assert ended(run.stdout) == ["berry", "taxi"]
    expected = of_node(nodes, folder)
    learned = load_concept(ledger / "concepts" / "berry.safetensors")
    assert learned.name == "berry"
    theirs, ours = expected.tensors(), learned.tensors()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    assert learned.preview == expected.preview
    assert dict(learned.training) == dict(expected.training)

    # Nothing is left to do; after a change of one concept, that one alone.
    assert ended(fleet(repo, "train", manifest, "--devices", "cpu").stdout) == []
    caption = next((folder / "Bilder" / "taxi ü").glob("*.txt"))
    caption.write_text("a {} at night", encoding="utf-8")
    run = fleet(repo, "train", manifest, "--devices", "cpu")
    assert ended(run.stdout) == ["taxi"]
    assert "2 jobs: 1 done" in run.stdout
    status = fleet(repo, "status", manifest).stdout
    assert "3 jobs: 3 done, 0 failed, 0 underway, 0 waiting" in status
    target = folder / "Konzepte"
    assert fleet(repo, "export", manifest, target).returncode == 0
    assert {path.name for path in target.iterdir()} == {"berry.safetensors", "taxi.safetensors"}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is a signal")
def test_a_killed_training_goes_on_to_the_same_concept(
    manifest: Path, ledger: Path, repo: Path
) -> None:
    assert fleet(repo, "train", manifest, "--devices", "cpu").returncode == 0
    whole = results(ledger)
    shutil.rmtree(ledger)

    words = ("train", manifest, "--devices", "cpu", "--snapshot-every", 0)
    first = begin(repo, *words)  # all of it at once
    wait_for_step(ledger, random.randint(1, 4), first)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()

    second = begin(repo, *words)  # a worker alone: another takes its place
    held = wait_for_step(ledger, random.randint(6, 9), second)
    os.kill(held["process"], signal.SIGKILL)
    output = second.communicate(timeout=300)[0]
    assert second.returncode == 0, output
    assert "1 workers died and were replaced" in output
    assert ", from step " in output
    assert results(ledger) == whole
    assert not list(Ledger(ledger).working())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the signals of a terminal")
def test_a_stop_keeps_what_was_done_and_two_fleets_share_what_is_left(
    manifest: Path, ledger: Path, repo: Path
) -> None:
    text = manifest.read_text(encoding="utf-8")
    manifest.write_text(text.replace(f"steps = {STEPS}", "steps = 80"), encoding="utf-8")
    words = ("train", manifest, "--devices", "cpu", "--snapshot-every", 600)
    first = begin(repo, *words)
    wait_for_step(ledger, 1, first)
    first.terminate()  # a shell in the background has Ctrl-C ignored
    output = first.communicate(timeout=300)[0]
    assert first.returncode == 1, output
    assert "the same command goes on from here" in output
    (snapshot,) = ledger.glob("jobs/*/*/snapshot.safetensors")

    both = [begin(repo, *words) for _ in range(2)]
    outputs = [one.communicate(timeout=300)[0] for one in both]
    assert [one.returncode for one in both] == [0, 0], outputs
    assert sorted([*ended(outputs[0]), *ended(outputs[1])]) == ["berry", "taxi"]
    assert sum(output.count(", from step ") for output in outputs) == 1
    assert not snapshot.exists()


@pytest.mark.slow
def test_a_bad_picture_fails_its_own_job_alone(
    folder: Path, manifest: Path, ledger: Path, repo: Path
) -> None:
    bad = next((folder / "Bilder" / "berry ü").glob("*.png"))
    whole = bad.read_bytes()
    bad.write_bytes(whole[:500])
    run = fleet(repo, "train", manifest, "--devices", "cpu")
    assert run.returncode == 1
    assert ended(run.stdout) == ["taxi"]
    assert f'failed: berry: "{bad.name}" cannot be read as a picture' in run.stdout
    status = fleet(repo, "status", ledger).stdout
    assert "2 jobs: 1 done, 1 failed" in status
    (error,) = ledger.glob("jobs/*/*/error.txt")
    assert str(error) in status
    assert "Traceback" in error.read_text(encoding="utf-8")

    # Retried as it is, it fails again; with the picture put right, it is another job.
    assert "1 jobs are open again: berry" in fleet(repo, "retry", manifest).stdout
    bad.write_bytes(whole)
    run = fleet(repo, "train", manifest, "--devices", "cpu")
    assert run.returncode == 0, run.stdout
    assert ended(run.stdout) == ["berry"]
