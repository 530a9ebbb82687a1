"""stdout is data, stderr is talk, the exit status tells."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from prunecli.arch.registry import build
from prunecli.arch.spec import parse
from prunecli.cli.app import app


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "m.pt"
    torch.save(build(parse("digits_net")).state_dict(), path)
    return str(path)


def program(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """In a process of its own: what libraries print is seen as well."""
    command = [sys.executable, "-m", "prunecli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def prunecli(*arguments: str, cwd: Path | None = None) -> Any:
    """In this process, which has loaded torch already."""
    with contextlib.chdir(cwd or "."):
        return CliRunner().invoke(app, arguments)


def test_json_is_one_clean_document(checkpoint: str) -> None:
    found = program("analyze", checkpoint, "--json")
    facts = json.loads(found.stdout)
    wanted = "model format arch input params nonzero sparsity flops bytes groups layers accuracy"
    assert set(wanted.split()) <= facts.keys()
    assert {"name", "type", "shape", "params", "nonzero", "flops", "dead"} <= facts["layers"][0].keys()
    assert "architecture digits_net" in found.stderr


def test_a_failed_check_names_the_figure(checkpoint: str) -> None:
    assert prunecli("analyze", checkpoint, "--check", "flops<=3M").exit_code == 0
    failed = prunecli("analyze", checkpoint, "--check", "flops<=2M", "--check", "params<=1", "--json", "-q")
    assert failed.exit_code == 1
    assert "flops<=2M: flops is 2692736" in failed.stderr
    assert "params<=1: params is 112106" in failed.stderr
    assert json.loads(failed.stdout)["flops"] == 2692736


def test_several_models_and_a_page(checkpoint: str, tmp_path: Path) -> None:
    found = prunecli("analyze", checkpoint, "conv2", "--json", "--html", str(tmp_path / "report.html"))
    assert [m["arch"] for m in json.loads(found.stdout)["models"]] == ["digits_net", "conv2"]
    page = (tmp_path / "report.html").read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert "digits_net" in page
    assert "<script" not in page


def test_prune_prints_the_path_alone(checkpoint: str, tmp_path: Path) -> None:
    found = program("prune", checkpoint, "--recipe", "magnitude-flops50", cwd=tmp_path)
    assert found.returncode == 0
    assert found.stdout == "m-magnitude-flops50.safetensors\n"
    assert "verified" in found.stderr
    facts = json.loads(
        prunecli("prune", checkpoint, "-r", "magnitude-flops50", "-o", str(tmp_path / "x.safetensors"), "--json").stdout
    )
    assert {"before", "after", "verified", "budget", "output", "seconds"} <= facts.keys()
    assert {"max_abs_error", "max_rel_error", "inputs"} <= facts["verified"].keys()
    assert {"asked", "met"} <= facts["budget"].keys()


def test_nothing_removed_is_status_one(checkpoint: str, tmp_path: Path) -> None:
    found = prunecli("prune", checkpoint, "--recipe", "strip", cwd=tmp_path)
    assert found.exit_code == 1
    assert found.stderr.count("nothing was removed") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_training_that_nothing_comes_before_does_not_begin(checkpoint: str, tmp_path: Path) -> None:
    flags = ["--data", "digits", "--set", "train.epochs=1", "--set", "train.lr=0.01"]
    found = prunecli("prune", checkpoint, "--recipe", "strip", *flags, cwd=tmp_path)
    assert found.exit_code == 1
    assert "nothing was removed" in found.stderr
    assert "epoch" not in found.stderr
    assert list(tmp_path.iterdir()) == []


def test_finetune_takes_its_data_from_the_recipe(checkpoint: str, tmp_path: Path) -> None:
    recipe, output = tmp_path / "r.yaml", tmp_path / "o.safetensors"
    recipe.write_text("version: 1\ndata: digits\ntrain: {epochs: 0}\n")
    asked = ("finetune", checkpoint, "-o", str(output))
    assert prunecli(*asked, "--recipe", str(recipe)).exit_code == 0
    refused = prunecli(*asked)
    assert (refused.exit_code, refused.stderr.splitlines()[0]) == (2, "error: no data is given")


def test_why_explains_both_sides(checkpoint: str) -> None:
    found = prunecli("analyze", checkpoint, "--why", "block1.conv2")
    assert "writes stem.0: 32 channels, can be pruned" in found.stdout
    assert "tied by: aten.add" in found.stdout
    assert "reads block1.conv1" in found.stdout


def test_a_closed_pipe_is_no_failure(checkpoint: str) -> None:
    command = f"{sys.executable} -m prunecli analyze {checkpoint} | head -1"
    found = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert "Traceback" not in found.stderr
    assert "BrokenPipe" not in found.stderr


def test_recipes(tmp_path: Path) -> None:
    listed = json.loads(prunecli("recipes", "list", "--json").stdout)["recipes"]
    shown = prunecli("recipes", "show", "strip").stdout
    assert {"quickstart", "strip", "magnitude-flops50", "magnitude-sparse90", "finetune-cifar10"} <= {
        r["name"] for r in listed
    }
    (tmp_path / "mine.yaml").write_text(shown)
    assert prunecli("prune", "digits_net", "--recipe", "mine.yaml", "--dry-run", cwd=tmp_path).exit_code == 1


def test_interrupted_is_130(checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from prunecli.cli.app import app
    from prunecli.pipeline import analyze

    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(analyze, "analyze", interrupted)
    result = CliRunner().invoke(app, ["analyze", checkpoint])
    assert result.exit_code == 130
    assert "Traceback" not in result.stderr
