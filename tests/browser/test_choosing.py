"""Choosing a concept on the loader, with the keyboard; putting its word into the prompt."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from serving import example_graph, on_both_designs, on_every_frontend

from perfusion_core.concept.concept import Concept
from perfusion_core.concept.concept_file import save_concept
from perfusion_core.families import FAMILIES
from tools.server import RunningServer

if TYPE_CHECKING:
    from comfy_page import ComfyPage


@on_every_frontend
def test_a_concept_is_chosen_in_the_dialog_with_the_keyboard(comfy: ComfyPage) -> None:
    comfy.load(example_graph("use_concept"))
    loader = comfy.node("PerfusionConceptLoader")
    comfy.show(loader)
    card = comfy.page.locator('[data-perfusion="card"]')
    card.get_by_role("button", name="Choose…").focus()
    comfy.page.keyboard.press("Enter")
    dialog = comfy.page.locator('dialog[data-perfusion="chooser"]')
    dialog.get_by_role("option").nth(1).wait_for()
    comfy.page.keyboard.type("royal")
    comfy.page.keyboard.press("ArrowDown")
    comfy.page.keyboard.press("Enter")
    dialog.wait_for(state="detached")
    assert comfy.value(loader, "file") == "royal.safetensors"
    card.and_(comfy.page.locator('[data-file="royal.safetensors"]')).wait_for()
    # Its preview is there to see.
    comfy.page.wait_for_function(
        "() => document.querySelector('[data-perfusion=card] img')?.naturalWidth > 0"
    )


@pytest.fixture
def other(server: RunningServer) -> Iterator[Path]:
    """A concept of another family, there until the page is closed: it asks for it at any time."""
    file = server.models / "perfusion" / "other.safetensors"
    save_concept(_of_another_family(), file)
    yield file
    file.unlink()


@on_both_designs
def test_a_concept_of_another_family_is_marked_in_the_dialog_and_on_the_node(
    other: Path, comfy: ComfyPage
) -> None:
    comfy.load(example_graph("use_concept"))
    loader = comfy.node("PerfusionConceptLoader")
    comfy.show(loader)
    card = comfy.page.locator('[data-perfusion="card"]')
    card.get_by_role("button", name="Choose…").click()
    dialog = comfy.page.locator('dialog[data-perfusion="chooser"]')
    others = dialog.locator('[data-fits="false"]')
    others.wait_for()
    assert others.get_attribute("data-file") == other.name
    assert "for another family than the connected model" in others.inner_text()
    others.click()
    card.and_(comfy.page.locator('[data-status="mismatch"]')).wait_for()
    comfy.keep("marked")
    warning = card.locator(".perfusion-warning").inner_text()
    assert warning.startswith(f"For {FAMILIES['sd1'].title}; the connected model is")
    # Its recommended settings are filled in all the same.
    assert [comfy.value(loader, name) for name in ("bias", "temperature")] == [0.55, 0.25]


# What the browser shows as broken: a picture with no pixels.
_BROKEN = """() => [...document.querySelectorAll("[data-perfusion] img")]
  .filter((image) => image.complete && !image.naturalWidth).length"""


@on_both_designs
@pytest.mark.parametrize("preview", ["none", "damaged"])
def test_a_concept_without_a_picture_shows_the_first_letter_of_its_name(
    other: Path, comfy: ComfyPage, preview: str
) -> None:
    if preview == "damaged":
        comfy.page.route(
            "**/perfusion/preview?*",
            lambda route: route.fulfill(body=b"x", content_type="image/png"),
        )
    file, letter = (other.name, "O") if preview == "none" else ("royal.safetensors", "r")
    comfy.load(example_graph("use_concept"))
    comfy.show(comfy.node("PerfusionConceptLoader"))
    card = comfy.page.locator('[data-perfusion="card"]')
    card.get_by_role("button", name="Choose…").click()
    item = comfy.page.get_by_role("dialog").locator(f'[data-file="{file}"]')
    item.get_by_text(letter, exact=True).wait_for()
    comfy.keep("dialog")
    assert comfy.page.evaluate(_BROKEN) == 0
    item.click()
    card.get_by_text(letter, exact=True).wait_for()
    assert comfy.page.evaluate(_BROKEN) == 0
    assert card.get_by_role("img").count() == 0


def _of_another_family() -> Concept:
    family = FAMILIES["sd1"]
    direction = torch.ones(family.context_width).half()
    return Concept(
        name="Other",
        family=family.id,
        placeholder="other*",
        superclass="vase",
        embeddings={key: torch.ones(1, width) for key, width in family.encoders.items()},
        target_input=direction,
        whitened_target=direction.float(),
        superclass_encoding=direction,
        values={"input_blocks.1.1.transformer_blocks.0.attn2": torch.ones(320)},
        bias=0.55,
        temperature=0.25,
    )


@on_every_frontend
def test_a_click_puts_the_placeholder_into_the_prompt(comfy: ComfyPage) -> None:
    comfy.load(example_graph("use_concept"))
    loader, prompt = comfy.node("PerfusionConceptLoader"), comfy.nodes("CLIPTextEncode")[0]
    comfy.set_value(prompt, "text", "a photo of a frog next to a ")
    comfy.show(loader)
    comfy.page.locator('[data-perfusion="card"]').get_by_role("button", name="teddy*").click()
    comfy.page.wait_for_function(
        "(id) => app.graph.getNodeById(id).widgets[0].value.includes('teddy*')", arg=prompt
    )
    assert comfy.value(prompt, "text") == "a photo of a frog next to a teddy*"


@on_every_frontend
def test_the_arrow_keys_walk_through_the_tokens_of_the_plot(comfy: ComfyPage) -> None:
    comfy.load(example_graph("use_concept"))
    comfy.set_value(comfy.node("KSampler"), "steps", 1)
    comfy.run()
    loader = comfy.node("PerfusionConceptLoader")
    comfy.show(loader)
    comfy.wait_plot(loader)
    plot = comfy.plot(loader)
    assert plot.get_by_role("listbox", name="Gate plot of teddy*: ").count() == 1
    # With the keyboard alone: the button that opens and closes the plot, then its tokens.
    comfy.page.keyboard.press("Escape")
    button = plot.get_by_role("button", name="Gates teddy*")
    button.focus()
    for state, key in (("false", "Space"), ("true", "Enter")):
        comfy.page.keyboard.press(key)
        plot.and_(comfy.page.locator(f'[data-open="{state}"]')).wait_for()
    assert button.get_attribute("aria-expanded") == "true"
    comfy.wait_plot(loader)
    comfy.page.keyboard.press("Tab")
    tokens = comfy.tokens(loader)
    assert tokens.evaluate("(list) => list === document.activeElement")
    readout = plot.locator(".perfusion-readout")
    told = [readout.inner_text()]
    for _ in range(3):
        comfy.page.keyboard.press("ArrowRight")
        comfy.page.wait_for_function(
            "([node, before]) => node.innerText !== before",
            arg=[readout.element_handle(), told[-1]],
        )
        told.append(readout.inner_text())
        # What a screen reader hears: the option that the list says is the active one, with what
        # each slider would do to it, which is written beside the curve for those who see.
        prospects = plot.locator(".perfusion-prospects").inner_text().split("\n")
        assert [line.split()[0] for line in prospects] == ["now", "bias", "temperature", "strength"]
        assert tokens.evaluate(_ACTIVE) == ["; ".join([told[-1], *prospects]), "option", "true"]
    assert len(set(told)) == 4
    comfy.keep("token")
    comfy.page.keyboard.press("Escape")
    comfy.page.wait_for_function(
        "(list) => !list.hasAttribute('aria-activedescendant')", arg=tokens.element_handle()
    )


_ACTIVE = """(list) => {
  const option = document.getElementById(list.getAttribute("aria-activedescendant"));
  return list.contains(option) && [option.textContent, option.role, option.ariaSelected];
}"""


@on_both_designs
def test_the_card_has_roles_and_names_and_gives_the_focus_back(comfy: ComfyPage) -> None:
    comfy.load(example_graph("use_concept"))
    comfy.show(comfy.node("PerfusionConceptLoader"))
    card = comfy.page.get_by_role("group", name="The chosen concept")
    card.get_by_role("img", name="Preview of berry").wait_for()
    assert card.get_by_role("button").all_inner_texts() == [
        "teddy*",
        "Choose…",
        "bias 0.6, temperature 0.15",
    ]
    choose = card.get_by_role("button", name="Choose…")
    choose.focus()
    comfy.page.keyboard.press("Space")
    dialog = comfy.page.get_by_role("dialog", name="Choose a concept")
    options = dialog.get_by_role("listbox", name="Concepts").get_by_role("option")
    options.nth(1).wait_for()
    # One stop of the Tab key for the whole list.
    assert options.evaluate_all("(all) => all.filter((one) => one.tabIndex === 0).length") == 1
    comfy.page.keyboard.press("Escape")
    dialog.wait_for(state="detached")
    assert choose.evaluate("(button) => button === document.activeElement")
