"""Concept files of the emoji world, put to the demo's exam.

    python -m tools run -- -m lab.exam FILE ...

A file is told by its name: berry.safetensors is to be the world's *berry*. Prints, for each, the
share of 32 pictures (the demo's prompts, seeds, steps and bias) that show the concept (identity),
and all else that the prompt names (text alignment).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .open_comfyui import open_comfyui

SAMPLES = 4  # pictures a prompt
SEED = 1000  # of the first prompt, as in the demo


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    files = parser.parse_args().files
    open_comfyui()
    from perfusion_core.concept.concept_file import load_concept

    from .groups import individual_of
    from .judge import load_judge
    from .local_comfyui import LocalComfyUI, entry_of
    from .prompts import concept_prompts, identity, text_alignment

    comfyui, judge = LocalComfyUI(), load_judge()
    for file in files:
        individual = individual_of(file.stem.partition(" ")[0])
        concept = load_concept(file)
        asked = concept_prompts(concept.placeholder, individual.object)
        verdicts, repeated = [], []
        for number, prompt in enumerate(asked):
            pictures = comfyui.sample([entry_of(concept)], [prompt.text] * SAMPLES, SEED + number)
            verdicts += judge.look_at(pictures)
            repeated += [prompt] * SAMPLES
        print(
            f"{individual.name}: identity {identity(verdicts, individual):.3f}, "
            f"text alignment {text_alignment(verdicts, repeated):.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
