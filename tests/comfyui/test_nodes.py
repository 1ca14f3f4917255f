"""The nodes, called as ComfyUI calls them: schemas, files, and what bad input gets."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import comfy.model_management
import folder_paths
import pytest
import torch
from comfy_execution.graph_utils import ExecutionBlocker
from tiny_models import TinyVae, patched_modules, tiny_clip, tiny_model

Node = Any


@pytest.fixture(scope="module")
def model() -> Any:
    with torch.inference_mode():
        return tiny_model()


@pytest.fixture(scope="module")
def clip() -> Any:
    with torch.inference_mode():
        return tiny_clip(length=32)


@pytest.fixture(autouse=True)
def folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nodes: dict[str, Node]
) -> Iterator[Path]:
    """An empty folder for concept files, that does not exist yet."""
    place = tmp_path / "models" / "perfusion"
    entry = ([str(place)], {".safetensors"})
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "perfusion", entry)
    folder_paths.filename_list_cache.pop("perfusion", None)
    yield place
    folder_paths.filename_list_cache.pop("perfusion", None)
    comfy.model_management.interrupt_current_processing(False)


def call(node: Node, **inputs: Any) -> Any:
    with torch.inference_mode():
        return node.PREPARE_CLASS_CLONE({}).EXECUTE_NORMALIZED(**inputs)


def train(nodes: dict[str, Node], model: Any, clip: Any, **changes: Any) -> Any:
    """Trains for two steps; every input in a list, as ComfyUI gives them to this node."""
    inputs = {
        "model": model,
        "clip": clip,
        "vae": TinyVae(),
        "placeholder": "teddy*",
        "superclass": "teddy",
        "steps": 2,
        "batch_size": 2,
        "seed": 1,
        **changes,
    }
    images = inputs.pop("images", [torch.rand(2, 64, 64, 3)])
    masks = {"masks": inputs.pop("masks")} if "masks" in inputs else {}
    listed = {name: [value] for name, value in inputs.items()}
    return call(nodes["PerfusionTrainConcept"], images=images, **masks, **listed)


@pytest.fixture(scope="module")
def concept(nodes: dict[str, Node], model: Any, clip: Any) -> Any:
    return train(nodes, model, clip).args[0]


def save(nodes: dict[str, Node], concept: Any, name: str = "", overwrite: bool = False) -> str:
    result = call(nodes["PerfusionSaveConcept"], concept=concept, name=name, overwrite=overwrite)
    return str(result.args[0])


def load(nodes: dict[str, Node], file: str, **inputs: Any) -> Any:
    sliders = {"bias": 0.6, "temperature": 0.15, "strength": 1.0}
    return call(nodes["PerfusionConceptLoader"], file=file, **{**sliders, **inputs}).args


def files(nodes: dict[str, Node]) -> list[str]:
    """The loader's list, as a refreshed page gets it."""
    options = nodes["PerfusionConceptLoader"].INPUT_TYPES()["required"]["file"][1]["options"]
    return list(options)


def test_every_input_and_output_has_a_tooltip_and_every_node_a_help_page(
    nodes: dict[str, Node], repo: Path
) -> None:
    for name, node in nodes.items():
        schema = node.GET_SCHEMA()
        assert schema.category == "Perfusion"
        assert schema.display_name.startswith("Perfusion ")
        assert schema.description
        for part in [*schema.inputs, *schema.outputs]:
            assert part.tooltip, f"{name}: {part.id}"
        page = (repo / "js" / "docs" / f"{name}.md").read_text(encoding="utf-8")
        assert page.startswith(f"# {schema.display_name}\n")
        for part in schema.inputs:
            numbered = part.id.startswith(("concept_", "picture_"))
            known = part.id.rstrip("_0123456789") if numbered else part.id
            assert f"`{known}" in page, f"{name}: {part.id}"
        json.dumps(node.GET_NODE_INFO_V1())


def test_sliders_are_sliders(nodes: dict[str, Node]) -> None:
    for name in ("PerfusionConceptLoader", "PerfusionTune"):
        inputs = nodes[name].INPUT_TYPES()["required"]
        for slider in ("bias", "temperature", "strength"):
            assert inputs[slider][1]["display"] == "slider"


def test_a_saved_concept_is_in_the_list_at_once_and_loads_as_it_was(
    nodes: dict[str, Node], concept: Any, folder: Path
) -> None:
    assert files(nodes) == []
    assert not folder.exists()
    assert save(nodes, concept) == "teddy.safetensors"
    assert files(nodes) == ["teddy.safetensors"]
    loaded = load(nodes, "teddy.safetensors", bias=0.4)[2]
    assert loaded.concept.hash == concept.concept.hash
    assert loaded.concept.preview == concept.concept.preview
    assert loaded.settings.bias == 0.4
    assert [path.name for path in folder.iterdir()] == ["teddy.safetensors"]


def test_a_taken_name_is_numbered_unless_overwrite_is_on(
    nodes: dict[str, Node], concept: Any, folder: Path
) -> None:
    names = [save(nodes, concept, "bears/anna") for _ in range(3)]
    assert names == [f"bears/anna{n}.safetensors" for n in ("", "_2", "_3")]
    assert save(nodes, concept, "bears/anna.safetensors", overwrite=True) == names[0]
    assert files(nodes) == sorted(names)


@pytest.mark.parametrize("name", ["bears/anna", "bears\\anna", "bears/anna.safetensors"])
def test_a_concept_is_called_what_its_file_is_called(
    name: str, nodes: dict[str, Node], concept: Any
) -> None:
    assert save(nodes, concept, name) == "bears/anna.safetensors"
    assert load(nodes, "bears/anna.safetensors")[2].concept.name == "anna"


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "/etc/evil",
        "a/../../evil",
        "..",
        ".hidden",
        "a//b",
        "C:\\evil",
        "a\0b",
        "a\nb",
        "b/.",
    ],
)
def test_a_name_that_leads_elsewhere_is_refused(
    name: str, nodes: dict[str, Node], concept: Any, folder: Path
) -> None:
    with pytest.raises(ValueError, match="cannot be a file name"):
        save(nodes, concept, name)
    assert not folder.exists()


def test_a_link_out_of_the_folder_is_not_followed_on_saving(
    nodes: dict[str, Node], concept: Any, folder: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    folder.mkdir(parents=True)
    (folder / "link").symlink_to(outside)
    with pytest.raises(ValueError, match="leads out of the concept folder"):
        save(nodes, concept, "link/teddy")
    assert list(outside.iterdir()) == []


def test_what_the_list_has_can_be_loaded_whatever_the_case_of_its_suffix(
    nodes: dict[str, Node], concept: Any, folder: Path
) -> None:
    save(nodes, concept, "teddy")
    (folder / "teddy.safetensors").rename(folder / "TEDDY.SAFETENSORS")
    assert files(nodes) == ["TEDDY.SAFETENSORS"]
    assert nodes["PerfusionConceptLoader"].validate_inputs(file="TEDDY.SAFETENSORS") is True
    assert load(nodes, "TEDDY.SAFETENSORS")[2].concept.hash == concept.concept.hash


def test_a_changed_file_is_read_again(nodes: dict[str, Node], concept: Any, folder: Path) -> None:
    loader = nodes["PerfusionConceptLoader"]
    save(nodes, concept, "teddy")
    before = loader.fingerprint_inputs(file="teddy.safetensors", bias=0.6)
    assert loader.fingerprint_inputs(file="teddy.safetensors", bias=0.1) == before
    path = folder / "teddy.safetensors"
    path.write_bytes(path.read_bytes() + b" ")
    assert loader.fingerprint_inputs(file="teddy.safetensors", bias=0.6) != before


@pytest.mark.parametrize("file", ["missing.safetensors", "", "../secret.safetensors", "notes.txt"])
def test_a_file_that_is_not_there_is_refused_before_the_run(
    file: str, nodes: dict[str, Node], concept: Any, folder: Path
) -> None:
    save(nodes, concept, "teddy")
    (folder.parent / "secret.safetensors").write_bytes(b"secret")
    (folder / "notes.txt").write_bytes(b"notes")
    answer = nodes["PerfusionConceptLoader"].validate_inputs(file)
    assert "models/perfusion" in answer
    assert "teddy.safetensors" in answer
    assert nodes["PerfusionConceptLoader"].validate_inputs("teddy.safetensors") is True


def test_a_file_whose_name_another_node_gives_is_not_refused_and_is_read_again_when_changed(
    nodes: dict[str, Node], concept: Any, folder: Path
) -> None:
    loader = nodes["PerfusionConceptLoader"]
    save(nodes, concept, "teddy")
    # What ComfyUI gives for an input that is connected, while it checks and compares graphs.
    assert loader.validate_inputs(file=None) is True
    before = loader.fingerprint_inputs(file=None, bias=0.6)
    assert loader.fingerprint_inputs(file=None, bias=0.1) == before
    path = folder / "teddy.safetensors"
    path.write_bytes(path.read_bytes() + b" ")
    assert loader.fingerprint_inputs(file=None, bias=0.6) != before


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"PK\x03\x04 and so on", "pickle"),
        (b"\x80\x02}q\x00.", "pickle"),
        (b"", "the file is empty"),
        (b"some text that is no concept", "not a whole safetensors file"),
    ],
)
def test_a_file_that_is_no_concept_is_refused_by_name(
    content: bytes, reason: str, nodes: dict[str, Node], folder: Path
) -> None:
    folder.mkdir(parents=True)
    (folder / "bad.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=rf"bad\.safetensors: .*{reason}"):
        load(nodes, "bad.safetensors")


def test_a_truncated_file_is_refused_by_name(
    nodes: dict[str, Node], concept: Any, folder: Path
) -> None:
    save(nodes, concept, "half")
    path = folder / "half.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"half\.safetensors: .*cut short"):
        load(nodes, "half.safetensors")


def test_the_loader_on_a_model_of_another_family_says_so(
    nodes: dict[str, Node], concept: Any
) -> None:
    save(nodes, concept, "teddy")
    with pytest.raises(ValueError, match="trained for the emoji world"):
        load(nodes, "teddy.safetensors", model=tiny_model(768))


def test_the_loaders_outputs_without_inputs_block_what_uses_them(
    nodes: dict[str, Node], concept: Any, model: Any
) -> None:
    save(nodes, concept, "teddy")
    no_model, no_clip, entry = load(nodes, "teddy.safetensors")
    for blocked, name in ((no_model, "model"), (no_clip, "clip")):
        assert isinstance(blocked, ExecutionBlocker)
        assert f'its "{name}" input is not connected' in blocked.message
    assert entry.concept.placeholder == "teddy*"
    assert load(nodes, "teddy.safetensors", model=model)[0].model is model.model


def test_a_clash_is_an_error_and_the_placeholder_field_the_remedy(
    nodes: dict[str, Node], concept: Any, model: Any, clip: Any
) -> None:
    save(nodes, concept, "one")
    other = train(nodes, model, clip, seed=2).args[0]
    save(nodes, other, "two")
    first = load(nodes, "one.safetensors", model=model, clip=clip)
    chained = {"model": first[0], "clip": first[1]}
    with pytest.raises(ValueError, match=r'placeholder "teddy\*".*"placeholder" field'):
        load(nodes, "two.safetensors", **chained)
    second = load(nodes, "two.safetensors", placeholder="bear*", **chained)
    tokens = second[1].tokenize("a teddy* and a bear*")["l"][0]
    assert sum(torch.is_tensor(token) for token, _ in tokens) == 2
    with pytest.raises(ValueError, match="must be one word"):
        load(nodes, "two.safetensors", placeholder="my bear")


def test_combine_and_apply_equal_chained_loaders(
    nodes: dict[str, Node], core: Any, concept: Any, model: Any, clip: Any
) -> None:
    save(nodes, concept, "one")
    one = load(nodes, "one.safetensors")[2]
    two = load(nodes, "one.safetensors", placeholder="bear*", bias=0.3)[2]
    combine, apply = nodes["PerfusionCombineConcepts"], nodes["PerfusionApplyConcepts"]
    stack = call(combine, concept_2=one, concept_7=two).args[0]
    assert [entry.concept.placeholder for entry in stack] == ["teddy*", "bear*"]
    longer = call(combine, stack=call(combine, concept_1=one).args[0], concept_1=two).args[0]
    assert longer == stack
    applied, knowing = call(apply, model=model, clip=clip, stack=stack).args
    assert core("comfy.stack").stack_of(applied) == stack
    single, _ = call(apply, model=model, clip=clip, stack=one).args
    assert core("comfy.stack").stack_of(single) == (one,)
    assert sum(torch.is_tensor(t) for t, _ in knowing.tokenize("teddy* bear*")["l"][0]) == 2
    tuned = call(
        nodes["PerfusionTune"],
        model=applied,
        bias=0.1,
        temperature=0.2,
        strength=0.5,
        concept="bear*",
    ).args[0]
    assert [e.settings.bias for e in core("comfy.stack").stack_of(tuned)] == [0.6, 0.1]
    with pytest.raises(ValueError, match="nothing to combine"):
        call(combine)


def test_the_info_says_what_the_concept_holds(nodes: dict[str, Node], concept: Any) -> None:
    text, placeholder, superclass, card = call(nodes["PerfusionConceptInfo"], concept=concept).args
    assert (placeholder, superclass) == ("teddy*", "teddy")
    for line in ("superclass: teddy", "layers: 7", "training steps: 2", "vectors: 1"):
        assert line in text.splitlines()
    assert card.shape[0] == 1
    assert card.std() > 0.05


def test_training_gives_a_concept_with_a_preview_and_a_report(
    nodes: dict[str, Node], model: Any, clip: Any
) -> None:
    result = train(nodes, model, clip, masks=[torch.ones(1, 64, 64)])
    assert result.args[0].concept.preview.startswith(b"\xff\xd8")
    assert result.args[0].concept.training["masked"] is True
    text = result.ui.as_dict()["text"][0]
    assert text.startswith("2 steps, loss ")
    assert text.endswith("pictures: 2 of 64x64")
    assert result.args[1].shape[0] == 1
    assert result.args[1].std() > 0.01


def test_one_picture_and_lists_of_pictures_work(
    nodes: dict[str, Node], model: Any, clip: Any
) -> None:
    one = train(nodes, model, clip, images=[torch.rand(1, 64, 64, 3)]).args[0]
    assert one.concept.training["images"] == 1
    many = train(nodes, model, clip, images=[torch.rand(n, 64, 64, 4) for n in (1, 3)]).args[0]
    assert many.concept.training["images"] == 4


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"images": []}, "no training picture"),
        ({"images": [torch.rand(0, 64, 64, 3)]}, "no training picture"),
        ({"captions": "a photo of {}"}, "1 captions for 2 pictures"),
        ({"captions": "a photo of {}\na photo"}, r'caption "a photo" must name the concept once'),
        ({"masks": [torch.ones(3, 64, 64)]}, "3 masks for 2 pictures"),
        ({"masks": [torch.zeros(2, 64, 64)]}, "mask of picture 1 is empty"),
        ({"superclass": "  "}, "superclass is empty"),
        ({"placeholder": "my teddy"}, "must be one word"),
        ({"placeholder": ""}, "must be one word"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_with_the_reason(
    changes: dict[str, Any], reason: str, nodes: dict[str, Node], model: Any, clip: Any
) -> None:
    with pytest.raises(ValueError, match=reason):
        train(nodes, model, clip, **changes)


def test_pictures_of_different_sizes_are_trained_in_their_own_shapes(
    nodes: dict[str, Node], model: Any, clip: Any
) -> None:
    images = [torch.rand(2, 200, 150, 3), torch.rand(1, 96, 96, 3)]
    masks = [torch.ones(1, 50, 50)]
    result = train(nodes, model, clip, images=images, masks=masks, steps=4, flip=True)
    text = result.ui.as_dict()["text"][0]
    assert "pictures: 2 of 112x144, 1 of 128x128; at most 4% of a picture cut off" in text
    assert result.args[0].concept.training["images"] == 6
    empty = [torch.ones(2, 50, 50), torch.zeros(1, 50, 50)]
    with pytest.raises(ValueError, match="mask of picture 3 is empty or not a number at 128x128"):
        train(nodes, model, clip, images=images, masks=empty)
    one_size = train(nodes, model, clip, resolution=64).ui.as_dict()["text"][0]
    assert one_size.endswith("2 of 64x64")


def test_photos_of_one_size_are_not_trained_at_a_cameras_size(
    nodes: dict[str, Node], model: Any, clip: Any
) -> None:
    def sizes(height: int, width: int, **changes: Any) -> str:
        images = [torch.rand(2, height, width, 3)]
        told: str = train(nodes, model, clip, images=images, **changes).ui.as_dict()["text"][0]
        return told.partition("pictures: ")[2]

    # The usual size of this family is 128.
    assert sizes(300, 400).startswith("2 of 144x112")
    assert sizes(128, 128) == "2 of 128x128"
    assert sizes(96, 160) == "2 of 160x96"
    assert sizes(256, 256, resolution=256, batch_size=1) == "2 of 256x256"


def test_captions_and_vectors_reach_the_training(
    nodes: dict[str, Node], model: Any, clip: Any
) -> None:
    images = [torch.rand(2, 64, 64, 3)]
    plain = train(nodes, model, clip, images=images).args[0].concept
    assert train(nodes, model, clip, images=images).args[0].concept.hash == plain.hash
    lines = "a photo of {} on a table\n\na teddy* in a box"
    told = train(nodes, model, clip, images=images, captions=lines).args[0].concept
    assert told.hash != plain.hash
    assert train(nodes, model, clip, vectors=3).args[0].concept.vectors == 3


def test_training_goes_on_from_a_concept_and_saves_on_the_way(
    nodes: dict[str, Node], model: Any, clip: Any, folder: Path
) -> None:
    result = train(nodes, model, clip, steps=5, save_every=2)
    assert sorted(p.stem for p in folder.glob("*")) == ["teddy_step2", "teddy_step4"]
    halfway = load(nodes, "teddy_step4.safetensors")[2]
    assert halfway.concept.training["steps_done"] == 4
    assert halfway.concept.preview == result.args[0].concept.preview
    more = train(nodes, model, clip, steps=3, resume=halfway, save_every=2).args[0].concept
    assert more.training["steps_done"] == 7
    assert "teddy_step6" in {p.stem for p in folder.glob("*")}  # of all its steps
    assert more.hash != result.args[0].concept.hash


def test_out_of_memory_says_what_to_lower(nodes: dict[str, Node], model: Any, clip: Any) -> None:
    def fail(*_: Any) -> Any:
        raise comfy.model_management.OOM_EXCEPTION("no memory")

    full = model.clone()
    full.set_model_attn2_patch(fail)
    with pytest.raises(ValueError, match=r"batch size 2 and pictures of 2 of 64x64\. Lower batch"):
        train(nodes, full, clip)
    with pytest.raises(ValueError, match=r"then resolution \(0 means 128 here\), or set"):
        train(nodes, full, clip)
    with pytest.raises(ValueError, match=r"then resolution, or set"):
        train(nodes, full, clip, resolution=64)
    assert patched_modules(model) == []
    assert train(nodes, model, clip).args[0].concept.training["steps_done"] == 2


def error_of_a_gpu(code: int) -> RuntimeError:
    """As torch raises it: with CUDA's code beside a text that need not say more."""
    error: RuntimeError = getattr(torch, "AcceleratorError", RuntimeError)(f"CUDA error {code}")
    error.error_code = code  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("no memory"),
        MemoryError(),
        # What a CPU, MPS and an asynchronous allocator of CUDA say.
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
        getattr(torch, "AcceleratorError", RuntimeError)("CUDA error: out of memory"),
        error_of_a_gpu(2),
    ],
    ids=["gpu", "python", "cpu", "mps", "runtime", "code"],
)
def test_out_of_memory_is_known_however_and_wherever_it_is_said(
    error: Exception, nodes: dict[str, Node], model: Any, clip: Any
) -> None:
    class Full(TinyVae):
        def encode(self, pixels: torch.Tensor) -> torch.Tensor:
            raise error

    with pytest.raises(ValueError, match=r"ran out of memory.*Lower batch_size") as told:
        train(nodes, model, clip, vae=Full())
    assert told.value.__cause__ is error


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes do not match"), error_of_a_gpu(700)], ids=["shapes", "code"]
)
def test_an_error_that_is_not_of_memory_stays_what_it_is(
    error: RuntimeError, nodes: dict[str, Node], model: Any, clip: Any
) -> None:
    class Broken(TinyVae):
        def encode(self, pixels: torch.Tensor) -> torch.Tensor:
            raise error

    with pytest.raises(RuntimeError, match=re.escape(str(error))):
        train(nodes, model, clip, vae=Broken())


def test_cancel_stops_while_pictures_are_encoded(
    nodes: dict[str, Node], model: Any, clip: Any
) -> None:
    encoded: list[int] = []

    class Slow(TinyVae):
        def encode(self, pixels: torch.Tensor) -> torch.Tensor:
            encoded.append(1)
            comfy.model_management.interrupt_current_processing(True)
            return super().encode(pixels)

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        train(nodes, model, clip, vae=Slow(), images=[torch.rand(5, 64, 64, 3)])
    assert len(encoded) == 1


def test_cancel_may_keep_what_was_learned(
    nodes: dict[str, Node], model: Any, clip: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hook(value: int, total: int, *_: Any, **__: Any) -> None:
        if (value, total) == (1, 30):
            comfy.model_management.interrupt_current_processing(True)

    monkeypatch.setattr("comfy.utils.PROGRESS_BAR_HOOK", hook)
    result = train(nodes, model, clip, steps=30, on_cancel="keep")
    assert result.args[0].concept.training["steps_done"] == 1
    assert "1 steps, then cancelled" in result.ui.as_dict()["text"][0]
    comfy.model_management.throw_exception_if_processing_interrupted()
    assert patched_modules(model) == []


def test_cancel_stops_training_within_one_step(
    nodes: dict[str, Node], model: Any, clip: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[int] = []

    def hook(value: int, total: int, *_: Any, **__: Any) -> None:
        done.append(value)
        # The first report: newer versions of ComfyUI leave out some of the later ones.
        if (value, total) == (1, 30):
            comfy.model_management.interrupt_current_processing(True)

    monkeypatch.setattr("comfy.utils.PROGRESS_BAR_HOOK", hook)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        train(nodes, model, clip, steps=30)
    assert done[-1] == 1
    assert patched_modules(model) == []


def test_a_covariance_of_the_users_captions_is_used(
    nodes: dict[str, Node], model: Any, clip: Any, concept: Any
) -> None:
    captions = "a cat\n\na dog on a mat\na photo of the sea"
    made = call(nodes["PerfusionCovariance"], clip=[clip], captions=[captions]).args[0]
    again = call(nodes["PerfusionCovariance"], clip=[clip], captions=[captions]).args[0]
    built_in = call(nodes["PerfusionCovariance"], clip=[clip]).args[0]
    assert made is again
    assert made.count == 4 + 7 + 7  # words, start and end of each caption
    mine = train(nodes, model, clip, covariance=made).args[0].concept
    assert mine.covariance_fingerprint == made.fingerprint
    assert concept.concept.covariance_fingerprint == built_in.fingerprint


def test_without_captions_a_covariance_is_made_from_those_of_the_models_family(
    nodes: dict[str, Node], clip: Any, core: Callable[[str], Any]
) -> None:
    built_in = call(nodes["PerfusionCovariance"], clip=[clip]).args[0]
    assert built_in.family == "emoji"
    captions = "\n".join(core("families").FAMILIES["emoji"].captions())
    assert call(nodes["PerfusionCovariance"], clip=[clip], captions=[captions]).args[0] is built_in


def test_each_text_encoder_has_a_covariance_of_its_own(nodes: dict[str, Node], clip: Any) -> None:
    captions = "a cat\na dog on a mat\na photo of the sea"

    def made(of: Any) -> Any:
        return call(nodes["PerfusionCovariance"], clip=[of], captions=[captions]).args[0]

    with torch.inference_mode():
        other = tiny_clip(length=32, seed=8)
        skipping = clip.clone()
        skipping.clip_layer(-2)
        patched = clip.clone()
        name, weight = next(
            (n, w) for n, w in clip.cond_stage_model.state_dict().items() if "fc1.weight" in n
        )
        assert patched.add_patches({name: ("diff", (torch.randn(weight.shape),))}, 0.5)
    own = made(clip)
    others = [made(one) for one in (other, skipping, patched)]
    assert len({one.fingerprint for one in (own, *others)}) == 4
    # Another clone of the same is the same.
    assert made(clip.clone()) is own
    again = [made(one) for one in (other, skipping, patched)]
    assert [one.fingerprint for one in again] == [one.fingerprint for one in others]


def test_a_covariance_of_another_family_is_refused_before_anything_runs(
    nodes: dict[str, Node], core: Any, model: Any, clip: Any
) -> None:
    class Untouched(TinyVae):
        def encode(self, pictures: torch.Tensor) -> torch.Tensor:
            raise AssertionError("encoded already")

    other = core("method.covariance").Covariance(torch.eye(768), 1000, "sd1")
    with pytest.raises(ValueError, match=r"of Stable Diffusion 1\.x's text encoder, but the model"):
        train(nodes, model, clip, covariance=other, vae=Untouched())


def test_a_vae_of_another_family_is_refused(nodes: dict[str, Node], model: Any, clip: Any) -> None:
    class Wider(TinyVae):
        def encode(self, pictures: torch.Tensor) -> torch.Tensor:
            return super().encode(pictures).repeat(1, 4, 1, 1)

    with pytest.raises(ValueError, match=r"of 16 channels, but the model.*Connect the model's own"):
        train(nodes, model, clip, vae=Wider())


def test_the_demo_model_without_weights_says_what_is_missing(
    nodes: dict[str, Node], pack: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    demo = importlib.import_module(f"{pack.__name__}.demo.model")
    monkeypatch.setattr(demo.load, "__defaults__", (tmp_path,))
    with pytest.raises(FileNotFoundError, match="demo model's unet weights are missing"):
        call(nodes["PerfusionDemoModel"])


def test_an_extra_model_path_comes_first_and_the_default_is_added(
    core: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "perfusion", ([str(tmp_path)], set()))
    for _ in range(2):
        core("comfy.concept_folder").register_folder()
    paths = folder_paths.get_folder_paths("perfusion")
    assert paths == [str(tmp_path), str(Path(folder_paths.models_dir) / "perfusion")]
    assert not Path(paths[1]).exists()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "one.safetensors").touch()
    assert folder_paths.get_filename_list("perfusion") == ["one.safetensors"]
