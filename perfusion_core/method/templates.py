"""What is written around the placeholder while a concept trains."""

from __future__ import annotations

# Short and generic, so that the picture is explained by the placeholder and not by other words; of
# different lengths, so that the placeholder is learned at several positions.
_TEMPLATES = (
    "a {}",
    "a photo of a {}",
    "a picture of a {}",
    "an image of a {}",
    "a drawing of a {}",
    "a rendering of a {}",
    "the photo of a {}",
    "a good photo of a {}",
    "a nice picture of a {}",
    "a close photo of a {}",
    "a bright photo of a {}",
)


# What a concept is looked at with meanwhile: places that training pictures hardly have, so that a
# concept that holds on to its own shows.
_VALIDATION = (
    "a photo of a {} on a beach",
    "a photo of a {} in the snow",
    "a {} on a table in a kitchen",
    "a painting of a {} in a forest",
)


def templates_for(superclass: str) -> tuple[str, ...]:
    """The templates, each with one "{}", with the article that the superclass word takes."""
    return _with_article(_TEMPLATES, superclass)


def validation_prompts(superclass: str) -> tuple[str, ...]:
    """The same for the prompts of validation pictures."""
    return _with_article(_VALIDATION, superclass)


def _with_article(templates: tuple[str, ...], superclass: str) -> tuple[str, ...]:
    if superclass[:1].lower() in ("a", "e", "i", "o", "u"):
        return tuple(template.replace("a {}", "an {}") for template in templates)
    return templates
