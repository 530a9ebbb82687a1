"""A killed prune continues: the file is the one that an uninterrupted run writes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from prunecli.cli.app import app
from prunecli.pipeline.training import Training
from prunecli.train.loop import ignore

DIGITS = Path(__file__).parents[2] / "recipes" / "digits.safetensors"
SHORT = {"epochs": 1, "batch_size": 64, "validation": 0.0, "save_seconds": 0}
RECIPES = {
    "str": {"method": {"name": "str"}, "budget": {"sparsity": 0.8}, "train": {**SHORT, "epochs": 3}},
    "selfsup": {"method": {"name": "selfsup", "pretext": SHORT}, "budget": {"sparsity": 0.36}, "train": SHORT},
    "iterative": {
        "method": {"name": "magnitude"}, "budget": {"flops": 0.5, "iterative": {"steps": 3}}, "train": SHORT,
    },
}  # fmt: skip


@pytest.mark.parametrize(
    "name", ["selfsup", *(pytest.param(name, marks=pytest.mark.slow) for name in ("str", "iterative"))]
)
def test_a_killed_run_is_continued_to_the_same_file(name: str, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"version": 1, "data": "digits", **RECIPES[name]}))

    def arguments(output: Path, *flags: str) -> list[str]:
        return ["prune", str(DIGITS), "--recipe", str(recipe), "-q", "-o", str(output), *flags]

    whole, broken = tmp_path / "whole.safetensors", tmp_path / "broken.safetensors"
    assert CliRunner().invoke(app, arguments(whole)).exit_code == 0
    awaited = broken.with_name(f"{broken.name}.resume" if name == "str" else f"{broken.name}.1.resume")
    command = [sys.executable, "-m", "prunecli", *arguments(broken)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        while not awaited.exists() and running.poll() is None:
            time.sleep(0.01)
        running.send_signal(signal.SIGKILL)
    assert awaited.exists()
    assert not broken.exists()
    seldom = ("--set", "train.save_seconds=5", "--resume")
    assert CliRunner().invoke(app, arguments(broken, *seldom)).exit_code == 0
    assert broken.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob("*.resume"))


def test_a_state_of_another_run_is_refused(tmp_path: Path) -> None:
    output = tmp_path / "out.safetensors"
    (tmp_path / "out.safetensors.resume").write_bytes(b"nonsense")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"version": 1, "data": "digits", **RECIPES["str"]}))
    command = [sys.executable, "-m", "prunecli", "prune", str(DIGITS), "--recipe", str(recipe), "-o", str(output)]
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "start again without --resume" in done.stderr


@pytest.mark.parametrize(("number", "kept"), [("0", False), ("1", True)])
def test_the_process_that_writes_forgets_the_states(
    number: str, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are done earlier, while the output may still fail."""
    monkeypatch.setenv("RANK", number)
    training = Training(None, 0, None, tmp_path / "out.safetensors", "", resume=False, report=ignore, _done=2)
    states = [tmp_path / "out.safetensors.resume", tmp_path / "out.safetensors.1.resume"]
    for state in states:
        state.touch()
    training.forget()
    assert [state.exists() for state in states] == [kept, kept]
