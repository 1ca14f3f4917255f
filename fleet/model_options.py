"""The options of a command that works on one model: a checkpoint, its files apart, or a name."""

from __future__ import annotations

import argparse
from pathlib import Path

from .errors import FleetError
from .manifest import DEMO, ModelEntry, Reader, models_of


def add_model_options(command: argparse.ArgumentParser) -> None:
    """`--model`, or `--unet`, `--clip` and `--vae` for a model whose files are apart."""
    command.add_argument(
        "--model",
        default=DEMO,
        metavar="FILE",
        help='a checkpoint file, or "demo" (the emoji world, the default)',
    )
    apart = command.add_argument_group("a model whose files are apart, in place of --model")
    apart.add_argument("--unet", type=Path, metavar="FILE", help="the diffusion model")
    apart.add_argument(
        "--clip", type=Path, nargs="+", metavar="FILE", help="its text encoder, or several"
    )
    apart.add_argument("--vae", type=Path, metavar="FILE", help="its autoencoder")
    apart.add_argument(
        "--clip-type", default="", metavar="NAME", help="as ComfyUI's CLIP loader calls it"
    )


def model_of(options: argparse.Namespace) -> ModelEntry:
    """The model that such options name. Raises FleetError for one that is not there."""
    parts = {"unet": options.unet, "clip": options.clip, "vae": options.vae}
    given = {name: files for name, files in parts.items() if files}
    if not given:
        return named_model(options.model)
    if given.keys() != parts.keys():
        missing = " and ".join(f"--{name}" for name in parts if name not in given)
        raise FleetError(
            f"a model whose files are apart needs all three: {missing} is missing. Or name a whole "
            "checkpoint with --model"
        )
    files = {
        name: [_file(f"--{name}", path) for path in (found if name == "clip" else [found])]
        for name, found in given.items()
    }
    return ModelEntry(files["unet"][0].stem, files, options.clip_type)


def named_model(text: str, manifest: Path | None = None) -> ModelEntry:
    """A model of a manifest, "demo", or a checkpoint file. Raises FleetError."""
    known = {DEMO: ModelEntry(DEMO)}
    if manifest is not None:
        known = models_of(Reader(manifest))
    if text in known:
        return known[text]
    path = Path(text).expanduser().resolve()
    if not path.is_file():
        raise FleetError(f'--model "{text}" is neither a file nor one of {", ".join(known)}')
    return ModelEntry(path.stem, {"checkpoint": [path]})


def _file(option: str, path: Path) -> Path:
    found = path.expanduser().resolve()
    if not found.is_file():
        raise FleetError(f"{option} names {path}, and there is no such file: correct the path")
    return found
