"""Choosing a concept on the loader, with the keyboard; putting its word into the prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from serving import example_graph, on_every_frontend

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
        "() => document.querySelector('[data-perfusion=card] img').naturalWidth > 0"
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


def test_the_arrow_keys_walk_through_the_tokens_of_the_plot(comfy: ComfyPage) -> None:
    comfy.load(example_graph("use_concept"))
    comfy.set_value(comfy.node("KSampler"), "steps", 1)
    comfy.run()
    loader = comfy.node("PerfusionConceptLoader")
    comfy.show(loader)
    comfy.wait_plot(loader)
    plot = comfy.plot(loader)
    told = [plot.locator(".perfusion-readout").inner_text()]
    plot.locator("canvas").focus()
    for _ in range(3):
        comfy.page.keyboard.press("ArrowRight")
        comfy.page.wait_for_function(
            "([node, before]) => node.innerText !== before",
            arg=[plot.locator(".perfusion-readout").element_handle(), told[-1]],
        )
        told.append(plot.locator(".perfusion-readout").inner_text())
    assert len(set(told)) == 4
