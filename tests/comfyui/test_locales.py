"""Every node's every text is there in each language, and no text of a node that is gone."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tools import locales
from tools.client import ComfyClient
from tools.locales import ENGLISH, differences, english, flat, load

LANGUAGES = ("ja", "zh")
HINT = "run `python -m tools.locales`, which lists what to write"


@pytest.fixture(scope="module")
def texts(server: Any) -> dict[str, Any]:
    return english(server.client.object_info())


def test_the_languages_are_those_that_are_promised() -> None:
    assert locales.languages() == list(LANGUAGES)


def test_english_is_what_the_nodes_say(texts: dict[str, Any]) -> None:
    assert load(ENGLISH) == texts, HINT
    empty = [path for path, text in flat(texts).items() if not text]
    assert not empty, "nodes without a text, such as a tooltip"


@pytest.mark.parametrize("language", ["en", *LANGUAGES])
def test_no_text_has_signs_that_the_page_takes_for_its_own(language: str) -> None:
    # The page compiles these texts; "{}" in one is a syntax error in its console.
    signs = {path: text for path, text in flat(load(language)).items() if set(text) & set("{}|@")}
    assert not signs


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_text_is_translated(texts: dict[str, Any], language: str) -> None:
    lines = differences(texts, load(language))
    assert not lines, "\n".join([f"locales/{language}/nodeDefs.json; {HINT}:", *lines])
    lines = differences(load(ENGLISH, "main"), load(language, "main"))
    assert not lines, "\n".join([f"locales/{language}/main.json:", *lines])


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_translation_keeps_numbers_and_names(texts: dict[str, Any], language: str) -> None:
    """Figures, files and words that are typed are the same in every language."""
    kept = re.compile(r"\d+(?:\.\d+)?|teddy\*|models/\w+|\.\w*safetensors|people/anna|_step\d+")
    translated = flat(load(language))
    for path, text in flat(texts).items():
        if path.endswith(("tooltip", "description")):
            lost = set(kept.findall(text)) - set(kept.findall(translated[path]))
            assert not lost, f"{language} {path}: {lost}"


def test_types_and_category_have_names(client: ComfyClient) -> None:
    info = [v for k, v in client.object_info().items() if k.startswith("Perfusion")]
    sockets = {kind for node in info for kind in node["output"] if kind.startswith("PERFUSION_")}
    names = load(ENGLISH, "main")
    assert set(names["dataTypes"]) == sockets
    assert set(names["nodeCategories"]) == {node["category"] for node in info}


def test_comfyui_serves_them(client: ComfyClient, texts: dict[str, Any]) -> None:
    served = client._get("/i18n")
    for language in (ENGLISH, *LANGUAGES):
        assert served[language]["nodeDefs"].items() >= load(language).items()
    assert served["zh"]["nodeDefs"]["PerfusionTune"]["display_name"] != "Perfusion Tune"


def test_every_node_has_a_help_page(texts: dict[str, Any], repo: Path) -> None:
    pages = {path.stem: path.read_text(encoding="utf-8") for path in repo.glob("js/docs/*.md")}
    assert set(pages) == set(texts)
    for key, page in pages.items():
        assert page.startswith(f"# {texts[key]['display_name']}\n"), key
        for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page):
            assert (repo / "js" / "docs" / picture).is_file(), f"{key}: {picture}"
        for heading in ("## Outputs", "## Example", "## When it goes wrong"):
            assert heading in page, f"{key}: {heading}"
        for name in texts[key].get("inputs", {}):
            numbered = re.sub(r"_\d+$", "_1", name)  # concept_1 to concept_8 are one line
            assert f"`{numbered}`" in page, f"js/docs/{key}.md does not say what {name} does"
        for output in texts[key]["outputs"].values():
            assert f"`{output['name']}`" in page, f"js/docs/{key}.md has no {output['name']}"


def test_help_pages_are_there_in_each_language_and_no_other(
    texts: dict[str, Any], repo: Path
) -> None:
    pages = {path.relative_to(repo / "js" / "docs") for path in repo.glob("js/docs/*/*.md")}
    assert pages == {Path(key, f"{language}.md") for key in texts for language in LANGUAGES}


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_translated_help_page_says_what_the_english_one_says(
    texts: dict[str, Any], repo: Path, language: str
) -> None:
    """In step: the same parts in the same order, the same words to type, graphs and pictures.

    The frontend takes `docs/<NodeId>/<language>.md` before `docs/<NodeId>.md`, and finds the
    pictures of both in `docs/`: so a picture's name is the same in both.
    """
    translated = load(language)
    for key in texts:
        english_page = (repo / "js" / "docs" / f"{key}.md").read_text(encoding="utf-8")
        page = (repo / "js" / "docs" / key / f"{language}.md").read_text(encoding="utf-8")
        where = f"js/docs/{key}/{language}.md"
        assert page.startswith(f"# {translated[key]['display_name']}\n"), where
        assert _shape(page) == _shape(english_page), f"{where}: parts are missing, or too many"
        for pattern in (r"`[^`]+`", r"\]\(([^)]+)\)", r"(?<!\*)\*[a-z0-9_]+\*(?!\*)"):
            wanted, found = (Counter(re.findall(pattern, one)) for one in (english_page, page))
            assert not wanted - found, f"{where} lacks {wanted - found}"
        lost = set(_NUMBER.findall(english_page)) - set(_NUMBER.findall(page))
        assert not lost, f"{where}: {lost}"
        # An input is called in the graph what its locale says, and in files what the code says.
        for name, text in translated[key].get("inputs", {}).items():
            called = re.sub(r" \d$", "", text["name"])
            same = called.lower() == re.sub(r"_\d+$", "", name).lower()
            assert same or called in page, f"{where}: {name} is called {called} in the graph"


_NUMBER = re.compile(r"\d+(?:\.\d+)?")


def _shape(page: str) -> list[str]:
    """What each line is: a heading of which level, a row of a table, an item, a picture, a text."""
    kinds = re.compile(r"#+ |\| |\|---|- |!\[")
    found = (kinds.match(line) for line in page.splitlines() if line)
    return [one.group() if one else "text" for one in found]
