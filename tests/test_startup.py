"""What needs no torch does not load it, and what needs it loads no more of it than that."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from prunecli.arch.registry import build
from prunecli.arch.spec import parse

RUN = """
import sys
HEAVY = "torch", "torchvision", "numpy", "scipy", "fvcore"
from prunecli.cli.app import app
try:
    app(sys.argv[1:])
except SystemExit as done:
    status = done.code
heavy = [name for name in HEAVY if name in sys.modules]
print("HEAVY", heavy, "STATUS", status)
"""


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--help"], 0),
        (["prune", "--help"], 0),
        (["--version"], 0),
        (["recipes", "list"], 0),
        (["prune", "x.pt", "--recipe", "bad.yaml"], 2),
        (["prune", "x.pt", "--recipe", "no-such-recipe"], 2),
        (["analyze", "x.pt", "--check", "flop<1"], 2),
    ],
)
def test_no_torch(arguments: list[str], status: int, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("version: 1\nmethod: {name: magnitude, q: 1}\nbudget: {flops: 7}\n")
    command = [sys.executable, "-c", RUN, *arguments]
    found = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert found.stdout.splitlines()[-1] == f"HEAVY [] STATUS {status}", found.stderr


def test_what_a_plain_prune_needs_not(tmp_path: Path) -> None:
    """The compiler takes as long to load as all the rest, models in parts a third of that, a library of models half."""
    torch.save(build(parse("digits_net")).state_dict(), tmp_path / "m.pt")  # which is recognised
    unused = (
        '"torch._dynamo", "torch.distributed.fsdp", "torch.distributed.tensor", "scipy.optimize", "torchvision", "timm"'
    )
    script = RUN.replace('"torch", "torchvision", "numpy", "scipy", "fvcore"', unused)
    command = [sys.executable, "-c", script, "prune", "m.pt", "--recipe", "magnitude-flops50", "-q", "-o", "o"]
    found = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert found.stdout.splitlines()[-1] == "HEAVY [] STATUS 0", found.stderr
