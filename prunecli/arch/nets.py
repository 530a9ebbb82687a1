"""The built-in networks: those that the pruning papers train on CIFAR, and a small one for the digits.

Parameter names of the ResNets are those of the widely used CIFAR checkpoints (`layer1.0.conv1`, `linear`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PadShortcut(nn.Module):
    """Shortcut without parameters ("option A", He et al. 2016): subsample and add zero channels.

    `channel_pads` counts the zero channels before and after; the surgeon keeps it right.
    """

    def __init__(self, stride: int, before: int, after: int) -> None:
        super().__init__()
        self.stride = stride
        self.channel_pads = [before, after]

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, before + C + after, H / stride, W / stride)."""
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, *self.channel_pads))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016)."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        added = width - inputs
        plain = stride == 1 and added == 0
        self.shortcut = nn.Sequential() if plain else PadShortcut(stride, added // 2, added - added // 2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, width, H / stride, W / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class CifarResNet(nn.Module):
    """ResNet-(6n+2) for 32x32 images (He et al. 2016, section 4.2)."""

    def __init__(self, blocks: int, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks, 1)
        self.layer2 = self._stage(16, 32, blocks, 2)
        self.layer3 = self._stage(32, 64, blocks, 2)
        self.linear = nn.Linear(64, num_classes)
        _kaiming(self)

    @staticmethod
    def _stage(inputs: int, width: int, blocks: int, stride: int) -> nn.Sequential:
        first = BasicBlock(inputs, width, stride)
        return nn.Sequential(first, *(BasicBlock(width, width, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, classes)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        out: Tensor = self.linear(x.mean((2, 3)))
        return out


class VGG16BN(nn.Module):
    """VGG-16 with batch norm and one linear layer, for 32x32 images."""

    PLAN: Sequence[int] = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in self.PLAN:
            if width == 0:
                layers.append(nn.MaxPool2d(2, 2))
                continue
            layers += [nn.Conv2d(in_channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            in_channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(512, num_classes)
        _kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 32, 32) -> (N, classes)."""
        out: Tensor = self.classifier(self.features(x).flatten(1))
        return out


class WideBlock(nn.Module):
    """Pre-activation block of a wide ResNet (Zagoruyko and Komodakis 2016)."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(inputs, width, 1, stride, bias=False) if inputs != width else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, width, H / stride, W / stride)."""
        active = F.relu(self.bn1(x))
        out: Tensor = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return out + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(nn.Module):
    """WRN-depth-widen for 32x32 images; depth = 6 blocks + 4."""

    def __init__(self, depth: int = 28, widen: int = 10, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        blocks, widths = (depth - 4) // 6, [16 * widen, 32 * widen, 64 * widen]
        self.conv1 = nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False)
        stages, inputs = [], 16
        for number, width in enumerate(widths):
            for block in range(blocks):
                stages.append(WideBlock(inputs, width, 2 if number and not block else 1))
                inputs = width
        self.blocks = nn.Sequential(*stages)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.fc = nn.Linear(inputs, num_classes)
        _kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, classes)."""
        x = F.relu(self.bn1(self.blocks(self.conv1(x))))
        out: Tensor = self.fc(x.mean((2, 3)))
        return out


class MobileNetV1(nn.Module):
    """Depthwise-separable network (Howard et al. 2017) with the strides of its CIFAR version."""

    PLAN: Sequence[tuple[int, int]] = (
        (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1),
    )  # fmt: skip

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = [*_conv_bn(in_channels, 32, 3, 1)]
        inputs = 32
        for width, stride in self.PLAN:
            layers += [*_conv_bn(inputs, inputs, 3, stride, groups=inputs), *_conv_bn(inputs, width, 1, 1)]
            inputs = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(inputs, num_classes)
        _kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, classes)."""
        out: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return out


class ConvNet(nn.Module):
    """Conv2, Conv4, Conv6: pairs of 3x3 convolutions with pooling and three linear layers (Frankle and Carbin 2019)."""

    def __init__(self, depth: int, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 32
        for _ in range(depth // 2):
            width *= 2
            layers += [nn.Conv2d(in_channels, width, 3, padding=1), nn.ReLU()]
            layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
            in_channels = width
        side = 32 >> (depth // 2)
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(width * side * side, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, num_classes)
        )
        _kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 32, 32) -> (N, classes)."""
        out: Tensor = self.classifier(self.features(x).flatten(1))
        return out


class DigitsNet(nn.Module):
    """A small residual network for the 8x8 digits."""

    def __init__(self, num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_conv_bn(in_channels, 32, 3, 1))
        self.block1 = BasicBlock(32, 32, 1)
        self.down = nn.Sequential(*_conv_bn(32, 64, 3, 2))
        self.block2 = BasicBlock(64, 64, 1)
        self.head = nn.Linear(64, num_classes)
        _kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, 8, 8) -> (N, classes)."""
        x = self.block2(self.down(self.block1(self.stem(x))))
        out: Tensor = self.head(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))
        return out


def _conv_bn(inputs: int, width: int, kernel: int, stride: int, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, width, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]


def _kaiming(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(part.weight)
