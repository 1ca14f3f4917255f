"""Lists from ComfyUI's own nodes, such as a folder of captioned pictures, straight into ours."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from PIL import Image

from tools.client import ComfyClient, GraphFailed
from tools.server import RunningServer
from tools.workflows import Graph

BERRY = Path(__file__).parents[2] / "demo" / "concepts" / "berry"
FOLDER = "LoadImageTextDataSetFromFolder"
CAPTIONS = [f"a photo of a {{}} on a {colour} background" for colour in ("white", "blue", "gray")]


@pytest.fixture
def folder(server: RunningServer) -> Path:
    """An empty folder for pictures in the server's input folder, of a name that nothing knows."""
    made = server.input / f"dataset_{uuid4().hex}"
    made.mkdir()
    return made


def _fill(folder: Path, captions: list[str | None], sizes: list[tuple[int, int]]) -> None:
    pictures = sorted(BERRY.glob("*.png"))
    for n, (caption, size) in enumerate(zip(captions, sizes, strict=True)):
        Image.open(pictures[n]).resize(size).save(folder / f"{n}.png")
        if caption is not None:
            (folder / f"{n}.txt").write_text(caption, encoding="utf-8")


def _node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def _training(**more: Any) -> dict[str, Any]:
    """A training node on the built-in model, of a few steps."""
    inputs: dict[str, Any] = {"model": ["demo", 0], "clip": ["demo", 1], "vae": ["demo", 2]}
    inputs |= {"images": ["folder", 0], "placeholder": "teddy*", "superclass": "teddy"}
    inputs |= {"steps": 2, "batch_size": 2, "seed": 1, "preview_every": 0}
    return _node("PerfusionTrainConcept", **{**inputs, **more})


def _graph(folder: Path, **more: Any) -> Graph:
    return {
        "demo": _node("PerfusionDemoModel"),
        "folder": _node(FOLDER, folder=folder.name),
        "train": _training(**more),
        "info": _node("PerfusionConceptInfo", concept=["train", 0]),
        "plot": _node("PreviewImage", images=["train", 1]),
    }


def _said(client: ComfyClient, graph: Graph) -> str:
    """What the training node says of its run."""
    return " ".join(client.run(graph).outputs["train"]["text"])


@pytest.fixture(autouse=True)
def _dataset_nodes(client: ComfyClient) -> None:
    if not client.object_info(FOLDER):
        pytest.skip(f"ComfyUI {client.version()} has no {FOLDER}")


def test_a_folder_of_captioned_pictures_trains_a_concept(client: ComfyClient, folder: Path) -> None:
    _fill(folder, [*CAPTIONS], [(128, 128)] * 3)
    assert "3 of 128x128" in _said(client, _graph(folder, captions=["folder", 1]))


def test_pictures_of_a_folder_keep_their_sizes(client: ComfyClient, folder: Path) -> None:
    _fill(folder, [*CAPTIONS], [(128, 128), (128, 128), (64, 256)])
    said = _said(client, _graph(folder, captions=["folder", 1]))
    assert "2 of 128x128" in said
    assert "1 of " in said.replace("of 128x128", "")


def test_a_caption_of_several_lines_is_one_pictures_caption(
    client: ComfyClient, folder: Path
) -> None:
    _fill(folder, ["a photo of a {}\non a white\nbackground", *CAPTIONS[1:]], [(128, 128)] * 3)
    assert "3 of 128x128" in _said(client, _graph(folder, captions=["folder", 1]))


@pytest.mark.parametrize("captions", [[None] * 3, [CAPTIONS[0], None, CAPTIONS[2]]])
def test_a_picture_of_a_folder_may_be_without_a_caption(
    client: ComfyClient, folder: Path, captions: list[str | None]
) -> None:
    _fill(folder, captions, [(128, 128)] * 3)
    assert "2 steps" in _said(client, _graph(folder, captions=["folder", 1]))


def test_a_caption_without_the_concept_is_named(client: ComfyClient, folder: Path) -> None:
    _fill(folder, [*CAPTIONS[:2], "a toy on a table"], [(128, 128)] * 3)
    with pytest.raises(GraphFailed, match='caption "a toy on a table" must name the concept'):
        client.run(_graph(folder, captions=["folder", 1]))


def test_captions_of_another_count_are_refused_with_both_counts(
    client: ComfyClient, folder: Path
) -> None:
    _fill(folder, [*CAPTIONS], [(128, 128)] * 3)
    graph = _graph(folder, images=["demo", 3], captions=["folder", 1])
    with pytest.raises(GraphFailed, match="list of 3 captions for 5 pictures"):
        client.run(graph)


def test_masks_come_as_a_list_and_are_counted(client: ComfyClient, folder: Path) -> None:
    _fill(folder, [*CAPTIONS], [(128, 128)] * 3)
    graph = _graph(folder, masks=["mask", 0])
    graph["mask"] = _node("ImageToMask", image=["folder", 0], channel="red")
    assert "2 steps" in _said(client, graph)
    graph["train"]["inputs"]["images"] = ["demo", 3]
    with pytest.raises(GraphFailed, match="3 masks for 5 pictures"):
        client.run(graph)


@pytest.mark.parametrize("name", ["placeholder", "validation"])
def test_a_list_is_read_whole_or_refused(client: ComfyClient, folder: Path, name: str) -> None:
    """Validation prompts may be many; a placeholder is one: never the first of three in silence."""
    _fill(folder, [*CAPTIONS], [(128, 128)] * 3)
    graph = _graph(folder, **{name: ["folder", 1]})
    if name == "validation":
        assert "2 steps" in _said(client, graph)
        return
    with pytest.raises(GraphFailed, match='"placeholder" got a list of 3 values; it takes one'):
        client.run(graph)


def test_a_covariance_is_made_of_a_list_of_captions(client: ComfyClient, folder: Path) -> None:
    """Of all of them: one caption alone would not do, and nor would 24 covariances."""
    words = ("red", "blue", "gray", "green", "white", "orange", "yellow", "purple")
    captions = [f"a {thing} on a {w} background" for thing in ("cat", "hat", "car") for w in words]
    picture = Image.open(next(BERRY.glob("*.png")))
    for n, caption in enumerate(captions):
        picture.save(folder / f"{n}.png")
        (folder / f"{n}.txt").write_text(caption, encoding="utf-8")
    graph = _graph(folder, images=["demo", 3], covariance=["covariance", 0])
    graph["covariance"] = _node("PerfusionCovariance", clip=["demo", 1], captions=["folder", 1])
    assert "2 steps" in _said(client, graph)


def test_collected_pictures_keep_their_sizes_and_their_order(
    client: ComfyClient, folder: Path
) -> None:
    _fill(folder, [None] * 2, [(64, 64), (96, 64)])
    graph: Graph = {
        "demo": _node("PerfusionDemoModel"),
        "folder": _node(FOLDER, folder=folder.name),
        "first": _node("PerfusionTrainingPictures", picture_2=["folder", 0]),
        "all": _node("PerfusionTrainingPictures", pictures=["first", 0], picture_1=["demo", 3]),
        "saved": _node("PreviewImage", images=["all", 0]),
    }
    found = client.run(graph).images("saved")
    sizes = [_size(client, image) for image in found]
    assert sorted(sizes[:2]) == [(64, 64), (96, 64)]
    assert sizes[2:] == [(128, 128)] * 5


def _size(client: ComfyClient, image: dict[str, str]) -> tuple[int, int]:
    return Image.open(io.BytesIO(client.view(image))).size


def test_a_collection_of_nothing_is_refused(client: ComfyClient) -> None:
    graph = {
        "none": _node("PerfusionTrainingPictures"),
        "saved": _node("PreviewImage", images=["none", 0]),
    }
    with pytest.raises(GraphFailed, match="connect at least one"):
        client.run(graph)
