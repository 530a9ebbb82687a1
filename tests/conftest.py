"""Every test has its own cache and none sees the user's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

import prunecli

settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.load_profile("default")

if "PYTEST_XDIST_WORKER" in os.environ:  # as many workers as cores: threads of theirs would wait for one another
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
    torch.set_num_threads(1)

if expected := os.environ.get("PRUNECLI_PACKAGE"):  # a mutant: the tests must see it and nothing else
    assert Path(prunecli.__file__).parent == Path(expected)

SHARED = Path(os.environ.get("PRUNECLI_SHARED", Path(__file__).resolve().parents[2] / "shared"))


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """One cache for the whole run, all processes of it: the index of architectures is made once."""
    run = tmp_path_factory.getbasetemp()
    os.environ["XDG_CACHE_HOME"] = str((run.parent if "PYTEST_XDIST_WORKER" in os.environ else run) / "cache")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def checkpoints() -> Path:
    """Real trained ResNets; skipped where they are absent."""
    folder = SHARED / "checkpoints"
    if not (folder / "resnet20-12fca82f.th").is_file():
        pytest.skip("the real checkpoints are not here (PRUNECLI_SHARED)")
    return folder
