"""Models of a manifest: by which of ComfyUI's loaders, kept between jobs, errors that name them."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import comfy.sd
import comfy.utils
import pytest
import torch
from safetensors.torch import save_file

from fleet.comfyui import Models
from fleet.errors import FleetError
from fleet.jobs import Hashes, model_spec
from fleet.manifest import DEMO, ModelEntry, Reader, models_of


@pytest.fixture
def spec(tmp_path: Path) -> Any:
    """Gives the spec of a model of this manifest by its name."""
    for name in ("all", "unet", "clip_l", "clip_g", "vae"):
        save_file({name: torch.zeros(1)}, tmp_path / f"{name}.safetensors")
    (tmp_path / "m.toml").write_text(
        """
[models.whole]
checkpoint = "all.safetensors"
[models.parts]
unet = "unet.safetensors"
clip = ["clip_l.safetensors", "clip_g.safetensors"]
clip_type = "sdxl"
vae = "vae.safetensors"
[models.unknown]
unet = "unet.safetensors"
clip = "clip_l.safetensors"
clip_type = "none"
vae = "vae.safetensors"
"""
    )
    models = models_of(Reader(tmp_path / "m.toml"))
    return lambda name: model_spec(models[name], Hashes(tmp_path / "hashes"))


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What ComfyUI's loaders are asked for, by the signatures that they have."""
    asked: list[tuple[Any, ...]] = []

    class Vae:
        def throw_exception_if_invalid(self) -> None:
            pass

    def stand_in(name: str, gives: Any) -> None:
        signature = inspect.signature(getattr(comfy.sd, name))

        def loader(*arguments: Any, **named: Any) -> Any:
            bound = signature.bind(*arguments, **named).arguments
            paths = bound.get("ckpt_paths") or [bound.get("ckpt_path") or bound.get("unet_path")]
            if "sd" in bound:
                paths = list(bound["sd"])
            kind = bound.get("clip_type")
            asked.append((name, [Path(p).stem for p in paths], kind and kind.name))
            return gives

        monkeypatch.setattr(comfy.sd, name, loader)

    stand_in("load_checkpoint_guess_config", ("model", "clip", "vae", None))
    stand_in("load_diffusion_model", "model")
    stand_in("load_clip", "clip")
    stand_in("VAE", Vae())
    return asked


def test_each_model_goes_through_comfyuis_own_loaders(spec: Any, loaded: list[Any]) -> None:
    assert Models().get(spec("whole")) == ("model", "clip", "vae")
    assert loaded == [("load_checkpoint_guess_config", ["all"], None)]
    loaded.clear()
    assert Models().get(spec("parts"))[:2] == ("model", "clip")
    assert loaded == [
        ("VAE", ["vae"], None),
        ("load_diffusion_model", ["unet"], None),
        ("load_clip", ["clip_l", "clip_g"], "STABLE_DIFFUSION"),
    ]


def test_a_model_is_loaded_once_for_all_its_jobs(spec: Any, loaded: list[Any]) -> None:
    models = Models()
    for name in ("whole", "whole", "parts", "whole"):
        models.get(spec(name))
    assert models.loads == 3


def test_what_cannot_be_loaded_is_named(
    spec: Any, loaded: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FleetError, match='clip_type is "none"; this ComfyUI knows .*wan'):
        Models().get(spec("unknown"))
    monkeypatch.setattr(
        comfy.sd, "load_checkpoint_guess_config", lambda *_, **__: ("model", None, None, None)
    )
    with pytest.raises(FleetError, match='model "whole" has no CLIP and no VAE: name unet'):
        Models().get(spec("whole"))
    monkeypatch.undo()
    with pytest.raises(FleetError, match='the model "whole" cannot be loaded: .*detect model type'):
        Models().get(spec("whole"))  # ComfyUI itself, of a file that is no checkpoint


def test_the_emoji_world_needs_no_file() -> None:
    model, clip, vae = Models().get(model_spec(ModelEntry(DEMO), Hashes(Path("nowhere"))))
    assert type(model.model.diffusion_model).__name__ == "UNetModel"
    assert None not in (clip, vae)
