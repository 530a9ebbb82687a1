"""Random small networks for property tests: a drawn list of steps becomes a module."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

ACTIVATIONS = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "sigmoid": nn.Sigmoid,
    "hardswish": nn.Hardswish,
    "leaky": nn.LeakyReLU,
    "tanh": nn.Tanh,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "elu": nn.ELU,
    "none": nn.Identity,
}
KINDS = (
    "conv", "depthwise", "grouped", "transposed", "residual", "dense", "branches", "split_add", "gate", "shuffle",
    "excite", "glu", "maxpool", "avgpool", "prelu", "pad_channels", "crop",
    "group_norm",
)  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One block; each kind uses what it needs."""

    kind: str
    width: int
    kernel: int
    padding: int
    mode: str
    bias: bool
    norm: bool
    activation: str


def steps() -> st.SearchStrategy[list[Step]]:
    """One to five blocks."""
    step = st.builds(
        Step,
        kind=st.sampled_from(KINDS),
        width=st.sampled_from([4, 6, 8]),
        kernel=st.sampled_from([1, 3]),
        padding=st.sampled_from([0, 1, 2]),
        mode=st.sampled_from(["zeros", "zeros", "reflect", "circular"]),
        bias=st.booleans(),
        norm=st.booleans(),
        activation=st.sampled_from(sorted(ACTIVATIONS)),
    )
    return st.lists(step, min_size=1, max_size=5)


def conv(step: Step, inputs: int, width: int, *, groups: int = 1, same: bool = False) -> nn.Sequential:
    """Convolution, batch norm and activation."""
    padding = step.kernel // 2 if same else min(step.padding, step.kernel)
    mode = step.mode if padding else "zeros"
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, width, step.kernel, padding=padding, groups=groups, bias=step.bias, padding_mode=mode)
    ]
    if step.norm:
        layers.append(nn.BatchNorm2d(width))
    layers.append(ACTIVATIONS[step.activation]())
    return nn.Sequential(*layers)


class Block(nn.Module):
    """One step. `out` is the number of channels it gives."""

    def __init__(self, step: Step, inputs: int) -> None:
        super().__init__()
        self.kind = step.kind
        self.out = step.width
        build = getattr(self, f"_{step.kind}", None)
        if build is not None:
            build(step, inputs)

    def _conv(self, step: Step, inputs: int) -> None:
        self.body = conv(step, inputs, step.width)

    def _depthwise(self, step: Step, inputs: int) -> None:
        self.out = inputs * (2 if step.bias else 1)
        self.body = conv(step, inputs, self.out, groups=inputs)

    def _grouped(self, step: Step, inputs: int) -> None:
        self.body = conv(step, inputs, step.width, groups=2)

    def _transposed(self, step: Step, inputs: int) -> None:
        self.body = nn.ConvTranspose2d(inputs, step.width, 3, stride=2, padding=1, bias=step.bias)

    def _residual(self, step: Step, inputs: int) -> None:
        self.out = inputs
        self.body = nn.Sequential(conv(step, inputs, step.width, same=True), conv(step, step.width, inputs, same=True))

    def _dense(self, step: Step, inputs: int) -> None:
        self.out = inputs + step.width
        self.body = conv(step, inputs, step.width, same=True)

    def _branches(self, step: Step, inputs: int) -> None:
        self.out = 2 * step.width
        self.body = conv(step, inputs, step.width, same=True)
        self.other = nn.Conv2d(inputs, step.width, 1)

    def _split_add(self, step: Step, inputs: int) -> None:
        self.out = inputs // 2
        self.body = conv(step, inputs // 2, inputs // 2, same=True)

    def _gate(self, step: Step, inputs: int) -> None:
        self.body = nn.Conv2d(inputs, 2 * step.width, 1, bias=step.bias)

    def _glu(self, step: Step, inputs: int) -> None:
        self.body = nn.Sequential(nn.Conv2d(inputs, 2 * step.width, 1, bias=step.bias), nn.GLU(1))

    def _shuffle(self, step: Step, inputs: int) -> None:
        self.out = inputs

    def _excite(self, step: Step, inputs: int) -> None:
        self.out = inputs
        self.squeeze = nn.Conv2d(inputs, 4, 1)
        self.expand = nn.Conv2d(4, inputs, 1)

    def _maxpool(self, step: Step, inputs: int) -> None:
        self.out = inputs
        self.body = nn.MaxPool2d(2, ceil_mode=step.bias)

    def _avgpool(self, step: Step, inputs: int) -> None:
        self.out = inputs
        self.body = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=step.bias)

    def _prelu(self, step: Step, inputs: int) -> None:
        self.out = inputs
        self.body = nn.PReLU(inputs)

    def _group_norm(self, step: Step, inputs: int) -> None:
        groups = next(n for n in (step.width // 2, 2, 1) if step.width % n == 0)
        self.body = nn.Sequential(conv(step, inputs, step.width), nn.GroupNorm(groups, step.width))

    def _pad_channels(self, step: Step, inputs: int) -> None:
        self.out = inputs + 3

    def _crop(self, step: Step, inputs: int) -> None:
        self.out = inputs - 2

    def forward(self, x: Tensor) -> Tensor:
        match self.kind:
            case "residual":
                return F.relu(x + self.body(x))
            case "dense":
                return torch.cat([x, self.body(x)], 1)
            case "branches":
                return torch.cat([self.body(x), self.other(x)], 1)
            case "split_add":
                first, second = x[:, : self.out * 2].chunk(2, 1)
                return first + self.body(second)
            case "gate":
                value, gate = self.body(x).chunk(2, 1)
                return value * torch.sigmoid(gate)
            case "shuffle":
                n, c, h, w = x.shape
                return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
            case "excite":
                scale = torch.sigmoid(self.expand(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
                return x * scale
            case "pad_channels":
                return F.pad(x, (0, 0, 0, 0, 1, 2))
            case "crop":
                return x[:, 1:-1]
            case _:
                return self.body(x)


class Network(nn.Module):
    """The blocks, then a classifier; `flat` reads all positions, else their mean."""

    SIZE = 11

    def __init__(self, program: list[Step], flat: bool) -> None:
        super().__init__()
        blocks, channels = [nn.Conv2d(3, 8, 3, padding=1)], 8
        for step in program:
            if channels % 2:  # halves and pairs need an even number
                blocks.append(nn.Conv2d(channels, channels + 1, 1))
                channels += 1
            block = Block(step, channels)
            blocks.append(block)
            channels = block.out
            if channels < 1:
                raise ValueError("nothing is left to crop")
        self.blocks = nn.Sequential(*blocks)
        self.flat = flat
        with torch.no_grad():
            shape = self.eval().blocks(torch.zeros(1, 3, self.SIZE, self.SIZE)).shape
        self.head = nn.Sequential(
            nn.Linear(channels * (shape[2] * shape[3] if flat else 1), 6), nn.ReLU(), nn.Linear(6, 3)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(x)
        return self.head(x.flatten(1) if self.flat else x.mean((2, 3)))


def disturb(module: nn.Module, seed: int, share: float) -> nn.Module:
    """Random numbers everywhere, then random rows and columns of every weight, and some scales and biases, to zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if not tensor.is_floating_point():
            continue
        tensor.data.copy_(torch.randn(tensor.shape, generator=generator) * 0.5)
        if name.endswith("running_var"):
            tensor.data.abs_().add_(0.3)
        for dim in range(min(tensor.ndim, 2) if not name.startswith("head.2") else 0):
            if name.endswith(("running_mean", "running_var")):
                continue
            gone = torch.rand(tensor.shape[dim], generator=generator) < share * float(
                torch.rand(1, generator=generator)
            )
            tensor.data.index_fill_(dim, gone.nonzero().flatten(), 0)
    return module.eval()
