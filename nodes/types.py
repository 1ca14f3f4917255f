"""What the nodes share: connection types, the sliders, the category, marks for the page."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from comfy_api.latest import io

from ..perfusion_core.method.settings import SLIDER_RANGES, ConceptSettings

CATEGORY = "Perfusion"

ConceptType = io.Custom("PERFUSION_CONCEPT")  # a ConceptEntry
StackType = io.Custom("PERFUSION_STACK")  # a ConceptStack
CovarianceType = io.Custom("PERFUSION_COVARIANCE")  # a Covariance


def for_page(
    schema: io.Schema, *, aliases: Sequence[str] = (), advanced: Collection[str] = ()
) -> io.Schema:
    """What the page of a newer ComfyUI wants to know of a node; 0.3.75 knows neither.

    Args:
        aliases: other words under which the page's node search finds the node.
        advanced: inputs that few people touch; the page shows them after a click.
    """
    if hasattr(schema, "search_aliases"):
        schema.search_aliases = list(aliases)
    for an_input in schema.inputs:
        if an_input.id in advanced and hasattr(an_input, "advanced"):
            an_input.advanced = True
    return schema


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
