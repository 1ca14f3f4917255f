"""Each node's help page opens from the node, with its picture, in the page's language."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from serving import example_graph, on_both_designs, on_the_newest_frontend

from tools import locales
from tools.locate import ROOT
from tools.server import RunningServer

if TYPE_CHECKING:
    from comfy_page import ComfyPage


@pytest.mark.parametrize("language", [locales.ENGLISH, *locales.languages()])
def test_every_node_has_its_help_page_with_a_picture(
    comfy: ComfyPage, server: RunningServer, language: str
) -> None:
    _speak(comfy, server, language)
    kinds = [kind for kind in server.client.object_info() if kind.startswith("Perfusion")]
    assert len(kinds) >= 12
    for number, kind in enumerate(kinds):
        node = comfy.add(kind)
        comfy.show(node)
        title = comfy.box(node)
        # Never twice at one place: that would be a double click, which edits the title.
        comfy.page.mouse.click(title["x"] + 50 + 30 * (number % 2), title["y"] + 12)
        # The oldest frontend gives its buttons no names.
        comfy.page.get_by_test_id("info-button").click()
        page = f"{kind}.md" if language == locales.ENGLISH else f"{kind}/{language}.md"
        written = (ROOT / "js" / "docs" / page).read_text(encoding="utf-8")
        heading = written.splitlines()[0].removeprefix("# ")
        # All of it is in the element that its heading is in.
        title = comfy.page.get_by_role("heading", name=heading, exact=True, level=1)
        title.wait_for()
        help_page = title.locator("xpath=..")
        assert "**" not in help_page.inner_text(), f"{page}: a word that is to be bold is not"
        pictures = help_page.locator("img")
        assert pictures.count(), f"the help page of {kind} has no picture"
        for picture in pictures.all():
            width = picture.evaluate(
                "async (img) => { await img.decode(); return img.naturalWidth; }"
            )
            assert width > 100


# The one that ComfyUI pins forgets the texts of all packs when it loads a language of its own.
@on_the_newest_frontend
@pytest.mark.parametrize("language", locales.languages())
def test_nodes_are_called_as_the_language_of_the_page_says(
    comfy: ComfyPage, server: RunningServer, language: str
) -> None:
    _speak(comfy, server, language)
    tune = comfy.add("PerfusionTune")
    comfy.show(tune)
    texts = locales.load(language)["PerfusionTune"]
    called = comfy.page.evaluate(
        """(id) => {
          const node = app.graph.getNodeById(id);
          const bias = node.widgets.find((one) => one.name === "bias");
          return [node.title, bias.label, node.outputs[0].localized_name];
        }""",
        tune,
    )
    assert called == [
        texts["display_name"],
        texts["inputs"]["bias"]["name"],
        texts["outputs"]["0"]["name"],
    ]


@on_both_designs
@pytest.mark.parametrize(
    ("language", "gates", "choose", "run_once", "world"),
    [
        ("zh", "门控", "选择…", "请运行一次工作流", "演示的 emoji 世界"),
        ("ja", "ゲート", "選ぶ…", "ワークフローを一度実行してください", "デモの絵文字の世界"),
    ],
    ids=["zh", "ja"],
)
def test_the_parts_on_the_nodes_speak_the_language_of_the_page(
    comfy: ComfyPage,
    server: RunningServer,
    language: str,
    gates: str,
    choose: str,
    run_once: str,
    world: str,
) -> None:
    _speak(comfy, server, language)
    # What the server says of a graph that has not run yet.
    reason = "Run the graph once: the tokens come from its CLIP."
    comfy.page.route(
        "**/perfusion/similarities",
        lambda route: route.fulfill(json={"status": "no_encoder", "reason": reason}),
    )
    comfy.load(example_graph("use_concept"))
    loader = comfy.node("PerfusionConceptLoader")
    comfy.show(loader)
    comfy.plot(loader).get_by_role("button", name=gates).wait_for()
    comfy.plot(loader).get_by_text(run_once).wait_for()
    card = comfy.page.locator('[data-perfusion="card"]')
    card.get_by_text(world).wait_for()
    comfy.keep("parts")
    comfy.page.get_by_role("button", name=choose).click()
    comfy.page.get_by_role("dialog").get_by_role("option").nth(1).wait_for()
    comfy.page.keyboard.press("Escape")


def _speak(comfy: ComfyPage, server: RunningServer, language: str) -> None:
    """Open the page again in a language, as a user who has set it finds it."""
    from comfy_page import change_settings

    if language != locales.ENGLISH:
        change_settings(comfy.page.context, server.url, {"Comfy.Locale": language})
        comfy.reload()
