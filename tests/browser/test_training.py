"""Training in the page: its progress is seen, it can be cancelled, what it saves can be chosen."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from serving import example_graph, on_both_designs

from tools.server import RunningServer

if TYPE_CHECKING:
    from comfy_page import ComfyPage


@on_both_designs
def test_training_shows_its_progress_and_is_cancelled_with_the_keyboard(
    comfy: ComfyPage, server: RunningServer
) -> None:
    comfy.load(example_graph("train_concept"))
    train = comfy.node("PerfusionTrainConcept")
    comfy.set_value(train, "steps", 5000)
    comfy.set_value(train, "batch_size", 1)
    comfy.set_value(train, "preview_every", 10)
    comfy.show(train)
    with comfy.one_run(end="execution_interrupted") as run:
        comfy.press_run()
        comfy.page.wait_for_function(
            "() => testRuns.at(-1)?.progress.some(([step, all]) => all === 5000 && step >= 3)"
        )
        # On the node: what it is at, and what the concept looks like by now.
        told = re.compile(r"^step \d+ of 5000, loss \d\.\d{4}\s*\d.* left$")
        comfy.page.get_by_text(told).wait_for()
        lines = comfy.page.get_by_text(told).inner_text().strip().splitlines()
        assert [line.split()[0] for line in lines if line][:1] == ["step"]
        assert len([line for line in lines if line]) == 2, lines
        comfy.wait_preview(train)
        comfy.show(train)
        comfy.keep("training")
        comfy.page.keyboard.press("Control+Alt+Enter")
    assert run["previews"] >= 1
    assert max(step for step, _ in run["progress"]) < 5000
    # ComfyUI goes on as if nothing had been: the same page trains again, to the end this time.
    comfy.set_value(train, "steps", 2)
    comfy.set_value(comfy.node("PerfusionSaveConcept"), "name", "from the page")
    comfy.run()
    assert (server.models / "perfusion" / "from the page.safetensors").is_file()


def test_a_concept_that_was_just_trained_is_in_the_list_after_a_refresh(
    comfy: ComfyPage, server: RunningServer
) -> None:
    comfy.load(example_graph("use_concept"))
    loader = comfy.node("PerfusionConceptLoader")
    folder = server.models / "perfusion"
    (folder / "new.safetensors").write_bytes((folder / "berry.safetensors").read_bytes())
    try:
        comfy.page.mouse.click(700, 850)
        comfy.page.keyboard.press("r")
        comfy.page.wait_for_function(
            "(id) => app.graph.getNodeById(id).widgets.find((w) => w.name === 'file')"
            ".options.values.includes('new.safetensors')",
            arg=loader,
        )
    finally:
        (folder / "new.safetensors").unlink()
