"""`make bench`: prints a table and writes `tests/benchmarks/results.json`.

Everything that is compared is measured in one run, in turn, on two threads; the figures that hold
from machine to machine are the ratios.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tools.inprocess import open_modules
from tools.locate import ROOT, ComfyInstall
from tools.ready import ready_comfyui

PARTS = ("projections", "steps", "slider", "concepts", "page", "training", "anima")
THREADS = 2


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench ARGS=...", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer runs, no SDXL")
    parser.add_argument("--only", choices=PARTS, action="append", help="a part alone")
    parser.add_argument("--runs", type=int, help="how often everything is measured")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "tests" / "benchmarks" / "results.json"
    )
    return parser.parse_args()


def results(options: argparse.Namespace, comfyui: ComfyInstall, base: Path) -> Iterator[Any]:
    """Every figure, as soon as it is there."""
    import torch

    from perfusion_core.method.training_settings import TrainingSettings

    from . import anima, concepts, page, projections, slider, steps, training

    torch.set_num_threads(THREADS)  # after the imports: the tests' helpers set it too
    torch.manual_seed(0)
    quick, parts = options.quick, options.only or PARTS

    def runs(normal: int, few: int) -> int:
        return int(options.runs or (few if quick else normal))

    if "projections" in parts:
        yield from projections.measure(runs(41, 5), (1, 16) if quick else (1, 2, 4, 8, 16))
    if "concepts" in parts:
        yield from concepts.measure(base, runs(101, 5))
    if "page" in parts:
        yield from page.measure(runs(41, 5))
    if "slider" in parts:
        yield from slider.measure(comfyui, base / "server", runs(41, 5))
    if "training" in parts:
        size = 2 if quick else 8
        demo = partial(training.demo_setting, size)
        yield from training.measure(demo, "", f"demo model, fp32, batch {size}", runs(9, 1))
        if not quick:
            size = TrainingSettings().batch_size
            sd15 = partial(training.sd15_setting, 256, size)
            told = f"SD15 at true size, 256 px, fp32, batch {size}"
            yield from training.measure(sd15, "_sd15", told, runs(3, 1))
    if "anima" in parts:
        yield from anima.measure(256 if quick else 512, runs(7, 1))
    if "steps" in parts:
        sizes = (256,) if quick else (256, 512)
        yield from steps.measure("SD15", "sd15_step_{size}", sizes, (1, 16), runs(7, 1))
        if not quick:
            # Its true size at a small picture: 256 px, for the sake of time.
            yield from steps.measure("SDXL", "sdxl_step", (256,), (1, 16), runs(5, 1))


def main() -> int:
    options = arguments()
    comfyui = ready_comfyui()
    with tempfile.TemporaryDirectory(prefix="perfusion-bench-") as folder:
        base = Path(folder)
        # Torch's attention, as on a GPU: ComfyUI's default on a CPU is slower, beside which the
        # edit would cost less.
        open_modules(comfyui, base / "inprocess", ("--cpu", "--use-pytorch-cross-attention"))
        # The tests' helpers, by their bare names as the tests import them: ComfyUI has a package
        # `tests` of its own.
        sys.path.append(str(ROOT / "tests" / "comfyui"))
        from .measure import table, write

        found = []
        for result in results(options, comfyui, base):
            print(f"{result.name}: {result.ratio:.3f}", file=sys.stderr, flush=True)
            found.append(result)
    import torch

    date = datetime.datetime.now(datetime.timezone.utc).date()
    print(
        f"{date}; {comfyui}; torch {torch.__version__}, {THREADS} threads; {processor()}, "
        f"{platform.platform(terse=True)}; medians"
    )
    print(table(found))
    write(found, options.output)
    return 0


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} ({len(names)} cores)" if names else platform.machine()


if __name__ == "__main__":
    sys.exit(main())
