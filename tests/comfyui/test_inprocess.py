"""ComfyUI's modules work in this process, beside the live server."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import comfy.model_management
import comfy.model_patcher
import comfy.sd1_clip
import folder_paths
import nodes
import torch
from awaiting import awaited

from tools.client import ComfyClient
from tools.locate import ComfyInstall
from tools.server import RunningServer


def test_the_modules_are_comfyuis(server: RunningServer) -> None:
    found: ComfyInstall = server.comfyui
    assert Path(nodes.__file__).parent == found.path
    assert Path(comfy.model_patcher.__file__).parent.parent == found.path


def test_it_runs_on_the_cpu() -> None:
    assert comfy.model_management.get_torch_device() == torch.device("cpu")


def test_no_folder_of_comfyui_is_used(server: RunningServer) -> None:
    folders = [folder_paths.get_output_directory(), folder_paths.get_input_directory()]
    folders += folder_paths.get_folder_paths("checkpoints")
    for folder in folders:
        assert not Path(folder).is_relative_to(server.comfyui.path)
        assert not Path(folder).is_relative_to(server.base)


def test_a_clone_of_a_model_patcher_leaves_the_model_alone() -> None:
    model = torch.nn.Linear(2, 2)
    cpu = torch.device("cpu")
    patcher = comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)
    clone = patcher.clone()
    clone.add_object_patch("bias", torch.nn.Parameter(torch.zeros(2)))
    assert "bias" not in patcher.object_patches


def test_the_pack_gives_the_same_nodes_here_as_in_the_server(
    pack: ModuleType, client: ComfyClient
) -> None:
    async def ids() -> set[str]:
        extension = await pack.comfy_entrypoint()
        return {node.GET_SCHEMA().node_id for node in await extension.get_node_list()}

    served = {name for name in client.object_info() if name.startswith("Perfusion")}
    assert awaited(ids()) == served


def test_the_clip_tokenizer_of_comfyui_works_with_its_transformers(server: RunningServer) -> None:
    # The vocabulary's own file is the oracle: a transformers that reads it differently shows here.
    file = server.comfyui.path / "comfy" / "sd1_tokenizer" / "vocab.json"
    vocabulary = json.loads(file.read_text(encoding="utf-8"))
    start, end = vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]
    (tokens,) = comfy.sd1_clip.SDTokenizer().tokenize_with_weights("a (teddy:1.2), please")
    words = [(vocabulary[w], 1.0) for w in (",</w>", "please</w>")]
    assert tokens[:6] == [
        (start, 1.0),
        (vocabulary["a</w>"], 1.0),
        (vocabulary["teddy</w>"], 1.2),
        *words,
        (end, 1.0),
    ]
    assert len(tokens) == 77
