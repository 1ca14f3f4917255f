"""Concepts of other implementations and textual inversions: what comes over, what is refused."""

from __future__ import annotations

import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_files import LEARNED_AT, chendaryen, perfusion_pytorch, published_values
from safetensors.torch import save_file
from tiny_models import TinyVae, tiny_model

from perfusion_core.comfy.concept_entry import edit_of, recommended
from perfusion_core.comfy.foreign_concept import concept_of
from perfusion_core.comfy.models import detect_family, layers_of
from perfusion_core.concept.concept import Concept, ConceptError, check_fits
from perfusion_core.concept.concept_file import load_concept
from perfusion_core.concept.foreign import ForeignEmbedding, load_foreign
from perfusion_core.learn.plan import Plan
from perfusion_core.learn.session import learn
from perfusion_core.method.training_settings import TrainingSettings

WIDTH = 192


@pytest.fixture
def layers(model: Any) -> dict[str, Any]:
    return layers_of(model, detect_family(model))


def imported(path: Path, model: Any, clip: Any = None, **words: str) -> tuple[Concept, list[str]]:
    with torch.inference_mode():  # as ComfyUI runs its nodes
        return concept_of(load_foreign(path), model, clip, **words)


def test_a_concept_of_chendaryens_does_here_what_it_does_there(
    model: Any, layers: dict[str, Any], tmp_path: Path
) -> None:
    saved = chendaryen(tmp_path / "teddy.ckpt", layers, WIDTH)
    concept, notes = imported(tmp_path / "teddy.ckpt", model)
    check_fits(concept, detect_family(model), {path: one.out for path, one in layers.items()})
    assert (concept.superclass, concept.placeholder) == ("teddy", "teddy*")
    assert f"position {LEARNED_AT} were learned the most" in " ".join(notes)
    for path, layer in layers.items():
        # Where the word stood, the learned value and the locked key are theirs.
        value = layer.value.weight.float() @ concept.superclass_encoding.float()
        theirs = saved["target_output"][f"{path}.to_v.target_output"][LEARNED_AT]
        ours = value + concept.values[path].float()
        torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.02)
        key = layer.key.weight.float() @ concept.superclass_encoding.float()
        locked = saved["target_output"][f"{path}.to_k.target_output"][LEARNED_AT]
        torch.testing.assert_close(key, locked, rtol=0.02, atol=0.02)
    # And so is what the projection gives for the word itself.
    entry = recommended(concept)
    word = saved["target_input"][None]
    for path, layer in layers.items():
        rows = saved["target_output"][f"{path}.to_v.target_output"][LEARNED_AT][None]
        theirs = published_values(layer, word, saved, rows)
        gate = edit_of([entry]).gates(word[None])[0, 0, 0]
        stock = word @ layer.value.weight.float().T
        i = concept.target_input.float()
        o = layer.value.weight.float() @ concept.superclass_encoding.float()
        o = o + concept.values[path].float()
        ours = stock + gate * (o - layer.value.weight.float() @ i)
        assert (ours - theirs).norm() < 0.15 * theirs.norm()  # the gate is on the whole of ours


def test_the_gate_of_an_imported_concept_is_theirs_at_every_word(
    model: Any, layers: dict[str, Any], tmp_path: Path
) -> None:
    saved = chendaryen(tmp_path / "a.ckpt", layers, WIDTH)
    concept, _ = imported(tmp_path / "a.ckpt", model)
    words = torch.randn(1, 9, WIDTH, generator=torch.Generator().manual_seed(4))
    i, inverse = saved["target_input"], saved["C_inv"]
    theirs = (words @ inverse @ i) / (i @ inverse @ i)
    ours = edit_of([recommended(concept)]).similarity(words)
    torch.testing.assert_close(ours[..., 0].float(), theirs, rtol=0.01, atol=0.005)


@pytest.mark.parametrize("middle_last", [False, True])
def test_a_concept_of_perfusion_pytorch_finds_its_layers(
    model: Any, layers: dict[str, Any], tmp_path: Path, middle_last: bool
) -> None:
    order = list(layers)
    if middle_last:  # as diffusers registers its modules
        order.sort(key=lambda path: path.startswith("middle_block"))
    path = tmp_path / "a.pt"
    saved = perfusion_pytorch(path, [layers[name] for name in order], WIDTH)
    concept, _ = imported(path, model, superclass="cat")
    torch.testing.assert_close(
        concept.superclass_encoding.float(), saved["superclass"], rtol=0.01, atol=0.01
    )
    values = dict(zip(order, saved["key_value_params"][1::2], strict=True))
    for name, layer in layers.items():
        value = layer.value.weight.float() @ concept.superclass_encoding.float()
        value = value + concept.values[name].float()
        torch.testing.assert_close(value, values[name][1][0], rtol=0.02, atol=0.02)


def test_what_cannot_be_carried_over_is_refused_with_the_reason(
    model: Any, layers: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "a.ckpt"
    chendaryen(path, layers, WIDTH)
    with pytest.raises(ConceptError, match="learned on another checkpoint: load that one"):
        imported(path, tiny_model(seed=8))
    with pytest.raises(ConceptError, match="width 192, and this model is Stable Diffusion XL"):
        imported(path, tiny_model(2048, adm_in_channels=2816, num_classes="sequential"))
    order = list(layers.values())
    perfusion_pytorch(path, order, WIDTH, concepts=2)
    with pytest.raises(ConceptError, match="2 concepts that were merged"):
        imported(path, model, superclass="cat")
    saved = perfusion_pytorch(path, order, WIDTH)
    with pytest.raises(ConceptError, match="give the superclass"):
        imported(path, model)
    saved["key_value_params"][2][0] = saved["key_value_params"][2][0] * 2
    torch.save(saved, path)
    with pytest.raises(ConceptError, match="target inputs of their own"):
        imported(path, model, superclass="cat")
    perfusion_pytorch(path, order[:-1], WIDTH)
    with pytest.raises(ConceptError, match="its layers have no names, and their widths"):
        imported(path, model, superclass="cat")


EMBEDDINGS = {
    "A1111": {"string_to_token": {"*": 265}, "string_to_param": {"*": 0}, "name": "anna"},
    "diffusers": {"<anna>": 0},
    "ComfyUI": {"emb_params": 0},
    "by encoder": {"clip_l": 0},
}


def with_vectors(layout: dict[str, Any], vectors: torch.Tensor) -> dict[str, Any]:
    return {
        key: vectors
        if value == 0
        else with_vectors(value, vectors)
        if key == "string_to_param"
        else value
        for key, value in layout.items()
    }


@pytest.mark.parametrize("layout", EMBEDDINGS, ids=str)
def test_embeddings_are_read_in_every_layout(tmp_path: Path, layout: str) -> None:
    vectors = torch.randn(2, 768)
    saved = with_vectors(EMBEDDINGS[layout], vectors)
    files = [tmp_path / "anna.pt"]
    torch.save(saved, files[0])
    if all(isinstance(one, torch.Tensor) for one in saved.values()):
        files.append(tmp_path / "anna.safetensors")
        save_file(saved, files[1])
    for file in files:
        found = load_foreign(file)
        assert isinstance(found, ForeignEmbedding)
        torch.testing.assert_close(next(iter(found.vectors.values())), vectors)


def test_an_embedding_is_where_training_starts(model: Any, clip: Any, tmp_path: Path) -> None:
    path = tmp_path / "anna.pt"
    # The emoji world's encoder has a name of its own, which a file without one needs not know.
    vectors = 0.5 * torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(1))
    torch.save({"string_to_param": {"*": vectors}}, path)
    start, notes = imported(path, model, clip, superclass="teddy", placeholder="anna*")
    assert "resume" in notes[0]
    torch.testing.assert_close(next(iter(start.embeddings.values())), vectors.half())
    assert not any(bool(value.any()) for value in start.values.values())
    pictures = [torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(2))]
    settings = TrainingSettings(steps=1, batch_size=1)
    plan = Plan("anna*", "teddy", settings, start=start)
    with torch.inference_mode():
        learned = learn(model, clip, TinyVae(), pictures, [], [], plan, Told())  # type: ignore[arg-type]
    got = next(iter(learned.concept.embeddings.values())).float()
    assert got.shape == vectors.shape
    assert (got - vectors).abs().max() < 0.01  # one step of the rate 0.006 from there


class Told:
    """Progress that nobody looks at."""

    def step(self, *_: Any) -> None:
        pass

    painting = look = tried = step


def test_an_embedding_of_another_encoder_is_refused(model: Any, clip: Any, tmp_path: Path) -> None:
    path = tmp_path / "xl.safetensors"
    save_file({"clip_l": torch.zeros(1, 768), "clip_g": torch.zeros(1, 1280)}, path)
    with pytest.raises(ConceptError, match=r"this embedding is for clip_l \(width 768\), clip_g"):
        imported(path, model, clip, superclass="teddy")
    save_file({"emb_params": torch.ones(17, WIDTH)}, path)
    with pytest.raises(ConceptError, match="17 vectors; a concept has .* at most 16"):
        imported(path, model, clip, superclass="teddy")


class Dangerous:
    def __reduce__(self) -> Any:
        return (print, ("code of a pickle runs",))


def test_no_code_of_a_file_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.pt"
    torch.save({"emb_params": Dangerous()}, path)
    with pytest.raises(ConceptError, match="which could run code .* save it as .safetensors"):
        load_foreign(path)
    path.write_bytes(pickle.dumps(Dangerous()))
    with pytest.raises(ConceptError, match="no archive that PyTorch 1.6 or newer writes"):
        load_foreign(path)
    assert "runs" not in capsys.readouterr().out


def test_what_is_too_large_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "large.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("large/data.pkl", b"")
        archive.writestr("large/data/0", bytes(80 << 20))  # a bomb: 80 kB on the disk
    with pytest.raises(ConceptError, match="the archive has 2 parts, 84 MB"):
        load_foreign(path)
    with path.open("wb") as file:
        file.truncate(7 << 30)  # a checkpoint of a whole model
    with pytest.raises(ConceptError, match="7,516 MB; embeddings and concepts have far less"):
        load_foreign(path)


def test_other_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    save_file({"lora_unet_a.lora_up.weight": torch.zeros(4, 4), "alpha": torch.zeros(1)}, path)
    with pytest.raises(ConceptError, match="LoRAs and checkpoints go through their own loaders"):
        load_foreign(path)
    torch.save({"<a>": torch.zeros(768), "<b>": torch.zeros(768)}, tmp_path / "two.bin")
    with pytest.raises(ConceptError, match="holds 2 words \\(<a>, <b>\\); one is learned"):
        load_foreign(tmp_path / "two.bin")


def test_the_command_makes_a_file_that_the_loader_takes(tmp_path: Path, repo: Path) -> None:
    from demo import model as emoji_world

    model = emoji_world.load()[0]
    folder = tmp_path / "Änne's Bären"
    folder.mkdir()
    chendaryen(folder / "bär.ckpt", layers_of(model, detect_family(model)), WIDTH, "bear")
    done = subprocess.run(
        [sys.executable, "-m", "fleet", "import", str(folder / "bär.ckpt"), "--devices", "cpu"],
        cwd=repo, capture_output=True, encoding="utf-8", timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"bear* (bear): {folder / 'bär.safetensors'}" in done.stdout
    concept = load_concept(folder / "bär.safetensors")
    assert concept.training["imported_from"] == "ChenDarYen's implementation"
    done = subprocess.run(
        [sys.executable, "-m", "fleet", "import", str(repo / "README.md"), "--devices", "cpu"],
        cwd=repo, capture_output=True, encoding="utf-8", timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "fleet: " in done.stderr
    assert "this is no archive" in done.stderr
