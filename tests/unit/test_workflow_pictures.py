"""Where the pictures beside the example graphs come from."""

from __future__ import annotations

from lab.thumbnails import PAGES, SHOWN
from tools.workflows import API_GRAPHS, UI_GRAPHS, graph_names


def test_each_graph_has_its_picture_from_one_tool_alone() -> None:
    by_page, by_output = graph_names(checkpoint=True), graph_names(checkpoint=False)
    transformers = ["anima_train_and_use", "anima_two_characters", "wan_train", "wan_video"]
    assert set(by_page) == {"sd15_train_and_use", "sdxl_train_and_use", *transformers}
    # What the other tool knows how to show, and nothing else.
    assert set(by_output) == SHOWN.keys() >= PAGES.keys()
    assert {*by_page, *by_output} == {path.stem for path in API_GRAPHS.glob("*.json")}
    assert all((UI_GRAPHS / f"{name}.jpg").is_file() for name in {*by_page, *by_output})
