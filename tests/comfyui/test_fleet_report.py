"""`python -m fleet report`: one page of what training gives, on each kind of model."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import comfy.ops
import folder_paths
import pytest
import tiny_dits
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.sd1_clip import SDClipModel
from comfy.taesd.taesd import TAESD
from PIL import Image
from safetensors.torch import save_file
from test_fleet import fleet as fleet_command
from test_validation import small_clip
from tiny_models import TinyVae, randomise
from true_models import CPU, true_clip, true_model

from fleet import proof_pictures, training
from fleet.comfyui import Models
from fleet.jobs import Hashes, model_spec
from fleet.ledger import Ledger
from fleet.manifest import ModelEntry
from fleet.proof_page import page
from fleet.worker import JobContext
from perfusion_core.learn import session
from perfusion_core.method.training_settings import TrainingSettings

TRAINING: dict[str, Any] = {
    "pictures": [{}],
    "captions": [""],
    "model": {},
    "settings": asdict(TrainingSettings(steps=1, batch_size=1)),
    "resolution": 64,
    "flip": False,
    "checkpointing": "auto",
}
LOOKING: dict[str, Any] = {
    "model": {"name": "small"},
    "counts": [1, 1],
    "prompts": ["a {} on a red background"],
    "biases": [0.3, 0.9],
    "seeds": [1],
    "pair_seeds": [1],
    "steps": 2,
    "cfg": 2.0,
    "sampler": "euler",
    "scheduler": "normal",
    "side": 64,
}


@pytest.fixture
def context(tmp_path: Path) -> JobContext:
    lease: Any = Ledger(tmp_path / "ledger").take("ab" * 20, "worker 1")
    return JobContext(Ledger(tmp_path / "ledger"), lease, threading.Event())


@pytest.fixture
def clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one CLIP model that scores."""
    folder = tmp_path / "clip_vision"
    small_clip(folder / "small")
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "clip_vision", ([str(folder)], set()))
    return folder


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainers run here, with a covariance of a few captions: whole encoders take minutes for
    all of them."""
    for module in (training, proof_pictures):
        monkeypatch.setattr(module, "open_comfyui", lambda arguments: None)  # it is open
    few = partial(session.covariance_of, captions=["a photo of a cat on a red background"] * 2)
    monkeypatch.setattr(session, "covariance_of", few)


@pytest.fixture(params=["SDXL", "ANIMA"])
def parts(request: pytest.FixtureRequest) -> Iterator[tuple[Any, Any, Any]]:
    """MODEL, CLIP and VAE of ComfyUI's own classes, thin and with random weights."""
    if request.param == "SDXL":
        yield true_model("SDXL", CPU, channels=32), true_clip("SDXL"), TinyVae()
        return
    dit = tiny_dits.ANIMA
    if not dit.here:
        pytest.skip("this ComfyUI has no Anima")
    with tiny_dits.registered(dit.family):
        yield dit.model(), dit.clip(), tiny_dits.TinyVae(dit)


def test_each_kind_of_model_is_trained_on_looked_at_and_scored(
    parts: tuple[Any, Any, Any],
    context: JobContext,
    clips: Path,
    in_this_process: None,
    repo: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Models, "get", lambda self, spec: parts)
    picture = repo / "demo" / "concepts" / "berry" / "berry_1.png"
    file = (picture.name, picture.read_bytes())
    inputs, trainings = [], []
    for words in (("teddy*", "teddy"), ("pot*", "teapot")):
        asked = {**TRAINING, "placeholder": words[0], "superclass": words[1]}
        data, figures = training.ComfyTrainer((), 1e9).train(asked, [file], context)
        inputs += [("c", data), file]
        told = {"settings": asked["settings"], "files": [file[0]], "captions": False}
        trainings.append({**figures, **told, "sizes": figures["pictures"]})
    data, _ = proof_pictures.ProofTrainer(("--cpu",)).train(LOOKING, inputs, context)
    found = json.loads(data)
    assert found["scored_by"] == "small"
    for concept in found["concepts"]:
        assert [row["bias"] for row in concept["rows"]] == [None, 0.3, 0.9]
        assert all(isinstance(row["identity"], float) for row in concept["rows"])
        assert concept["best"]["bias"] in (0.3, 0.9)
        word = concept["gates"]["words"].index(concept["placeholder"])
        assert concept["gates"]["gates"][word][0] > 0.5
    assert len(found["pairs"]["rows"]) == 4
    text = page({**found, "training": trainings})
    assert text.count("<img src=") == 2 * (1 + 3) + 4
    assert "The front" in text
    if target := os.environ.get("PERFUSION_LOOK"):  # to look at one
        Path(target).write_text(text, encoding="utf-8")


@pytest.mark.slow
def test_the_command_writes_a_page_to_show_to_others(tmp_path: Path, repo: Path) -> None:
    folder = tmp_path / "Ännes Bären"
    shutil.copytree(repo / "demo" / "concepts" / "berry", folder / "Bär")
    out = folder / "Bericht ß"
    words = ["report", folder / "Bär", "teddy", "--out", out, "--devices", "cpu", "--steps", 2]
    words += ["--batch-size", 1, "--biases", "0.4,0.8", "--sampling-steps", 2, "--cfg", 2]
    words += ["--prompt", "a {} on a blue background"]
    words += ["--second", repo / "demo" / "concepts" / "taxi", "car"]
    run = fleet_command(repo, *words)
    assert run.returncode == 0, run.stdout
    text = (out / "report.html").read_text(encoding="utf-8")
    told = json.loads((out / "report.json").read_text(encoding="utf-8"))
    # Nobody's folders are on what is shown to others.
    for secret in (str(tmp_path), "Bär"):
        assert secret not in text + json.dumps(told, ensure_ascii=False)
    for concept in told["concepts"]:
        assert [row["bias"] for row in concept["rows"]] == [None, 0.4, 0.8]
        assert concept["front"] == []  # nothing scores here
        for row in concept["rows"]:
            with Image.open(out / row["picture"]) as picture:
                assert picture.size == (128, 128)
    assert told["training"][0]["train_seconds"] > 0
    assert set(told["versions"]) >= {"perfusion", "ComfyUI", "torch", "device"}
    # The same again makes nothing anew; what is hidden is not on the page.
    again = fleet_command(repo, *words, "--hide-pictures")
    assert again.returncode == 0, again.stdout
    assert not [line for line in again.stdout.splitlines() if line.startswith("done ")]
    hidden = (out / "report.html").read_text(encoding="utf-8")
    assert hidden.count("<img src=") == text.count("<img src=") - 2 * 5
    missing = fleet_command(repo, "report", folder / "none", "teddy", "--devices", "cpu")
    assert missing.returncode == 1
    assert "is no folder: name one with 4 to 6 pictures" in missing.stdout


def small_sd15(folder: Path) -> dict[str, Path]:
    """Random weights that ComfyUI's own loaders take for SD 1.5: one file, and its parts apart.

    Of the UNet one level; the text encoder is whole, the autoencoder the tiny one of previews.
    """
    unet = UNetModel(
        image_size=32, in_channels=4, out_channels=4, model_channels=320, num_res_blocks=[1],
        channel_mult=[1], transformer_depth=[1], transformer_depth_output=[1, 1],
        transformer_depth_middle=1, context_dim=768, num_heads=8, use_spatial_transformer=True,
        legacy=False, operations=comfy.ops.disable_weight_init, dtype=torch.float32,
    )  # fmt: skip
    clip = SDClipModel(device="cpu", dtype=torch.float32)
    vae = TAESD()
    for number, part in enumerate((unet, clip, vae)):
        randomise(part, number, scale=0.3)
    texts = {k.removeprefix("transformer."): v for k, v in clip.state_dict().items()}
    texts = {k: v for k, v in texts.items() if k.startswith("text_model.")}
    halves = {
        "unet": {k: v.half() for k, v in unet.state_dict().items()},
        "clip": {k: v.half() for k, v in texts.items()},
        "vae": {k: v.float().contiguous() for k, v in vae.state_dict().items()},
    }
    prefixes = {
        "unet": "model.diffusion_model.",
        "clip": "cond_stage_model.transformer.",
        "vae": "first_stage_model.",
    }
    whole = {prefixes[part] + k: v for part, found in halves.items() for k, v in found.items()}
    files = {part: folder / f"{part} ü.safetensors" for part in (*halves, "whole")}
    for part, found in {**halves, "whole": whole}.items():
        save_file(found, files[part])
    return files


@pytest.mark.slow
def test_a_checkpoint_of_ones_own_in_one_file_or_in_several(
    tmp_path: Path, context: JobContext, in_this_process: None, repo: Path
) -> None:
    files = small_sd15(tmp_path)
    file = ("a.png", (repo / "demo" / "concepts" / "berry" / "berry_1.png").read_bytes())
    apart = {part: [files[part]] for part in ("unet", "clip", "vae")}
    shown = []
    for entry in (ModelEntry("one", {"checkpoint": [files["whole"]]}), ModelEntry("apart", apart)):
        model = model_spec(entry, Hashes(tmp_path / "hashes"))
        asked = {**TRAINING, "placeholder": "teddy*", "superclass": "teddy", "model": model}
        data, _ = training.ComfyTrainer((), 1e9).train(asked, [file], context)
        looking = {**LOOKING, "model": model, "counts": [1], "steps": 1, "biases": [0.6]}
        trainer = proof_pictures.ProofTrainer(("--cpu",))
        found = json.loads(trainer.train(looking, [("c", data), file], context)[0])
        assert found["model"]["family"] == "Stable Diffusion 1.x"
        assert found["concepts"][0]["layers"] == 4
        shown.append([row["picture"] for row in found["concepts"][0]["rows"]])
    assert shown[0] == shown[1]
