"""Which device is meant, what moves there, and what happens where it has too little memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import prunecli
from prunecli import device
from prunecli.errors import InputError
from prunecli.graph.copying import moved, placed
from prunecli.recipe.load import validate


def test_auto_is_the_gpu_where_there_is_one_and_each_process_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device.chosen("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(device, "usable", lambda name, *rest: torch.device(name))
    assert device.chosen("auto") == torch.device("cuda")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert device.chosen("auto") == device.chosen("cuda") == torch.device("cuda", 3)
    assert device.chosen("cuda:1") == torch.device("cuda", 1)
    assert device.chosen("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["nowhere", "xpu"])
def test_a_device_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(InputError, match=f"'{name}' cannot be used here"):
        device.chosen(name)


def test_what_does_not_fit_a_device_is_computed_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "chosen", torch.device)
    tried = []

    def work(place: torch.device) -> str:
        tried.append(place.type)
        if place.type != "cpu":
            raise torch.OutOfMemoryError
        return "done"

    assert device.computed("meta", work) == "done"
    assert tried == ["meta", "cpu"]
    with pytest.raises(torch.OutOfMemoryError):
        device.computed("cpu", lambda place: (_ for _ in ()).throw(torch.OutOfMemoryError))


class Holder(nn.Module):
    """Tensors and modules wherever Python lets one hold them, some of them shared."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.same = self.inner.weight
        self.register_buffer("seen", torch.zeros(2))
        self.shift = torch.ones(2)
        self.held = [nn.Linear(2, 2), {"scale": torch.ones(2)}]
        self.held.append(self.held)
        self.device, self.where, self.kind = torch.device("cpu"), "cpu", "cpu-like"


def tensors(holder: Holder) -> list[Tensor]:
    layer, held = holder.held[0], holder.held[1]
    return [*holder.state_dict(keep_vars=True).values(), holder.shift, *layer.parameters(), held["scale"]]


def test_whatever_a_module_holds_moves_along_and_it_stays_where_it_is() -> None:
    holder = Holder()
    twin = moved(holder, "meta")
    assert all(tensor.is_meta for tensor in tensors(twin))
    assert twin.same is twin.inner.weight
    assert twin.held[2] is twin.held
    assert (twin.device, twin.where, twin.kind) == (torch.device("meta"), "meta", "cpu-like")
    assert not any(tensor.is_meta for tensor in tensors(holder))
    assert holder.device == torch.device("cpu")
    assert moved(holder, "cpu").shift is not holder.shift
    assert placed(holder, "cpu") is holder
    assert placed(holder, "meta") is not holder


USER_CODE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.device = torch.device("cuda")
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.last(self.first(x.to(self.device)).relu() + torch.zeros(1, device=self.device))

def build():
    return Net()
"""


def test_a_network_that_says_its_gpu_runs_where_its_weights_are(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(USER_CODE)
    recipe = validate({"version": 1, "method": {"name": "magnitude"}, "budget": {"flops": 0.5}})
    takes = prunecli.Opening(arch=f"{tmp_path}/net.py:build", inputs=prunecli.Opening.like(torch.zeros(1, 6)).inputs)
    facts = prunecli.prune(recipe, f"{tmp_path}/net.py:build", tmp_path / "small.safetensors", takes)
    assert facts.budget is not None
    assert facts.budget.met <= 0.5
    assert prunecli.load(tmp_path / "small.safetensors", arch=takes.arch)(torch.zeros(3, 6)).shape == (3, 2)
