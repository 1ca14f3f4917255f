"""ComfyUI in this process, on one device, and models by its own loaders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tools.inprocess import open_modules
from tools.locate import find_comfyui, home

from .errors import FleetError

# Where ComfyUI looks for what is named and not given by its path: words like embedding:bad-hands
# in a caption, and CLIP models that score.
_KINDS = ("embeddings", "clip_vision")


def open_comfyui(arguments: Sequence[str]) -> None:
    """Make ComfyUI's modules importable here. Once a process, before anything of ComfyUI's.

    Args:
        arguments: of ComfyUI's command line, such as "--cpu". They decide how it computes, so the
            same concept comes only of the same ones.
    """
    comfyui = find_comfyui()
    # A folder of our own: nothing is written into a ComfyUI that was found.
    open_modules(comfyui, home() / "fleet-base", arguments)
    import folder_paths

    for kind in _KINDS:
        folder_paths.add_model_folder_path(kind, str(comfyui.path / "models" / kind))


class Models:
    """Loads models, and keeps the one that was used last: jobs of one model load it once."""

    def __init__(self) -> None:
        self.loads = 0  # of models, so far
        self._key = ""
        self._parts: tuple[Any, Any, Any] | None = None

    def get(self, spec: Mapping[str, Any]) -> tuple[Any, Any, Any]:
        """MODEL, CLIP and VAE of a job's "model". Raises FleetError for files that are none."""
        if self._parts is None or self._key != spec["key"]:
            self._parts = None  # before the next one comes: both may not fit
            self._unload()
            self._parts, self._key = _load(spec), spec["key"]
            self.loads += 1
        return self._parts

    def _unload(self) -> None:
        from comfy import model_management

        model_management.unload_all_models()
        model_management.soft_empty_cache()


def _load(spec: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    import comfy.sd
    import comfy.utils
    import folder_paths
    import torch

    files = spec["files"]
    loaded: tuple[Any, Any, Any]
    with torch.inference_mode():  # as ComfyUI runs its nodes
        if spec["demo"]:
            from demo import model as small

            loaded = small.load()
            return loaded
        try:
            if "checkpoint" in files:
                loaded = comfy.sd.load_checkpoint_guess_config(
                    files["checkpoint"][0],
                    output_vae=True,
                    output_clip=True,
                    embedding_directory=folder_paths.get_folder_paths("embeddings"),
                )[:3]
            else:
                kind = _clip_type(spec["clip_type"])
                vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(files["vae"][0]))
                vae.throw_exception_if_invalid()
                loaded = (
                    comfy.sd.load_diffusion_model(files["unet"][0]),
                    comfy.sd.load_clip(
                        ckpt_paths=files["clip"],
                        embedding_directory=folder_paths.get_folder_paths("embeddings"),
                        clip_type=kind,
                    ),
                    vae,
                )
        except FleetError:
            raise
        except (RuntimeError, OSError, ValueError) as error:
            raise FleetError(f'the model "{spec["name"]}" cannot be loaded: {error}') from error
    missing = [n for n, part in zip(("MODEL", "CLIP", "VAE"), loaded, strict=True) if part is None]
    if missing:
        raise FleetError(
            f'the checkpoint of the model "{spec["name"]}" has no {" and no ".join(missing)}: name '
            "unet, clip and vae files in its place"
        )
    return loaded


def _clip_type(name: str) -> Any:
    """ComfyUI's kind of CLIP, as its loader's list calls it."""
    from comfy.sd import CLIPType

    if name in ("", "sdxl"):  # ComfyUI's loader lists the second, which is no kind of its own
        return CLIPType.STABLE_DIFFUSION
    kind = getattr(CLIPType, name.upper(), None)
    if kind is None:
        known = ", ".join(sorted(one.name.lower() for one in CLIPType))
        raise FleetError(f'clip_type is "{name}"; this ComfyUI knows {known}')
    return kind
