"""One checkpoint for all tests of the pipeline."""

from __future__ import annotations

import pytest
import torch
from randomise import randomise

from prunecli.arch.registry import build
from prunecli.arch.spec import parse


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "resnet20.pt"
    torch.save(randomise(build(parse("cifar_resnet20"))).state_dict(), path)
    return str(path)
