"""Looking leaves no trace."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path

import pytest
import torch
from randomise import randomise
from torch import nn

from prunecli.arch.registry import build
from prunecli.arch.spec import parse
from prunecli.graph.channels import trace
from prunecli.graph.tape import Example, ForwardError, record, record_private


class Fails(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise KeyError("no")


class NeedsData(nn.Module):
    """Its Python asks for values, which meta tensors do not have."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        return x if float(x.sum()) < 1e9 else -x


def test_tracing_leaves_no_trace() -> None:
    module = randomise(build(parse("cifar_resnet20")))
    module.layer1.train()  # a mixed mode must survive too
    example = Example((torch.zeros(1, 3, 32, 32),))
    state = copy.deepcopy(module.state_dict())
    modes = [part.training for part in module.modules()]
    random = torch.get_rng_state()
    fastpath = torch.backends.mha.get_fastpath_enabled()
    trace(module, example)
    assert all(torch.equal(state[name], tensor) for name, tensor in module.state_dict().items())
    assert modes == [part.training for part in module.modules()]
    assert torch.equal(random, torch.get_rng_state())
    assert torch.backends.mha.get_fastpath_enabled() == fastpath
    assert all(p.grad is None for p in module.parameters())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


def test_a_failing_forward_restores_everything() -> None:
    module = Fails()
    before = torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(ForwardError, match="KeyError"):
        record(module, Example((torch.zeros(1),)))
    assert torch.backends.mha.get_fastpath_enabled() == before
    assert not module._forward_hooks


def test_python_that_needs_data_runs_on_real_tensors() -> None:
    tape = record(NeedsData(), Example((torch.zeros(1, 3, 4, 4),)))
    assert any(op.name == "aten.convolution" for op in tape.ops)


class MakesMasks(nn.Module):
    """Tensors that it makes have no device, so that beside meta tensors they would be on the CPU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.masked_fill(torch.ones(x.shape[-1]).bool(), 0.0) + torch.zeros(x.shape[-1])


def test_a_tensor_without_a_device_needs_no_data() -> None:
    assert not record(MakesMasks(), Example((torch.zeros(1, 4),))).needs_data


class Inferring(nn.Sequential):
    @torch.inference_mode()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)


def test_inference_mode_hides_nothing() -> None:
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(), nn.Flatten(), nn.Linear(8, 2)
    example = Example((torch.zeros(1, 3, 3, 3),))
    plain, inferring = (record(kind(*layers).eval(), example) for kind in (nn.Sequential, Inferring))
    kinds = [{op.name for op in tape.live_ops()} for tape in (plain, inferring)]
    assert kinds[0] == kinds[1]


def test_in_place_writes_make_new_values() -> None:
    class Adds(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = x.clone()
            view = y[:1]
            view.add_(1)
            return y

    tape = record(Adds(), Example((torch.zeros(2, 2),)))
    write = next(op for op in tape.ops if op.name == "aten.add_")
    assert write.clobbers
    assert write.outputs[0] not in write.clobbers


class Loose(nn.Module):
    """One part is registered, one lies in a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sigmoid())
        self.loose = [nn.Tanh()]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.loose[0](self.inner(x)).relu()


def test_an_op_knows_the_module_that_runs_and_the_line() -> None:
    """A module that the model does not know counts as the one around it; torch's own modules have no line."""
    here = Path(__file__).name
    ops = {op.name: op for op in record(Loose(), Example((torch.zeros(1, 3, 4, 4),))).ops}
    assert [ops[f"aten.{name}"].module for name in ("convolution", "sigmoid", "tanh", "relu")] == [
        "inner.0", "inner.1", "", "",
    ]  # fmt: skip
    assert all(op.source.startswith(f"{here}:") for op in ops.values())
    (alone,) = record(nn.Sequential(nn.ReLU()), Example((torch.zeros(1, 3),))).ops
    assert (alone.module, alone.source, alone.where) == ("0", "", "aten.relu in 0")


class Narrow(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ torch.zeros(5, 3, device=x.device)


class Literal(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(-1, 7)


def test_a_failure_names_the_innermost_module_and_the_line() -> None:
    broken = nn.Sequential(nn.Identity(), nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(5, 4, 1)), Fails())
    with pytest.raises(ForwardError) as failed:
        record(broken, Example((torch.zeros(1, 3, 4, 4),)))
    assert failed.value.module == "1.1"
    assert failed.value.problem.endswith("(in 1.1)")  # where the line is torch's own
    line = f"{Path(__file__).name}:{inspect.getsourcelines(Narrow.forward)[1] + 1}"
    with pytest.raises(ForwardError, match="do not fit") as failed:
        record_private(Narrow(), Example((torch.zeros(2, 4),)))
    assert failed.value.problem.endswith(f"(in {line})")  # and not where its op was run here
    line = f"{Path(__file__).name}:{inspect.getsourcelines(Literal.forward)[1] + 1}"
    with pytest.raises(ForwardError) as failed:
        record(nn.Sequential(Literal()), Example((torch.zeros(2, 4),)))
    assert failed.value.problem.endswith(f"(in 0, {line})")
