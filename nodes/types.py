"""What the nodes share: connection types, the sliders, the category."""

from __future__ import annotations

from comfy_api.latest import io

from ..perfusion_core.settings import SLIDER_RANGES, ConceptSettings

CATEGORY = "Perfusion"

ConceptType = io.Custom("PERFUSION_CONCEPT")  # a bridge.ConceptEntry
StackType = io.Custom("PERFUSION_STACK")  # a bridge.ConceptStack
CovarianceType = io.Custom("PERFUSION_COVARIANCE")  # a Covariance


def sliders() -> list[io.Input]:
    """Bias, temperature and strength, the same wherever a concept is applied."""
    slider = io.NumberDisplay.slider
    return [
        io.Float.Input(
            "bias",
            default=ConceptSettings.bias,
            min=SLIDER_RANGES["bias"][0],
            max=SLIDER_RANGES["bias"][1],
            step=0.01,
            display_mode=slider,
            tooltip="How alike a prompt token must be to the concept before it turns into it. "
            "Higher: closer to the prompt, weaker concept. Lower: closer to the training pictures. "
            "Useful range 0.4 to 0.8.",
        ),
        io.Float.Input(
            "temperature",
            default=ConceptSettings.temperature,
            min=SLIDER_RANGES["temperature"][0],
            max=SLIDER_RANGES["temperature"][1],
            step=0.01,
            display_mode=slider,
            tooltip="How softly the concept sets in around the bias. Low: a switch. High: a gentle "
            "blend. 0.15 is usual, a little above the temperature of training.",
        ),
        io.Float.Input(
            "strength",
            default=ConceptSettings.strength,
            min=SLIDER_RANGES["strength"][0],
            max=SLIDER_RANGES["strength"][1],
            step=0.01,
            display_mode=slider,
            tooltip="How much of the concept's edit is applied. 0 is exactly the model without the "
            "concept, 1 the edit as trained; above 1 exaggerates.",
        ),
    ]
