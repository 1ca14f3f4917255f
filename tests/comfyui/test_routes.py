"""The pack's routes on a live server: what they answer, and whom and what they refuse."""

from __future__ import annotations

import gc
import importlib
import json
import math
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from awaiting import awaited
from page import PICTURES, PROMPT, ask, node, train, tuned
from tiny_models import tiny_clip

from perfusion_core.concept.concept_file import load_concept, save_concept
from tools.client import ComfyClient, GraphInterrupted
from tools.server import RunningServer


@pytest.fixture(scope="module")
def file(server: RunningServer) -> str:
    """A concept file, which the server's nodes have used once."""
    name = train(server.client, "routes/berry", placeholder="teddy*")
    server.client.run(tuned(name))
    return name


def similarities(client: ComfyClient, file: str, **changes: Any) -> tuple[int, Any]:
    question = {"node": "loader", "text": PROMPT, "concepts": [{"file": file}]}
    return ask(client, "/perfusion/similarities", body={**question, **changes})


def test_a_card_says_what_the_file_says(client: ComfyClient, file: str) -> None:
    status, card = ask(client, "/perfusion/concept", {"file": file})
    assert status == 200
    assert card["file"] == file
    assert (card["placeholder"], card["superclass"], card["family"]) == ("teddy*", "teddy", "emoji")
    assert card["bias"] == pytest.approx(0.6)
    assert len(card["hash"]) == 64
    _, found = ask(client, "/perfusion/concepts")
    assert card in found["concepts"]
    # ComfyUI has every route under /api as well, which is where its page asks.
    assert ask(client, "/api/perfusion/concept", {"file": file}) == (200, card)


def test_the_list_names_a_broken_file_and_goes_on(
    server: RunningServer, client: ComfyClient, file: str
) -> None:
    broken = server.base / "models" / "perfusion" / "routes" / "broken.safetensors"
    broken.write_bytes(b"no concept")
    _, found = ask(client, "/perfusion/concepts")
    by_file = {card["file"]: card for card in found["concepts"]}
    told = by_file["routes/broken.safetensors"]["error"]
    assert "not a whole safetensors file" in told
    assert str(server.base) not in told
    assert "error" not in by_file[file]
    status, answer = ask(client, "/perfusion/preview", {"file": "routes/broken.safetensors"})
    assert status == 404
    assert answer["error"] == f"routes/broken.safetensors: {told}"
    _, answer = similarities(client, "routes/broken.safetensors")
    assert answer["status"] == "mismatch"
    assert answer["reason"].startswith("routes/broken.safetensors: ")


def test_notes_of_a_training_that_are_no_json_for_a_page_do_not_break_the_list(
    server: RunningServer, client: ComfyClient, file: str
) -> None:
    folder = server.base / "models" / "perfusion"
    odd = replace(load_concept(folder / file), training={"loss": math.nan})
    save_concept(odd, folder / "routes" / "nan.safetensors")
    _, found = ask(client, "/perfusion/concepts")
    assert json.dumps(found, allow_nan=False)
    assert "routes/nan.safetensors" in [card["file"] for card in found["concepts"]]


def test_what_nobody_thought_of_is_json_with_a_reason_too(pack: ModuleType) -> None:
    routes = importlib.import_module(f"{pack.__name__}.nodes.routes")

    async def fails(_: Any) -> Any:
        raise RuntimeError("out of memory, and more")

    async def asked() -> Any:
        return await routes._guarded(fails)(make_mocked_request("GET", "/"))

    answer = awaited(asked())
    assert answer.status == 500
    assert json.loads(answer.text) == {"error": "RuntimeError: out of memory, and more"}


def test_a_card_follows_its_file(client: ComfyClient, file: str) -> None:
    name = train(client, "routes/again", seed=1)
    before = ask(client, "/perfusion/concept", {"file": name})[1]["hash"]
    train(client, "routes/again", seed=2)
    assert ask(client, "/perfusion/concept", {"file": name})[1]["hash"] != before


def test_a_preview_is_a_picture(client: ComfyClient, file: str) -> None:
    status, picture = ask(client, "/perfusion/preview", {"file": file})
    assert status == 200
    assert picture.startswith((b"\x89PNG", b"\xff\xd8\xff", b"RIFF"))


@pytest.mark.parametrize(
    "name", ["", "none.safetensors", "../secret.safetensors", "/etc/passwd", "routes/../../secret"]
)
@pytest.mark.parametrize("path", ["concept", "preview"])
def test_names_lead_nowhere_else(
    server: RunningServer, client: ComfyClient, file: str, path: str, name: str
) -> None:
    (server.base / "models" / "secret.safetensors").write_bytes(b"secret")
    outside = str(server.base / "models" / "secret.safetensors")
    for wanted in (name, outside):
        status, answer = ask(client, f"/perfusion/{path}", {"file": wanted})
        assert status == 404
        assert "no concept file" in answer["error"]


def test_a_checkpoints_family_is_read_from_its_header(
    server: RunningServer, client: ComfyClient, repo: Path
) -> None:
    folder = server.base / "models" / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "demo.safetensors").write_bytes(
        (repo / "demo" / "weights" / "unet.safetensors").read_bytes()
    )
    query = {"folder": "checkpoints", "name": "demo.safetensors"}
    assert ask(client, "/perfusion/family", query)[1]["family"] == "emoji"
    for folder_name, name in (
        ("checkpoints", "../perfusion/routes/berry.safetensors"),
        ("perfusion", "routes/berry.safetensors"),
        ("checkpoints", "none.safetensors"),
    ):
        status, answer = ask(client, "/perfusion/family", {"folder": folder_name, "name": name})
        assert status == 404
        assert answer["error"]


def test_similarities_tell_the_concepts_word(client: ComfyClient, file: str) -> None:
    status, answer = similarities(client, file)
    assert status == 200
    assert answer["status"] == "ok"
    assert answer["own"] is True
    assert (answer["family"], answer["family_title"]) == ("emoji", "the emoji world of the demo")
    assert answer["names"] == ["teddy*"]
    assert answer["words"][:3] == ["<start>", "a", "photo"]
    (row,) = answer["similarities"]
    assert len(row) == len(answer["words"])
    assert answer["words"][row.index(max(row))] == "teddy*"


def test_a_cancel_that_no_run_took_does_not_hit_the_plot(client: ComfyClient, file: str) -> None:
    client.interrupt()  # nothing runs: ComfyUI keeps it for the next layer that computes
    status, answer = similarities(client, file, text="a teddy* that nobody asked about before")
    assert (status, answer["status"]) == (200, "ok")


def test_another_placeholder_is_another_prompt_word(client: ComfyClient, file: str) -> None:
    concepts = [{"file": file, "placeholder": "bear*"}]
    _, answer = similarities(client, file, concepts=concepts, text="a bear* here")
    assert "bear*" in answer["words"]


def test_a_node_that_has_not_run_gets_the_familys_last_clip_and_is_told(
    client: ComfyClient, file: str
) -> None:
    _, answer = similarities(client, file, node="nobody")
    assert answer["status"] == "ok"
    assert answer["own"] is False


def test_a_concept_that_a_graph_makes_is_known_once_it_is_applied(client: ComfyClient) -> None:
    picture = client.upload_image(next(PICTURES.glob("*.png")))
    question = {
        "node": "apply",
        "text": "a photo of a made*",
        "concepts": [{"node": "apply", "placeholder": "Made*"}],
    }
    assert ask(client, "/perfusion/similarities", body=question)[1]["status"] == "no_concept"
    words = {"placeholder": "made*", "superclass": "teddy"}
    client.run(
        {
            "demo": node("PerfusionDemoModel"),
            "picture": node("LoadImage", image=picture),
            "train": node(
                "PerfusionTrainConcept",
                model=["demo", 0],
                clip=["demo", 1],
                vae=["demo", 2],
                images=["picture", 0],
                **{"steps": 2, "batch_size": 1, "seed": 1, "preview_every": 0, **words},
            ),
            "apply": node(
                "PerfusionApplyConcepts", model=["demo", 0], clip=["demo", 1], stack=["train", 0]
            ),
            "text": node("CLIPTextEncode", clip=["apply", 1], text="a made*"),
            "latent": node("EmptyLatentImage", width=64, height=64, batch_size=1),
            "sampler": node(
                "KSampler",
                model=["apply", 0],
                positive=["text", 0],
                negative=["text", 0],
                latent_image=["latent", 0],
                **{"seed": 3, "steps": 1, "cfg": 1.0, "denoise": 1.0},
                **{"sampler_name": "euler", "scheduler": "simple"},
            ),
            "decode": node("VAEDecode", samples=["sampler", 0], vae=["demo", 2]),
            "image": node("PreviewImage", images=["decode", 0]),
        }
    )
    _, answer = ask(client, "/perfusion/similarities", body=question)
    assert (answer["status"], answer["names"], answer["own"]) == ("ok", ["made*"], True)
    (row,) = answer["similarities"]
    assert answer["words"][row.index(max(row))] == "made*"
    assert max(row) > 0.9
    # Another word of it, and another node, know nothing.
    for other in ({"node": "apply", "placeholder": "x*"}, {"node": "x", "placeholder": "made*"}):
        _, answer = ask(client, "/perfusion/similarities", body={**question, "concepts": [other]})
        assert answer["status"] == "no_concept"


def test_while_a_graph_runs_only_what_is_known_is_answered(client: ComfyClient, file: str) -> None:
    assert similarities(client, file)[1]["status"] == "ok"
    answers: list[str] = []

    def on_event(event: dict[str, Any]) -> None:
        if event["type"] == "progress" and not answers:
            answers.append(similarities(client, file, text="a teddy* never asked for")[1]["status"])
            answers.append(similarities(client, file)[1]["status"])
            client.interrupt()

    graph = tuned(file, steps=1000, bias=0.31)
    with pytest.raises(GraphInterrupted):
        client.run(graph, on_event=on_event)
    assert answers == ["busy", "ok"]
    assert similarities(client, file, text="a teddy* never asked for")[1]["status"] == "ok"


def test_concepts_that_do_not_go_together_say_why(client: ComfyClient, file: str) -> None:
    other = train(client, "routes/other", seed=5)
    _, answer = similarities(client, file, concepts=[{"file": file}, {"file": other}])
    assert answer["status"] == "mismatch"
    assert "teddy*" in answer["reason"]


@pytest.mark.parametrize(
    ("changes", "status", "reason"),
    [
        ({"concepts": []}, 400, "1 to 8"),
        ({"concepts": [{"file": "x"}] * 9}, 400, "1 to 8"),
        ({"concepts": ["x"]}, 400, '"file"'),
        ({"concepts": [{"file": "x", "node": "1"}]}, 400, '"file"'),
        ({"concepts": [{"node": 1}]}, 400, '"node"'),
        ({"concepts": [{"file": "../secret.safetensors"}]}, 404, "no concept file"),
        ({"text": 5}, 400, '"text"'),
        ({"text": "x" * 70_000}, 413, "bytes"),
        ({"node": None}, 400, '"node"'),
    ],
)
def test_bad_questions_are_refused_with_a_reason(
    client: ComfyClient, file: str, changes: dict[str, Any], status: int, reason: str
) -> None:
    found, answer = similarities(client, file, **changes)
    assert found == status
    assert reason in answer["error"]


def test_a_prompt_that_is_too_long_says_so(client: ComfyClient, file: str) -> None:
    _, answer = similarities(client, file, text="x" * 5000)
    assert answer["status"] == "mismatch"
    assert "4000" in answer["reason"]


@pytest.mark.parametrize("path", ["similarities", "live"])
def test_a_body_must_be_a_json_object(client: ComfyClient, path: str) -> None:
    url = f"/perfusion/{path}"
    assert ask(client, url, body=b"{}", headers={"Content-Type": "text/plain"})[0] == 415
    assert ask(client, url, body=b"{")[0] == 400
    assert ask(client, url, body=b"[]")[0] == 400


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "http://elsewhere.example"},
        {"Origin": "null"},
    ],
)
def test_other_pages_are_refused_everywhere(
    client: ComfyClient, file: str, headers: dict[str, str]
) -> None:
    for path in ("concepts", "concept", "preview", "family"):
        assert ask(client, f"/perfusion/{path}", {"file": file}, headers=headers)[0] == 403
    for path in ("similarities", "live"):
        assert ask(client, f"/perfusion/{path}", body={}, headers=headers)[0] == 403


def test_comfyuis_own_page_is_answered(client: ComfyClient, file: str) -> None:
    for headers in ({"Sec-Fetch-Site": "same-origin"}, {"Origin": client.url}):
        assert ask(client, "/perfusion/concepts", headers=headers)[0] == 200


def test_no_answer_holds_what_is_no_json(pack: ModuleType) -> None:
    routes = importlib.import_module(f"{pack.__name__}.nodes.routes")

    async def gives(_: Any) -> Any:
        return routes._answer({"numbers": [1.0, math.inf]})

    answer = awaited(routes._guarded(gives)(make_mocked_request("GET", "/")))
    assert answer.status == 500
    assert "error" in json.loads(answer.text)


def test_an_encoder_that_gives_no_numbers_is_named(
    pack: ModuleType, teddy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = importlib.import_module(f"{pack.__name__}.perfusion_core.page.prompt_similarities")
    clip, encoders = tiny_clip(), tokens.Encoders()
    encoders.remember("1", clip)
    broken = SimpleNamespace(similarities=torch.tensor([[math.nan]]))
    monkeypatch.setattr(tokens, "gates_while_idle", lambda *_: broken)
    with pytest.raises(tokens.ComfyMismatch, match="text encoder gives NaN"):
        encoders.similarities("1", [teddy], "a teddy*")


def test_an_encoder_that_comfyui_has_let_go_of_is_told_from_one_that_never_ran(
    pack: ModuleType, teddy: Any
) -> None:
    tokens = importlib.import_module(f"{pack.__name__}.perfusion_core.page.prompt_similarities")
    encoders = tokens.Encoders()
    other = tiny_clip(768)
    encoders.remember("2", other)
    with pytest.raises(tokens.NoEncoder) as caught:
        encoders._clip_for("1", teddy)
    assert not isinstance(caught.value, tokens.EncoderGone)
    encoders.remember("1", tiny_clip())
    gc.collect()
    with pytest.raises(tokens.EncoderGone):
        encoders._clip_for("1", teddy)


def test_a_second_copy_of_the_pack_is_named_by_the_first(
    pack: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page asks the routes of the first, and the nodes of the second run."""
    routes = importlib.import_module(f"{pack.__name__}.nodes.routes")
    monkeypatch.setattr(routes, "copies", ["/custom_nodes/perfusion"])
    table = web.RouteTableDef()
    routes.add_routes(table)
    other = ModuleType("other")
    source = Path(routes.__file__).read_text(encoding="utf-8")
    other.__package__, other.__file__ = routes.__package__, "/custom_nodes/perfusion-2/nodes/r.py"
    exec(compile(source, other.__file__, "exec"), vars(other))
    count = len(table)
    other.add_routes(table)
    assert len(table) == count
    assert routes.copies == ["/custom_nodes/perfusion", "/custom_nodes/perfusion-2"]

    def no_encoder(*_: Any) -> None:
        raise routes.NoEncoder

    monkeypatch.setattr(routes, "concept_path", lambda name: name)
    monkeypatch.setattr(routes, "concept_of", lambda name: SimpleNamespace(placeholder="teddy*"))
    monkeypatch.setattr(routes, "prompt_similarities", no_encoder)
    body = {"text": "a teddy*", "node": "1", "concepts": [{"file": "x", "placeholder": ""}]}

    async def asked() -> Any:
        async def given(_: Any) -> Any:
            return body

        monkeypatch.setattr(routes, "_body", given)
        monkeypatch.setattr(routes, "renamed", lambda concept, _: concept)
        return await routes._similarities(make_mocked_request("POST", "/"))

    answer = json.loads(awaited(asked()).text)
    assert answer["status"] == "twice"
    assert "perfusion and perfusion-2" in answer["reason"]
    assert "/custom_nodes/" not in answer["reason"]


def test_routes_are_added_once(pack: ModuleType) -> None:
    add_routes = importlib.import_module(f"{pack.__name__}.nodes.routes").add_routes
    table = web.RouteTableDef()
    add_routes(table)
    count = len(table)
    add_routes(table)
    assert len(table) == count
    assert all(route.path.startswith("/perfusion/") for route in table)


def test_no_clip_is_held_alive(pack: ModuleType, teddy: Any) -> None:
    tokens = importlib.import_module(f"{pack.__name__}.perfusion_core.page.prompt_similarities")
    encoders = tokens.Encoders()
    clip = tiny_clip()
    encoders.remember("1", clip)
    encoders._answers_of(clip).put("question", object())
    assert encoders._answers_of(clip).get("question") is not None
    del clip
    gc.collect()
    with pytest.raises(tokens.NoEncoder):
        encoders.similarities("1", [teddy], "a teddy*")
    assert len(encoders._answers) == 0


def test_no_concept_is_held_alive(pack: ModuleType, teddy: Any) -> None:
    tokens = importlib.import_module(f"{pack.__name__}.perfusion_core.page.prompt_similarities")
    encoders = tokens.Encoders()
    clip, concept = tiny_clip(), replace(teddy)
    encoders.remember("1", clip, [concept])
    assert encoders.applied("1", " Teddy* ") is concept
    del concept
    gc.collect()
    with pytest.raises(tokens.NoConcept):
        encoders.applied("1", "teddy*")


def test_a_clip_of_another_family_is_not_asked(pack: ModuleType, teddy: Any) -> None:
    tokens = importlib.import_module(f"{pack.__name__}.perfusion_core.page.prompt_similarities")
    encoders = tokens.Encoders()
    fits, other, unknown = tiny_clip(), tiny_clip(768), tiny_clip(64)
    encoders.remember("1", fits)
    encoders.remember("2", other)  # such as node 2 of the graph in another tab
    encoders.remember("3", unknown)  # connected by mistake: the node has refused it
    for number, expected in (("1", (fits, True)), ("2", (fits, False)), ("4", (fits, False))):
        assert encoders._clip_for(number, teddy) == expected
    del fits, expected
    gc.collect()
    # Asked all the same, so that the answer says what does not fit.
    assert encoders._clip_for("2", teddy) == (other, True)
    with pytest.raises(tokens.NoEncoder):
        encoders._clip_for("4", teddy)


def test_what_is_remembered_is_bounded(pack: ModuleType) -> None:
    tokens = importlib.import_module(f"{pack.__name__}.perfusion_core.page.prompt_similarities")
    encoders = tokens.Encoders()
    clip = tiny_clip()
    for number in range(2 * tokens.MAX_NODES):
        encoders.remember(str(number), clip)
        encoders._answers_of(clip).put(number, object())
    assert len(encoders._nodes) == tokens.MAX_NODES
    assert len(encoders._answers_of(clip)) == tokens.MAX_KEPT
