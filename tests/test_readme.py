"""What the README says is run."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

import prunecli
from prunecli.arch.registry import build
from prunecli.arch.spec import parse

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_one_screen() -> None:
    first = README.splitlines()[:40]
    assert any("prunecli prune --recipe recipes/quickstart.yaml" in line for line in first)
    assert any("pip install '.[test]' && pytest" in line for line in first)


def test_the_python_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(PYTHON[0], {})
    share, error = re.search(r"(\d+)% of the FLOPs, error (\S+)", capsys.readouterr().out).groups()
    assert share in ("59", "60")
    assert float(error) < 1e-12


def test_the_rule_example(monkeypatch: pytest.MonkeyPatch) -> None:
    from prunecli.graph.rules import call as rules

    monkeypatch.setattr(rules, "RULES", dict(rules.RULES))
    exec(PYTHON[1], {})
    assert "mylib.swish" in rules.RULES


@pytest.mark.parametrize("name", ["digits_net", "torchvision:shufflenet_v2_x0_5"])
def test_the_loader_needs_only_torch_and_safetensors(name: str, tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    recipe = prunecli.load_recipe("magnitude-flops50")
    prunecli.prune(recipe, name, path)
    names: dict[str, object] = {}
    exec(PYTHON[2], names)
    loaded = names["load_small"](str(path), build(parse(name)))
    own = prunecli.load(path)
    images = torch.randn(2, *((1, 8, 8) if name == "digits_net" else (3, 64, 64)))
    with torch.no_grad():
        assert torch.equal(loaded(images), own(images))
    assert "prunecli" not in {line.split()[1] for line in PYTHON[2].splitlines() if line.startswith(("import", "from"))}


def test_the_quickstart_meets_its_figures(tmp_path: Path) -> None:
    recipe = prunecli.load_recipe(str(ROOT / "recipes" / "quickstart.yaml"), ["train.epochs=15"])  # of 40
    facts = prunecli.prune(recipe, recipe.model, tmp_path / "small.safetensors")
    assert facts.before.accuracy >= 0.98
    assert facts.after.flops <= 0.4 * facts.before.flops
    assert facts.after.accuracy >= facts.before.accuracy - 0.01
    assert facts.verified.max_rel_error < 1e-12


def test_the_changelog_has_this_version() -> None:
    assert f"## {version('prunecli')}" in (ROOT / "CHANGELOG.md").read_text()


def test_every_shipped_recipe_is_valid() -> None:
    for path in sorted((ROOT / "recipes").glob("*.yaml")):
        assert prunecli.load_recipe(str(path)).version == 1
        assert path.read_text().startswith("# ")
