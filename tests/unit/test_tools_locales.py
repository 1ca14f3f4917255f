"""What the tool of the translations says of them."""

from __future__ import annotations

from tools import locales
from tools.locales import differences, english, flat

INFO = {
    "PerfusionTune": {
        "display_name": "Perfusion Tune",
        "description": "Sets sliders.",
        "input": {
            "required": {"model": ["MODEL", {"tooltip": "A model."}]},
            "optional": {"concept": ["STRING", {"tooltip": "Which one."}]},
        },
        "output_name": ["model"],
        "output_tooltips": ["The model."],
    },
    "KSampler": {"display_name": "KSampler"},
}
TEXTS = {
    "PerfusionTune": {
        "display_name": "Perfusion Tune",
        "description": "Sets sliders.",
        "inputs": {
            "model": {"name": "model", "tooltip": "A model."},
            "concept": {"name": "concept", "tooltip": "Which one."},
        },
        "outputs": {"0": {"name": "model", "tooltip": "The model."}},
    }
}


def test_english_is_made_of_what_the_packs_nodes_say() -> None:
    assert english(INFO) == TEXTS
    assert flat(TEXTS)["PerfusionTune.inputs.model.tooltip"] == "A model."


def test_what_is_missing_and_what_is_stale_is_listed() -> None:
    assert differences(TEXTS, TEXTS) == []
    inputs = {
        "model": {"name": "m", "tooltip": ""},
        "concept": {"name": "c"},
        "gone": {"name": "g"},
    }
    found = {"PerfusionTune": {**TEXTS["PerfusionTune"], "inputs": inputs}}
    assert differences(TEXTS, found) == [
        "missing  PerfusionTune.inputs.model.tooltip  (A model.)",
        "missing  PerfusionTune.inputs.concept.tooltip  (Which one.)",
        "stale    PerfusionTune.inputs.gone.name",
    ]


def test_all_languages_but_english_are_found() -> None:
    assert "en" not in locales.languages()
    assert all(locales.load(language) for language in locales.languages())
