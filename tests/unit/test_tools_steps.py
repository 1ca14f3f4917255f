"""Steps are done once, again when what they depend on changes, and say why they fail."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tools.steps import SetupError, Steps, fingerprint, why


def test_a_step_is_done_once_per_key(tmp_path: Path) -> None:
    steps, calls = Steps(tmp_path), []
    for key in ("a", "a", "b", "b"):
        steps.step("one", key, "doing one", lambda key=key: calls.append(key))
    assert calls == ["a", "b"]


def test_a_step_that_fails_is_not_stamped_and_is_done_again(tmp_path: Path) -> None:
    steps = Steps(tmp_path)

    def fail() -> None:
        raise OSError("disk full")

    with pytest.raises(SetupError, match=r"doing one: failed: disk full \(log: .*setup\.log\)"):
        steps.step("one", "a", "doing one", fail)
    assert not steps.done("one", "a")
    assert steps.step("one", "a", "doing one", lambda: None)
    assert steps.done("one", "a")


def test_a_stamp_goes_before_its_step_is_done_again(tmp_path: Path) -> None:
    steps = Steps(tmp_path)
    steps.step("one", "a", "doing one", lambda: None)

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        steps.step("one", "b", "doing one", interrupted)
    assert not steps.done("one", "a")


def test_it_says_in_one_line_what_it_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Steps(tmp_path).step("one", "a", "doing one", lambda: None)
    assert capsys.readouterr().err == "perfusion: doing one ...\n"


def test_a_command_that_fails_gives_its_reason_and_leaves_its_output_in_the_log(
    tmp_path: Path,
) -> None:
    code = "print('long story'); print('ERROR: no such thing'); print('bye'); raise SystemExit(2)"
    with pytest.raises(SetupError, match="^ERROR: no such thing$"):
        Steps(tmp_path).run([sys.executable, "-c", code])
    assert "long story" in (tmp_path / "setup.log").read_text()


def test_a_command_that_hangs_is_ended(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="not ended after"):
        Steps(tmp_path).run([sys.executable, "-c", "import time; time.sleep(60)"], timeout=0.5)


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("x\nERROR: first\nERROR: second\nhint", "ERROR: second"),
        ("Traceback\n  File\nModuleNotFoundError: No module named 'x'\n\n", None),
        ("just\nlines\n", "lines"),
        (
            "WARNING: Retrying after connection broken by 'NewConnectionError'\nERROR: No matching",
            "the package index cannot be reached (ERROR: No matching)",
        ),
        (
            "npm error code ENOTFOUND\nnpm error syscall getaddrinfo\nnpm error network request to "
            "x failed, reason: getaddrinfo\nnpm error network In most cases",
            "npm's registry cannot be reached (request to x failed, reason: getaddrinfo)",
        ),
        (
            "npm error code EBADENGINE\nnpm error engine Unsupported engine\nnpm error A log",
            "Unsupported engine",
        ),
        ("", ""),
    ],
)
def test_why_picks_the_line_that_says_it(output: str, reason: str | None) -> None:
    expected = "ModuleNotFoundError: No module named 'x'" if reason is None else reason
    assert why(output) == expected


def test_fingerprints_tell_parts_apart() -> None:
    assert fingerprint("ab", "c") != fingerprint("a", "bc")


def test_a_second_setup_waits_for_the_first(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib, time; from tools.steps import Steps\n"
        "with Steps(pathlib.Path(sys.argv[1])).lock():\n"
        "    print('locked', flush=True); time.sleep(1)"
    )
    root = Path(__file__).resolve().parents[2]
    first = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=root, stdout=subprocess.PIPE
    )
    assert first.stdout is not None
    assert first.stdout.readline().strip() == b"locked"
    started = time.monotonic()
    with Steps(tmp_path).lock():
        waited = time.monotonic() - started
    first.wait()
    first.stdout.close()
    assert waited > 0.4
