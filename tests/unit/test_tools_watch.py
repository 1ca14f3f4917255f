"""The watch on ComfyUI: what it reads in the sources of one that has changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from perfusion_core.comfy.contract import Part
from tools import watch

MANAGEMENT = """
try:
    OOM = torch.cuda.OutOfMemoryError
except:
    OOM = Exception
if True:
    def free(dev, torch_free_too=False): ...
"""
PATCHER = """
class Base:
    def __init__(self, model):
        self.model = model

class Patcher(Base):
    options = {}
    def clone(self, *, force=False): ...
    def attach(self, key, attachment): ...
    def anything(self, **kwargs): ...

class Server:
    def __init__(self):
        Server.instance = self
"""
MODEL_BASE = """
class BaseModel: ...
class Flux(BaseModel): ...
class Flux9(Flux): ...
class Unheard(BaseModel): ...
class Helper: ...
"""
SUPPORTED = """
class SD15:
    def get_model(self): return model_base.BaseModel(self)
class SD16(SD15): ...
class Unheard:
    def get_model(self): return model_base.Unheard(self)
models = [SD15, SD16, Unheard]
"""


@pytest.fixture
def comfy(tmp_path: Path) -> Path:
    """The sources of a ComfyUI 0.40.0 in as few words as can be."""
    sources = {
        "main.py": "",
        "comfyui_version.py": '__version__ = "0.40.0"',
        "comfy/model_management.py": MANAGEMENT,
        "comfy/model_patcher.py": PATCHER,
        "comfy/model_base.py": MODEL_BASE,
        "comfy/supported_models.py": SUPPORTED,
    }
    for name, text in sources.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path


def told(comfy: Path, file: str, owner: str, *members: str, since: str = "0.3.52") -> list[str]:
    return watch.missing(comfy, (Part(f"comfy/{file}.py", owner, members, since),))


def test_what_is_there_is_not_told_of(comfy: Path) -> None:
    assert told(comfy, "model_management", "", "OOM", "free(dev)") == []
    members = ("model", "options", "clone()", "attach(key, attachment)", "anything(at, all)")
    assert told(comfy, "model_patcher", "Patcher", *members) == []
    assert told(comfy, "model_patcher", "Server", "instance") == []
    assert told(comfy, "model_patcher", "", "Patcher") == []


def test_what_is_gone_or_called_otherwise_is_told(comfy: Path) -> None:
    lines = told(comfy, "model_patcher", "Patcher", "wrappers", "attach(name)", "attach(key)")
    assert lines == [
        "comfy.model_patcher.Patcher.wrappers is gone",
        "comfy.model_patcher.Patcher.attach(name): it now takes key, attachment",
    ]
    (order,) = told(comfy, "model_patcher", "Patcher", "attach(attachment, key)")
    assert order.endswith("it now takes key, attachment")
    assert told(comfy, "model_patcher", "Other", "x") == ["comfy.model_patcher.Other is gone"]
    assert told(comfy, "hooks", "", "x") == ["comfy.hooks: the file comfy/hooks.py is gone"]


def test_an_older_comfyui_need_not_have_what_came_later(comfy: Path) -> None:
    assert told(comfy, "model_patcher", "Patcher", "wrappers", since="0.41.0") == []
    assert told(comfy, "model_patcher", "Patcher", "wrappers", since="0.40.0") != []


def test_models_that_no_one_has_judged_are_told_and_heirs_of_refused_ones_are_not(
    comfy: Path,
) -> None:
    assert watch.unjudged(comfy) == ["Unheard", "SD16 (of a class that concepts fit)"]


def test_failed_tests_are_told_with_the_first_line_of_their_reason(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite><testcase classname="tests.comfyui.test_a" name="test_one">'
        '<failure message="assert 1 == 2&#10;more"/></testcase>'
        '<testcase classname="tests.comfyui.test_a" name="test_two"/>'
        '<testcase classname="" name="tests.comfyui.test_b"><error message="no module"/></testcase>'
        "</testsuite></testsuites>",
        encoding="utf-8",
    )
    assert list(watch.failures(report)) == [
        "tests.comfyui.test_a::test_one: assert 1 == 2",
        "tests.comfyui.test_b: no module",
    ]


def test_the_page_says_all_of_it_and_the_exit_status_whether_there_is_any(
    comfy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert watch.main([str(comfy), "--no-tests"]) == 1
    text = capsys.readouterr().out
    assert text.startswith(f"ComfyUI 0.40.0 at {comfy} (not among 0.3.52, ")
    assert "comfy.model_patcher.ModelPatcher is gone" in text
    assert "model classes that no one has judged (perfusion_core/families/refused.py): 2" in text
    assert "tests that fail" not in text


def test_a_folder_that_is_no_comfyui_is_said(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="is not a ComfyUI"):
        watch.main([str(tmp_path), "--no-tests"])
