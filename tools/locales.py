"""Holds `locales/` together with the nodes: writes the English, says what other languages lack.

`locales/<language>/nodeDefs.json` is what ComfyUI shows of nodes in that language, `main.json` the
names of categories and connection types. English is made from the nodes themselves; the other
languages are written by people, in the same shape.

    python -m tools.locales        rewrites locales/en/nodeDefs.json (starts ComfyUI), then lists
                                   what is missing, stale or to be looked at in the others
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from tools.locate import ROOT

LOCALES = ROOT / "locales"
ENGLISH = "en"
PREFIX = "Perfusion"

Texts = dict[str, Any]
"""Nested, as in the files: node id → "display_name", "description", "inputs", "outputs"."""


def english(object_info: Mapping[str, Any]) -> Texts:
    """What the pack's nodes say of themselves, in the shape of a nodeDefs.json."""
    return {key: _node(info) for key, info in sorted(object_info.items()) if key.startswith(PREFIX)}


def _node(info: Mapping[str, Any]) -> Texts:
    inputs = {
        name: _text(name, spec[1].get("tooltip") if len(spec) > 1 else None)
        for part in ("required", "optional")
        for name, spec in info["input"].get(part, {}).items()
    }
    tooltips = info.get("output_tooltips") or [None] * len(info["output_name"])
    outputs = {
        str(n): _text(name, tooltip)
        for n, (name, tooltip) in enumerate(zip(info["output_name"], tooltips, strict=True))
    }
    texts: Texts = {"display_name": info["display_name"], "description": info["description"]}
    return texts | {
        key: found for key, found in (("inputs", inputs), ("outputs", outputs)) if found
    }


def _text(name: str, tooltip: str | None) -> dict[str, str]:
    return {"name": name, "tooltip": tooltip or ""}


def flat(texts: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """Every text by its path, such as "PerfusionTune.inputs.bias.tooltip"."""
    return dict(_flat(texts, above))


def _flat(texts: Mapping[str, Any], above: str) -> Iterator[tuple[str, str]]:
    for key, value in texts.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def languages() -> list[str]:
    """All but English."""
    return sorted(path.name for path in LOCALES.iterdir() if path.name != ENGLISH)


def load(language: str, file: str = "nodeDefs") -> Texts:
    """One language's texts; {} when there is no such file."""
    path = LOCALES / language / f"{file}.json"
    texts: Texts = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return texts


def differences(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """What a translation lacks of the English, and what it has that the English has not."""
    texts, others = flat(wanted), flat(found)
    lacking = [f"missing  {path}  ({text})" for path, text in texts.items() if not others.get(path)]
    stale = [f"stale    {path}" for path in others if path not in texts]
    return lacking + stale


def main() -> int:
    from tools.ready import ready_comfyui
    from tools.server import running_server

    with running_server(ready_comfyui()) as server:
        made = english(server.client.object_info())
    before, now = flat(load(ENGLISH)), flat(made)
    text = json.dumps(made, indent=2, ensure_ascii=False)
    (LOCALES / ENGLISH / "nodeDefs.json").write_text(text + "\n", encoding="utf-8")
    reworded = [path for path in now if path in before and before[path] != now[path]]
    for path in reworded:
        print(f"look at the translations of {path}: the English was {before[path]!r}")
    lacking = 0
    for language in languages():
        for file, wanted in (("nodeDefs", made), ("main", load(ENGLISH, "main"))):
            for line in differences(wanted, load(language, file)):
                print(f"{language}/{file}: {line}")
                lacking += 1
    return 1 if lacking else 0


if __name__ == "__main__":
    sys.exit(main())
