"""What `lab.json` holds, as tables in Markdown: from that file alone, no figure is typed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

LORA = "LoRA"  # the rival whose composed pictures ours are compared with

WANTED_VOLUME, WANTED_BYTES, WANTED_BOTH = 1.2, 0.1, 2.0

MEASURES = {"front": "hypervolume", "text": "text alignment", "identity": "identity"}


def tables(found: Mapping[str, Any]) -> str:
    """All that was found: how it was measured, tables, plots.

    Args:
        found: the contents of lab.json.
    """
    lines = [
        f"`{found['command']}`, {found['date']}, {found['machine']}; "
        f"{found['seconds_of_work']} s of training and sampling in all, of which earlier runs "
        f"may have done a part; this one took {found['seconds']} s. "
        f"Subjects: {', '.join(found['subjects'])}; {found['pictures_a_point']} pictures a "
        f"point; {found['steps']} training steps of {found['batch']} pictures.",
        "",
        f"Identity: {found['identity']}. Text alignment: share of pictures in which the judge sees "
        "all else that the prompt names. Intervals: 95 %, bootstrap over subjects and their "
        "pictures.",
    ]
    if found["from_other_code"]:
        lines += ["", f"{found['from_other_code']} values were measured with another state of "
                  "the code (`--fresh` measures them again)."]  # fmt: skip
    if found["ablations"]:
        lines += _of_ablations(found["ablations"])
    if found["methods"]:
        lines += [*_of_methods(found["methods"]), *_of_comparison(found["comparison"])]
        lines += _of_groups(found["methods"], found["comparison"])
    lines += _of_unused(found.get("unused", {}))
    lines += _of_curves(found.get("curves", {}))
    lines += _of_other_runs(found)
    lines += ["", *(f"![{file}]({file})" for file in found["plots"])]
    return "\n".join(lines) + "\n"


def _of_ablations(ablations: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "",
        "| what is claimed | here | difference | interval | subjects (or couples) that say so |",
        "|---|---|---|---|---|",
    ]
    for ablation in ablations:
        for claim in ablation["claims"]:
            low, high = claim["interval"]
            apart = claim["by_subject"]
            lines.append(
                f"| {claim['claim']} | {claim['verdict']} | {claim['difference']:+.3f} "
                f"{MEASURES[claim['measure']]} | {low:+.3f} to {high:+.3f} "
                f"| {sum(value > 0 for value in apart)} of {len(apart)} |"
            )
    return lines


def _of_other_runs(found: Mapping[str, Any]) -> list[str]:
    """Which parts were measured apart from the rest, and how."""
    parts = [(ablation["name"], ablation.get("run")) for ablation in found["ablations"]]
    parts.append(("the methods", found.get("methods_run")))
    runs: dict[str, list[str]] = {}
    for name, run in parts:
        if run:
            told = f"`{run['command']}`, {run['date']}, {run['machine']}"
            runs.setdefault(told, []).append(name)
    return [
        line
        for told, names in runs.items()
        for line in ("", f"Of another run ({told}): {', '.join(names)}.")
    ]


def _of_methods(methods: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "",
        "| method | hypervolume, reference (0, 0) | best point: identity, text "
        "| both identities | seconds to train | bytes |",
        "|---|---|---|---|---|---|",
    ]
    for entry in methods:
        both = "not measured"
        if "both_identities" in entry:
            both = _with(entry["both_identities"], entry["both_identities_interval"])
            both += f" of {entry['both_pictures']}"
        best = entry["best"]
        lines.append(
            f"| {entry['name']} | {_with(entry['hypervolume'], entry['hypervolume_interval'])} "
            f"| {best['identity']:.2f}, {best['text_alignment']:.2f} ({best['name']}) | {both} "
            f"| {entry['train_seconds']:.0f} | {entry['file_bytes']:,} |"
        )
    own, *rivals = methods
    quicker = [r["name"] for r in rivals if 0 < r["train_seconds"] < own["train_seconds"]]
    if quicker:
        lines += ["", f"Trained for less time than {own['name']}: {', '.join(quicker)}."]
    return lines


def _of_groups(methods: Sequence[Mapping[str, Any]], comparison: Mapping[str, Any]) -> list[str]:
    """What became of several concepts in one picture."""
    measured = [(entry["name"], entry["together"]) for entry in methods if "together" in entry]
    if not measured:
        return []
    lines = [
        "",
        "Several in one picture, learned apart. *All*: share of the pictures that show every one. "
        "The rest are shares of the things asked for: in its own look, in the look of another of "
        "the group, in some other look, in plain emoji colours, or not there.",
        "",
        "| group | method | all | there | swapped | blended | plain | dropped | text alignment |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for kind in dict.fromkeys(kind for _, together in measured for kind in together):
        for name, together in measured:
            one = together[kind]
            fates = " | ".join(f"{share:.2f}" for share in one["fates"].values())
            lines.append(
                f"| {kind} | {name} | {_with(one['all'], one['all_interval'])} of "
                f"{one['pictures']} | {fates} | {one['text_alignment']:.2f} |"
            )
    for kind, part in comparison.get("of_words", {}).items():
        lines += [
            "",
            f"All {kind} there, in the share of the same described in words: {part['ratio']:.2f} "
            f"(the {part['groups']} of {part['of']} that the model paints in half of the pictures "
            "or more when asked in words).",
        ]
    return lines


def _of_unused(unused: Mapping[str, Any]) -> list[str]:
    """What a method does to pictures that do not ask for what was learned."""
    if not unused:
        return []
    lines = [
        "",
        "Loaded and not asked for: differences from the base model's latents (of unit variance), "
        "prompt by prompt with the same noise; text alignment gained or lost; share of pictures "
        "that show the concept all the same.",
        "",
        "| method | the prompt names | largest | root mean square | text alignment | shows it |",
        "|---|---|---|---|---|---|",
    ]
    return lines + [
        f"| {label} | {what} | {one['largest']:.3f} | {one['mean']:.3f} | {one['text']:+.3f} "
        f"| {one['turned']:.3f} |"
        for label, of_label in unused.items()
        for what, one in of_label.items()
    ]


def _of_curves(curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """How good every method is after how many seconds of training."""
    if not curves:
        return []
    lines = ["", "| method | steps | seconds of training | hypervolume |", "|---|---|---|---|"]
    return lines + [
        f"| {label} | {one['steps']} | {one['seconds']:.0f} "
        f"| {_with(one['hypervolume'], one['interval'])} |"
        for label, points in curves.items()
        for one in points
    ]


def _of_comparison(found: Mapping[str, Any]) -> list[str]:
    ratio, low_high = found["volume_ratio"], found["volume_ratio_interval"]
    share = "beyond any ratio to" if ratio is None else f"{ratio:.2f} times{_between(low_high)}"
    lines = [
        "",
        f"Perfusion's hypervolume is {share} that of the best rival "
        f"({found['best_rival']}); the difference is {found['volume_difference']:+.3f} "
        f"({found['volume_difference_interval'][0]:+.3f} to "
        f"{found['volume_difference_interval'][1]:+.3f}). Its file has "
        f"{found['bytes_ratio']:.4f} times the bytes. Asked for: {WANTED_VOLUME:g} times at "
        f"{WANTED_BYTES:g} of the bytes; {_reached(found['volume_reached'])}.",
    ]
    if "both_ratio" in found:
        ratio = found["both_ratio"]
        lines.append(
            "No picture of stacked LoRAs has both identities: there is no ratio."
            if ratio is None
            else f"Both identities are in {ratio:.2f} times{_between(found['both_ratio_interval'])}"
            f" as many composed pictures as with stacked LoRAs."
        )
        lines[-1] += f" Asked for: {WANTED_BOTH:g} times; {_reached(found['both_reached'])}."
    return lines


def _reached(reached: bool) -> str:
    return "reached" if reached else "not reached"


def _with(value: float, interval: Sequence[float]) -> str:
    return f"{value:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"


def _between(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f" ({interval[0]:.2f} to {interval[1]:.2f})"
