"""`make lab`: the paper's ablations and its rivals, measured, with confidence intervals and plots.

make lab                                    four concepts of the emoji world
make lab ARGS=--full                        24 concepts, more settings: hours
make lab ARGS="--full --publish"            the same, and puts what it found into docs/lab/
make lab ARGS=--tune                        every method's rates, on a concept of its own
make lab CONCEPT=folder SUPERCLASS=word     any folder of pictures of one thing

A stop loses nothing: the same command goes on from there. Leaves lab.json, lab.md, plots and a
contact sheet in lab/output/.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.locate import ROOT

from .open_comfyui import open_comfyui
from .world.vocabulary import CONCEPTS, REPORTED

if TYPE_CHECKING:
    from .ablations import Variant
    from .measure import Group, Lab
    from .report import Report
    from .subjects import Subject

OUTPUT = ROOT / "lab" / "output"
# No default was tuned on what is reported.
FULL_CONCEPTS = tuple(REPORTED)
QUICK_CONCEPTS = FULL_CONCEPTS[::6]
TUNED_ON = "lagoon"
PROMPTS = 8
PARTS = RIVALS, UNUSED, SECONDS = "rivals", "unused", "seconds"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make lab", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="24 concepts, all settings")
    parser.add_argument("--samples", type=int, help="pictures of each concept at each point")
    parser.add_argument("--steps", type=int, help="of each training")
    known = sorted({**CONCEPTS, **REPORTED})
    parser.add_argument("--concepts", nargs="+", choices=known, metavar="NAME")
    parser.add_argument("--concept", help="a folder of pictures of one thing to learn")
    parser.add_argument("--superclass", help="the ordinary word for it, such as teddy")
    parts = f"ablations, {', '.join(PARTS)}"
    parser.add_argument("--only", nargs="+", metavar="PART", help=parts)
    parser.add_argument("--publish", action="store_true", help="put the results into docs/lab/")
    parser.add_argument("--tune", action="store_true", help="try each method's rates instead")
    parser.add_argument("--out", type=Path, default=OUTPUT, help="where results go")
    parser.add_argument("--cache", type=Path, default=OUTPUT / "lab_cache")
    parser.add_argument("--fresh", action="store_true", help="forget what was measured before")
    args = parser.parse_args()
    if bool(args.concept) != bool(args.superclass):
        parser.error("CONCEPT (a folder) and SUPERCLASS (its ordinary word) go together")
    if args.publish and args.tune:
        parser.error("--publish is for results; rates of --tune go into lab/rivals/rates.json")
    if args.concept and args.concepts:
        parser.error("--concepts names concepts of the world; it does not go with a folder")
    if args.samples is None:  # 384 at a point of 24 concepts, else 64
        args.samples = 64 if args.concept else 16
    if args.samples < PROMPTS or args.samples % PROMPTS:
        parser.error(f"--samples is {args.samples}: there are {PROMPTS} prompts, give a multiple")
    return args


def open_lab(args: argparse.Namespace) -> Lab:
    """The lab on the concepts, or the folder, that were asked for."""
    from .cache import Cache, sources, world
    from .judge import load_judge
    from .local_comfyui import LocalComfyUI
    from .marking import FolderMarking, Marking, WorldMarking
    from .measure import SAMPLE_SEED, Lab
    from .subjects import folder_subject, world_subject

    comfyui, judge = LocalComfyUI(), load_judge()
    marking: Marking = WorldMarking(judge)
    if args.concept:
        subjects = [folder_subject(Path(args.concept), args.superclass)]
        likeness = FolderMarking(
            judge, lambda prompts: comfyui.draw(comfyui.model, comfyui.clip, prompts, SAMPLE_SEED)
        )
        likeness.of(subjects[0])  # what cannot be measured is refused before it is trained
        marking = likeness
    elif args.tune:
        subjects = [world_subject(TUNED_ON)]
    else:
        names = args.concepts or (FULL_CONCEPTS if args.full else QUICK_CONCEPTS)
        subjects = [world_subject(name) for name in names]
    cache = Cache(args.cache, {"world": world()}, sources(ROOT))
    return Lab(comfyui, judge, marking, subjects, args.samples // PROMPTS, cache)


def main() -> None:
    args = arguments()
    open_comfyui()  # what is imported from here on may import ComfyUI
    from . import publish
    from .ablations import FULL, QUICK, Variant, ablations, ours, sweep
    from .methods import Words
    from .recipe import STEPS
    from .report import Report
    from .rivals import RIVALS as METHODS
    from .seconds import curves
    from .tables import tables
    from .unused import changes, loaded

    begun = time.monotonic()
    if args.fresh:
        shutil.rmtree(args.cache, ignore_errors=True)
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        lab = open_lab(args)
    except ValueError as error:
        raise SystemExit(f"make lab: {error}") from None
    if args.tune:
        tune_all(lab, args.out, args.steps)
        return

    scale, steps = FULL if args.full else QUICK, args.steps or STEPS
    groups = {} if args.concept else groups_of(lab.subjects)
    couples = groups.get("couples", [])
    masks = all(s.masks is not None for s in lab.subjects)
    wanted = ablations(scale, steps, masks, bool(couples))
    known = [ablation.name for ablation in wanted] + [*PARTS]
    unknown = set(args.only or ()) - set(known)
    if unknown:
        raise SystemExit(f"make lab: no part is called {sorted(unknown)}; there are {known}")
    chosen = [a for a in wanted if not args.only or a.name in args.only]
    trained = {"Perfusion": ours(scale, steps)}
    for method in METHODS:
        one = method() if args.steps is None else method(args.steps)
        trained[one.title] = sweep(one.title, one, "strength", scale.strengths)
    contenders: dict[str, list[Variant]] = {}
    if not args.only or RIVALS in args.only:
        contenders |= trained
        if not args.concept:
            contenders[Words.title] = [Variant(Words.title, Words())]

    pairs = sum(len(ablation.variants) for ablation in chosen if ablation.composed)
    lab.expect(
        [
            *(v for ablation in chosen if not ablation.composed for v in ablation.variants),
            *(variant for variants in contenders.values() for variant in variants),
        ],
        groups=len(couples) * pairs + len(contenders) * sum(map(len, groups.values())),
    )
    claims = sum(len(ablation.claims) for ablation in wanted)
    report = Report(args.out, lab.marking.identity, about(args, lab, steps), claims)
    for ablation in chosen:
        print(f"{ablation.name} ...", flush=True)
        report.add_ablation(lab, ablation, couples)
        report.write(lab, time.monotonic() - begun)
    if contenders:
        compare(lab, report, contenders, groups)
    if not args.concept and (not args.only or UNUSED in args.only):
        print(f"{UNUSED} ...", flush=True)
        report.unused = changes(lab, loaded(steps))
    if args.only and SECONDS in args.only:
        print(f"{SECONDS} ...", flush=True)
        report.add_curves(curves(lab, trained))
    report.write(lab, time.monotonic() - begun)
    print(f"\n{tables(report.as_dict())}\nwritten to {args.out}")
    if args.publish:
        try:
            size = publish.publish(args.out, publish.DOCS)
        except ValueError as error:
            raise SystemExit(f"make lab: {error}") from None
        print(f"and to {publish.DOCS}, {size:,} bytes of plots")


def about(args: argparse.Namespace, lab: Lab, steps: int) -> dict[str, Any]:
    """How the figures were made."""
    from .cache import world
    from .recipe import BATCH
    from .report import machine

    return {
        "command": command(sys.argv[1:]),
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "subjects": [f"{s.name} ({s.superclass})" for s in lab.subjects],
        "pictures_a_point": args.samples * len(lab.subjects),
        "steps": steps,
        "batch": BATCH,
        "world": world(),
        "only": args.only or [],
    }


def compare(
    lab: Lab,
    report: Report,
    contenders: dict[str, list[Variant]],
    groups: Mapping[str, Sequence[Group]],
) -> None:
    """Perfusion beside what users train instead."""
    from .methods import Words
    from .report import Contender, costs, sheet

    measured = []
    for label, variants in contenders.items():
        print(f"{label} ...", flush=True)
        points = [lab.point(variant) for variant in variants]
        rival = label not in ("Perfusion", Words.title)
        one = Contender(label, variants, points, *costs(lab, variants), rival=rival)
        together = {
            kind: lab.together(variants[one.best], of_kind) for kind, of_kind in groups.items()
        }
        measured.append(replace(one, together=together))
    report.add_contenders(measured)
    sheet(lab, measured, groups.get("couples", ()), report.out / "lab_sheet.jpg")
    report.plots.append("lab_sheet.jpg")


def groups_of(subjects: Sequence[Subject]) -> dict[str, list[Group]]:
    """Couples, triples and quads of different superclasses, and twins, two of one superclass; no
    subject twice in a kind. At equal distances in the list: so all superclasses meet."""
    kinds = {"couples": 2, "triples": 3, "quads": 4}
    found: dict[str, list[Group]] = {}
    for kind, size in kinds.items():
        step = len(subjects) // size
        groups = [subjects[start::step][:size] for start in range(step)] if step else []
        fitting = [g for g in groups if len({s.superclass for s in g}) == size]
        if fitting:
            found[kind] = list(fitting)
    of_class: dict[str, list[Subject]] = {}
    for subject in subjects:
        of_class.setdefault(subject.superclass, []).append(subject)
    twins = [
        [first, replace(second, of_its_kind=2)]
        for first, second, *_ in (same for same in of_class.values() if len(same) > 1)
    ]
    if twins:
        found["twins"] = list(twins)
    return found


def tune_all(lab: Lab, out: Path, steps: int | None) -> None:
    """Every method at rates around its own, on a concept that the lab does not measure.

    Leaves lab_rates.json; lab/rivals/rates.json is the one that the lab goes by.
    """
    from tools.steps import write_atomic

    from .ablations import QUICK
    from .methods import Perfusion
    from .recipe import STEPS
    from .report import machine
    from .rivals import RIVALS as METHODS
    from .tuning import tune

    found: dict[str, Any] = {
        "command": command(sys.argv[1:]),
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "tuned_on": TUNED_ON,
    }
    methods = [method() if steps is None else method(steps) for method in METHODS]
    for method in (*methods, Perfusion(steps or STEPS)):
        ours = isinstance(method, Perfusion)
        knob, values = ("bias", QUICK.biases) if ours else ("strength", QUICK.strengths)
        found[type(method).__name__] = tune(lab, method, knob, values)
        write_atomic(out / "lab_rates.json", json.dumps(found, indent=1) + "\n")
    print(f"written to {out / 'lab_rates.json'}")


def command(given: Sequence[str]) -> str:
    """The command that made this, as one would type it."""
    return "make lab" + (f' ARGS="{shlex.join(given)}"' if given else "")


if __name__ == "__main__":
    main()
