"""The things in users' models that break other tools, each the smallest network that has it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm
from torchvision.ops import deform_conv2d, roi_align

MODELS: dict[str, Callable[[], nn.Module]] = {}


def model(kind: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    MODELS[kind.__name__] = kind
    return kind


class Base(nn.Module):
    """(N, 3, 8, 8) -> (N, 4) through a stem of 16 channels and a head."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(width, 4)

    def middle(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(F.relu(self.stem(x)))
        return self.head(x.mean((2, 3)) if x.ndim == 4 else x)


@model
class ViewAndBack(Base):
    def middle(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, c, h * w).transpose(1, 2).reshape(n, h, w, c).permute(0, 3, 1, 2)


@model
class LiteralView(Base):
    """A number in the code that no tape can see."""

    def middle(self, x: Tensor) -> Tensor:
        return x.view(-1, 16, 64).view(-1, 16, 8, 8)


@model
class Shuffled(Base):
    def __init__(self) -> None:
        super().__init__(4)

    def middle(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(x, 2)


@model
class TransposedAfterView(Base):
    def __init__(self) -> None:
        super().__init__(8)
        self.fc, self.up = nn.Linear(16, 12 * 4), nn.ConvTranspose2d(12, 8, 3, stride=2)

    def middle(self, x: Tensor) -> Tensor:
        return self.up(self.fc(x.mean((2, 3))).view(-1, 12, 2, 2))


@model
class Einsum(Base):
    def __init__(self) -> None:
        super().__init__(12)
        self.mix = nn.Parameter(torch.randn(12, 16))

    def middle(self, x: Tensor) -> Tensor:
        return torch.einsum("nchw,dc->ndhw", x, self.mix)


@model
class Recurrent(Base):
    def __init__(self) -> None:
        super().__init__(10)
        self.lstm = nn.LSTM(16, 10, batch_first=True)

    def middle(self, x: Tensor) -> Tensor:
        return self.lstm(x.mean(3).transpose(1, 2))[0][:, -1]


@model
class Gated(Base):
    def __init__(self) -> None:
        super().__init__(10)
        self.gru = nn.GRU(16, 10, batch_first=True, bidirectional=False)

    def middle(self, x: Tensor) -> Tensor:
        return self.gru(x.mean(3).transpose(1, 2))[0].mean(1)


@model
class BothWays(Base):
    def __init__(self) -> None:
        super().__init__(20)
        self.gru = nn.GRU(16, 10, num_layers=2, bidirectional=True)

    def middle(self, x: Tensor) -> Tensor:
        return self.gru(x.mean(3).permute(2, 0, 1))[0][-1]


@model
class Projected(Base):
    """A recurrent layer whose state has two widths, and which is given its first one."""

    def __init__(self) -> None:
        super().__init__(6)
        self.lstm = nn.LSTM(16, 10, batch_first=True, proj_size=6)

    def middle(self, x: Tensor) -> Tensor:
        n, wide = len(x), self.lstm.hidden_size
        state = x.new_zeros(1, n, self.lstm.proj_size), x.new_zeros(1, n, wide)
        return self.lstm(x.mean(3).transpose(1, 2), state)[0][:, -1]


@model
class ToldState(Base):
    """A recurrent layer whose first state is made of a width that the model holds."""

    def __init__(self) -> None:
        super().__init__(10)
        self.layers, self.width = 2, 10
        self.gru = nn.GRU(16, self.width, self.layers, batch_first=True)

    def middle(self, x: Tensor) -> Tensor:
        state = torch.zeros(self.layers, len(x), self.width, device=x.device, dtype=x.dtype)
        return self.gru(x.mean(3).transpose(1, 2), state)[0][:, -1]


@model
class Cells(Base):
    """Step by step, the state from nowhere or of a width that the model holds."""

    def __init__(self) -> None:
        super().__init__(12)
        self.width = 10
        self.first, self.second, self.third = nn.GRUCell(16, 10), nn.LSTMCell(10, 12), nn.RNNCell(12, 12)

    def middle(self, x: Tensor) -> Tensor:
        first, second, third = x.new_zeros(len(x), self.width), None, None
        for step in x.flatten(2).unbind(2)[:3]:
            first = self.first(step, first)
            second = self.second(first, second)
            third = self.third(second[0], third)
        return third


@model
class Tied(Base):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 24), nn.Linear(16, 24)
        self.down.weight = self.up.weight
        self.back = nn.Linear(24, 16)

    def middle(self, x: Tensor) -> Tensor:
        x = x.mean((2, 3))
        return self.back(F.relu(self.up(x)) + F.relu(self.down(x)))


@model
class SharedFilters(Base):
    """One weight in two layers, each with a norm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(16, 16, 3, padding=1) for _ in range(2))
        self.second.weight = self.first.weight
        self.norms = nn.ModuleList(nn.BatchNorm2d(16) for _ in range(2))

    def middle(self, x: Tensor) -> Tensor:
        x = x + F.relu(self.norms[0](self.first(x)))
        return x + F.relu(self.norms[1](self.second(x)))


@model
class WeightsRead(Base):
    """Weights are read once more: for the length of filters (StyleGAN2), and backwards (tied coders)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(16, 24, 3, padding=1), nn.BatchNorm2d(24)
        self.coder, self.last = nn.Linear(24, 12), nn.Linear(24, 16)

    def middle(self, x: Tensor) -> Tensor:
        length = (self.conv.weight.square().sum((1, 2, 3)) + 1e-3).rsqrt()
        x = (F.relu(self.norm(self.conv(x))) * length[:, None, None]).mean((2, 3))
        return self.last(F.linear(self.coder(x).relu(), self.coder.weight.t()).relu())


@model
class CalledTwice(Base):
    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Conv2d(16, 16, 3, padding=1)

    def middle(self, x: Tensor) -> Tensor:
        return F.relu(self.again(F.relu(self.again(x))))


@model
class Normed(Base):
    def __init__(self) -> None:
        super().__init__(12)
        self.conv = weight_norm(nn.Conv2d(16, 12, 3))

    def middle(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x))


@model
class Glu(Base):
    def __init__(self) -> None:
        super().__init__(12)
        self.conv = nn.Conv2d(16, 24, 1)

    def middle(self, x: Tensor) -> Tensor:
        return F.glu(self.conv(x), 1)


@model
class SqueezeExcite(Base):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(16, 6), nn.Linear(6, 16)

    def middle(self, x: Tensor) -> Tensor:
        scale = torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3))))))
        return x * scale.view(x.shape[0], x.shape[1], 1, 1)


@model
class ChannelAttention(Base):
    """Efficient channel attention: a convolution over the channels themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def middle(self, x: Tensor) -> Tensor:
        y = self.conv(x.mean((2, 3)).unsqueeze(1)).squeeze(1)
        return x * torch.sigmoid(y)[:, :, None, None]


@model
class Positions(Base):
    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(1, 16, 8, 8))
        self.token = nn.Parameter(torch.randn(1, 1, 16))

    def middle(self, x: Tensor) -> Tensor:
        x = (x + self.position).flatten(2).transpose(1, 2)
        return torch.cat([self.token.expand(len(x), -1, -1), x], 1).mean(1)


@model
class EmptySlices(Base):
    """Windows that are shifted by nothing, as in Swin; and a part that is empty."""

    def middle(self, x: Tensor) -> Tensor:
        mask = x.new_zeros(8, 8)
        for rows in (slice(0, -4), slice(-8, 0), slice(-4, None)):
            mask[rows] = float(rows.start)
        first, second = x.split([x.shape[1], 0], 1)
        return torch.cat([first, second, x[:, :0]], 1) + mask


@model
class Gathered(Base):
    def __init__(self) -> None:
        super().__init__(5)
        self.register_buffer("chosen", torch.tensor([1, 3, 5, 7, 9]))

    def middle(self, x: Tensor) -> Tensor:
        return x[:, self.chosen]


@model
class Branching(Base):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(16, 16, 1)

    def middle(self, x: Tensor) -> Tensor:
        return self.body(x) if x.shape[1] > 100 else x + self.body(x)


@model
class PlainList(Base):
    """Modules that PyTorch does not know of cannot be pruned, and must not break."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = [nn.Conv2d(16, 16, 1)]

    def middle(self, x: Tensor) -> Tensor:
        return F.relu(self.hidden[0](x))


@model
class InPlaceSlices(Base):
    def middle(self, x: Tensor) -> Tensor:
        y = x.clone()
        y[:, 4:8] += x[:, 0:4]
        return y


@model
class LiteralParts(Base):
    """Fixed parts are treated each in its way; after a cut other channels would be in them."""

    def middle(self, x: Tensor) -> Tensor:
        return torch.cat([2 * x[:, :4], x[:, 4:8].square(), x[:, 8:]], 1)


@model
class InPlacePart(Base):
    """Of half of the channels, two are between 4 and 8 as well, but others."""

    def __init__(self) -> None:
        super().__init__(12)
        self.inner = nn.Conv2d(16, 12, 1)

    def middle(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        y[:, 4:8] *= 2
        return y


@model
class TransposedGroups(Base):
    def __init__(self) -> None:
        super().__init__(8)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2, groups=4)

    def middle(self, x: Tensor) -> Tensor:
        return self.up(x)


@model
class GroupNormed(Base):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, 16)

    def middle(self, x: Tensor) -> Tensor:
        return self.norm(x)


@model
class LiteralGroups(Base):
    """A number of groups that no attribute holds."""

    def middle(self, x: Tensor) -> Tensor:
        return F.group_norm(x, 4)


@model
class ToldSizes(Base):
    """Unequal parts and a shape, both told by attributes (MambaOut, LayerScale)."""

    def __init__(self) -> None:
        super().__init__(6)
        self.parts = (10, 6)
        self.shape = [6, 1, 1]
        self.scale = nn.Parameter(torch.ones(6))
        self.mix = nn.Conv2d(10, 6, 1)

    def middle(self, x: Tensor) -> Tensor:
        first, second = x.split(self.parts, 1)
        return self.mix(first) * second * self.scale.view(self.shape)


@model
class ToldByAPart(Base):
    """A module inside says where to split, as in RAFT."""

    def __init__(self) -> None:
        super().__init__(6)
        self.part = Gate(10, 6)

    def middle(self, x: Tensor) -> Tensor:
        first, second = x.split([self.part.hidden_size, x.shape[1] - self.part.hidden_size], 1)
        return self.part(first) * second


class Gate(nn.Module):
    def __init__(self, hidden_size: int, out: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.mix = nn.Conv2d(hidden_size, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x)


@model
class LiteralSplit(Base):
    def __init__(self) -> None:
        super().__init__(6)
        self.mix = nn.Conv2d(10, 6, 1)

    def middle(self, x: Tensor) -> Tensor:
        first, second = x.split([10, 6], 1)
        return self.mix(first) * second


@model
class InstanceNormed(Base):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(16, affine=True)

    def middle(self, x: Tensor) -> Tensor:
        return self.norm(x)


@model
class PerChannelPReLU(Base):
    def __init__(self) -> None:
        super().__init__()
        self.act = nn.PReLU(16)

    def middle(self, x: Tensor) -> Tensor:
        return self.act(x)


@model
class FollowingBuffer(Base):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.rand(16) + 0.5)
        self.register_buffer("shift", torch.rand(1, 16, 1, 1), persistent=False)

    def middle(self, x: Tensor) -> Tensor:
        return x * self.scale[:, None, None] + self.shift


@model
class MultiHead(Base):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))

    def middle(self, x: Tensor) -> Tensor:
        x = x.flatten(2).transpose(1, 2)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return (x + self.mlp(x)).mean(1)


@model
class CrossAttention(Base):
    """Keys and values of widths of their own, and one more of each."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, kdim=12, vdim=6, add_bias_kv=True, batch_first=True)
        self.keys, self.values = nn.Conv2d(3, 12, 1), nn.Conv2d(3, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        inputs = (layer(x).flatten(2).transpose(1, 2) for layer in (self.stem, self.keys, self.values))
        return self.head(self.attention(*inputs)[0].mean(1))


@model
class FakeQuantised(Base):
    """Trained for 8 bits."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(0.05))
        self.register_buffer("zero", torch.tensor(0, dtype=torch.int32))

    def middle(self, x: Tensor) -> Tensor:
        x = torch.fake_quantize_per_tensor_affine(x.float(), 0.02, 0, 0, 255)
        return torch.fake_quantize_per_tensor_affine(x, self.scale.float(), self.zero, 0, 255).double()


@model
class DictOutput(Base):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = F.relu(self.stem(x))
        return {"logits": self.head(features.mean((2, 3))), "size": features.mean(1)}


@model
class Wavy(Base):
    """Operators without a rule."""

    def middle(self, x: Tensor) -> Tensor:
        return torch.fft.fft(x, dim=1).real


@model
class FusedAttention(Base):
    """Head sizes as attributes, one fused projection, and a scale that follows the width."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim = 4, 4
        self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)

    def middle(self, x: Tensor) -> Tensor:
        x = x.flatten(2).transpose(1, 2)
        n, length, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, length, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return (x + self.proj(mixed.transpose(1, 2).reshape(n, length, -1))).mean(1)


@model
class GroupedQueries(Base):
    """Fewer keys than queries, head width a literal of the module, heads counted by -1."""

    def __init__(self) -> None:
        super().__init__()
        self.head_dim, self.num_key_value_groups, self.scaling = 4, 2, 0.5
        self.q_proj, self.k_proj, self.v_proj = nn.Linear(16, 32), nn.Linear(16, 16), nn.Linear(16, 16)
        self.o_proj = nn.Linear(32, 16)

    def middle(self, x: Tensor) -> Tensor:
        x = x.flatten(2).transpose(1, 2)
        shape = (*x.shape[:2], -1, self.head_dim)
        q, k, v = (p(x).view(shape).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        k, v = (t.repeat_interleave(self.num_key_value_groups, 1) for t in (k, v))
        mixed = (q @ k.transpose(2, 3) * self.scaling).softmax(-1) @ v
        return (x + self.o_proj(mixed.transpose(1, 2).flatten(2))).mean(1)


@model
class EncoderLayer(Base):
    """torch's own encoder layer, which has a fused path of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=True)

    def middle(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(2).transpose(1, 2)).mean(1)


@model
class Sampled(Base):
    """Read at places that the network finds itself."""

    def __init__(self) -> None:
        super().__init__()
        self.offset, self.weight = nn.Conv2d(16, 18, 3, padding=1), nn.Parameter(torch.randn(16, 16, 3, 3) / 12)
        self.where = nn.Conv2d(16, 2, 1)

    def middle(self, x: Tensor) -> Tensor:
        x = deform_conv2d(x, self.offset(x), self.weight, padding=1)
        return F.grid_sample(x, self.where(x).tanh().permute(0, 2, 3, 1), align_corners=False)


@model
class RegionsOfInterest(Base):
    def middle(self, x: Tensor) -> Tensor:
        boxes = torch.tensor([[0.0, 0.0, 0.0, 5.0, 5.0], [0.0, 1.0, 2.0, 7.0, 6.0]], dtype=x.dtype, device=x.device)
        return roi_align(x, boxes, (4, 4))


@model
class Modulated(Base):
    """Every image has weights of its own, computed and laid side by side in a grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.style, self.weight = nn.Linear(16, 16), nn.Parameter(torch.randn(1, 16, 16, 3, 3) / 12)

    def middle(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        weights = self.weight * (self.style(x.mean((2, 3))).view(n, 1, -1, 1, 1) + 1)
        return F.conv2d(x.reshape(1, -1, h, w), weights.flatten(0, 1), padding=1, groups=n).view(n, -1, h, w)


@model
class Fourier(Base):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(32, 32, 1)

    def middle(self, x: Tensor) -> Tensor:
        waves = torch.view_as_real(torch.fft.rfft2(x))
        mixed = F.relu(self.mix(waves.permute(0, 1, 4, 2, 3).flatten(1, 2))).unflatten(1, (-1, 2))
        return torch.fft.irfft2(torch.view_as_complex(mixed.permute(0, 1, 3, 4, 2).contiguous()), s=x.shape[2:])


@model
class SpectralConvolution(Base):
    """A weight of complex numbers for each of the lowest frequencies (Li et al. 2021, arXiv 2010.08895)."""

    def __init__(self) -> None:
        super().__init__(32)
        self.modes = nn.Parameter(torch.randn(16, 32, 3, 3, dtype=torch.complex64) / 16)
        self.beside = nn.Conv2d(16, 32, 1)

    def middle(self, x: Tensor) -> Tensor:
        waves = torch.fft.rfft2(x)
        low = waves.new_zeros(len(x), self.modes.shape[1], *waves.shape[2:])
        low[:, :, :3, :3] = torch.einsum("bixy,ioxy->boxy", waves[:, :, :3, :3], self.modes.to(waves.dtype))
        return F.gelu(torch.fft.irfft2(low, s=x.shape[2:]) + self.beside(x))


@model
class Patches(Base):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv1d(16 * 9, 16 * 9, 1)

    def middle(self, x: Tensor) -> Tensor:
        return F.fold(F.relu(self.mix(F.unfold(x, 3, padding=1))), x.shape[2:], 3, padding=1)


@model
class Unpooled(Base):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(16, 16, 3, padding=1)

    def middle(self, x: Tensor) -> Tensor:
        pooled, places = F.max_pool2d(x, 2, return_indices=True)
        return self.inner(F.max_unpool2d(pooled, places, 2))


@model
class Circular(Base):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(16, 16, 3, padding=1, padding_mode="circular")

    def middle(self, x: Tensor) -> Tensor:
        return self.inner(x)


@model
class Sorted(Base):
    def middle(self, x: Tensor) -> Tensor:
        best = x.flatten(2).topk(4, dim=2).values.mean(2)
        return x.sort(3).values * best[..., None, None] + torch.index_select(x, 2, torch.arange(7, -1, -1))


@model
class AcrossHeads(Base):
    """Statistics, padding and sorting along the heads: every head loses the same channels."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.mix = nn.Conv2d(16, 16, 1), nn.Conv2d(4 * (4 + 5 + 2), 16, 1)

    def middle(self, x: Tensor) -> Tensor:
        heads = self.value(x).unflatten(1, (4, -1))
        padded, best = F.pad(heads, (0, 0, 0, 0, 0, 0, 1, 0)), heads.topk(2, 1).values
        return self.mix(torch.cat([heads.softmax(1), padded, best], 1).flatten(1, 2))


@model
class Messages(Base):
    """Nodes of a graph send what they hold along edges."""

    def __init__(self) -> None:
        super().__init__()
        self.message = nn.Linear(16, 24)
        self.update = nn.Linear(24, 16)

    def middle(self, x: Tensor) -> Tensor:
        nodes = x.flatten(2).transpose(1, 2)
        sources, targets = torch.arange(64), torch.arange(64).flip(0) // 2
        sent = self.message(nodes[:, sources])
        received = torch.zeros(len(x), 64, 24, dtype=x.dtype, device=x.device).index_add(1, targets, sent)
        return (nodes + self.update(received)).mean(1)


@model
class WrittenRow(Base):
    """As many values are written as another tensor has channels."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Linear(16, 16)

    def middle(self, x: Tensor) -> Tensor:
        rows = x.flatten(2).transpose(1, 2)
        first = torch.zeros(len(x), 1, x.shape[1], dtype=torch.int64, device=x.device)
        return self.value(rows).scatter(1, first, 0.5).mean(1)


class Tokens(Base):
    """Places of an image as rows, of which some are picked or written."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.score = nn.Linear(16, 16), nn.Linear(16, 1)

    def pick(self, rows: Tensor, best: Tensor) -> Tensor:
        raise NotImplementedError

    def middle(self, x: Tensor) -> Tensor:
        rows = x.flatten(2).transpose(1, 2)
        best = self.score(rows).squeeze(-1).topk(8, 1).indices.unsqueeze(-1)
        return self.pick(self.value(rows), best).mean(1)


@model
class PickedTokens(Tokens):
    def pick(self, rows: Tensor, best: Tensor) -> Tensor:
        return rows.gather(1, best.expand(-1, -1, rows.shape[2])) + torch.take_along_dim(rows, best, 1)


@model
class WrittenTokens(Tokens):
    def pick(self, rows: Tensor, best: Tensor) -> Tensor:
        index = best.repeat(1, 1, rows.shape[2])
        added = torch.zeros_like(rows).scatter_add(1, index, rows)
        return added.scatter_(1, index, rows.tanh()).scatter_reduce(1, index, rows, "amax").scatter(1, index, 0.5)


@model
class PickedByNumber(Tokens):
    """The width of the index is a number in the code."""

    def pick(self, rows: Tensor, best: Tensor) -> Tensor:
        return rows.gather(1, best.expand(-1, -1, 16))


@model
class PickedInPart(Tokens):
    """The index covers some of the channels."""

    def pick(self, rows: Tensor, best: Tensor) -> Tensor:
        return torch.cat([rows.gather(1, best.expand(-1, -1, 12)), rows[:, :8, 12:]], 2)


@model
class PickedChannels(Tokens):
    """Channels are picked by what they hold."""

    def pick(self, rows: Tensor, best: Tensor) -> Tensor:
        return rows.gather(2, rows.argsort(2))[:, : best.shape[1]]


@model
class PickedByBuffer(Tokens):
    """Every channel picks its own places."""

    order: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("order", torch.randint(0, 64, (1, 8, 16), generator=torch.Generator().manual_seed(0)))

    def pick(self, rows: Tensor, best: Tensor) -> Tensor:
        return rows.gather(1, self.order.expand(len(rows), -1, -1)) + best


class Weighed(Base):
    """A map of one channel that is as wide as what it weighs, in many ways."""

    def __init__(self) -> None:
        super().__init__()
        self.map, self.after = nn.Conv2d(16, 1, 3, padding=1), nn.Conv2d(16, 16, 1)

    def weigh(self, x: Tensor, weights: Tensor) -> Tensor:
        raise NotImplementedError

    def middle(self, x: Tensor) -> Tensor:
        return self.after(self.weigh(x, self.map(x).sigmoid()))


@model
class ExpandedMap(Weighed):
    def weigh(self, x: Tensor, weights: Tensor) -> Tensor:
        return x * weights.expand_as(x) + weights.repeat(1, x.shape[1], 1, 1).tanh()


@model
class OnesLikeX(Weighed):
    def weigh(self, x: Tensor, weights: Tensor) -> Tensor:
        wide = torch.ones(x.shape, dtype=x.dtype, device=x.device) + x.new_full(x.shape, 0.5)
        return torch.cat([x * wide * weights, x.new_ones(x.shape)], 2)


@model
class ExpandedByNumber(Weighed):
    def weigh(self, x: Tensor, weights: Tensor) -> Tensor:
        return x * weights.expand(-1, 16, -1, -1)


@model
class CountedChannels(Weighed):
    """How many channels there are is seen by a sum."""

    def weigh(self, x: Tensor, weights: Tensor) -> Tensor:
        wide = weights.expand_as(x)
        count = wide.sum(1, keepdim=True)
        return x * wide + count


@model
class CountedLater(Weighed):
    def weigh(self, x: Tensor, weights: Tensor) -> Tensor:
        wide = weights.expand_as(x)
        doubled = wide * 2
        return x * wide + doubled.sum(1, keepdim=True)


@model
class NumberInTwoViews(Base):
    """One attribute holds the width of three layers, two of which are multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 8
        self.query, self.key, self.value = (nn.Conv2d(16, 8, 1) for _ in range(3))
        self.out = nn.Conv2d(8, 16, 1)

    def middle(self, x: Tensor) -> Tensor:
        n, _, *size = x.shape
        query, key, value = (layer(x).view(n, self.width, -1) for layer in (self.query, self.key, self.value))
        mixed = value @ (query.transpose(1, 2) @ key).softmax(-1)
        return x + self.out(mixed.view(n, self.width, *size))


@model
class NumberOfSplit(Base):
    def __init__(self) -> None:
        super().__init__(8)
        self.width = 8
        self.conv = nn.Conv2d(16, 16, 3, padding=1)

    def middle(self, x: Tensor) -> Tensor:
        first, second = torch.split(self.conv(x), self.width, 1)
        return torch.max(first, second)


@model
class NumberOfHeads(Base):
    """An activation whose slopes a layer gives, four for each channel (dynamic ReLU)."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 16
        self.slopes = nn.Linear(16, 64)

    def middle(self, x: Tensor) -> Tensor:
        slopes = self.slopes(x.mean((2, 3))).view(-1, self.width, 4)
        places = x.permute(2, 3, 0, 1).unsqueeze(-1)
        return (places * slopes[..., :2] + slopes[..., 2:]).amax(-1).permute(2, 3, 0, 1)


@model
class SharedFilter(Base):
    """Every channel goes through the same filter."""

    blur: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("blur", torch.tensor([[[[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]]]) / 16)

    def middle(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.blur.expand(x.shape[1], -1, -1, -1), padding=1, groups=x.shape[1])


@model
class MaskedMean(Base):
    """The mean over some places, as sentence embeddings are made."""

    def middle(self, x: Tensor) -> Tensor:
        rows = x.flatten(2).transpose(1, 2)
        mask = (torch.arange(rows.shape[1], device=x.device) % 3 > 0)[None, :, None].expand(rows.shape).to(x.dtype)
        return (rows * mask).sum(1) / mask.sum(1).clamp(min=1e-9)


@model
class Experts(Base):
    """Each place goes to two of four experts; to some of them, none may go."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(16, 4)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16)) for _ in range(4))

    def middle(self, x: Tensor) -> Tensor:
        rows = x.flatten(2).transpose(1, 2).flatten(0, 1)
        weights, chosen = self.gate(rows).softmax(-1).topk(2, -1)
        mixed = torch.zeros_like(rows)
        for number, expert in enumerate(self.experts):
            place, rank = torch.where(chosen == number)
            mixed.index_add_(0, place, expert(rows[place]) * weights[place, rank, None])
        return mixed.unflatten(0, (len(x), -1)).mean(1)


@model
class BiasByIndex(Base):
    """Heads as wide as a share of the stream, with a bias that is looked up by how far places are apart (Swin)."""

    apart: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.table, self.qkv, self.mix = nn.Parameter(torch.randn(15, 1)), nn.Linear(16, 48), nn.Linear(16, 16)
        self.register_buffer("apart", torch.arange(8)[:, None] - torch.arange(8)[None] + 7)

    def middle(self, x: Tensor) -> Tensor:
        rows = x.mean(3).transpose(1, 2)
        n, t, c = rows.shape
        query, key, value = self.qkv(rows).reshape(n, t, 3, 2, c // 2).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.table[self.apart.view(-1)].view(t, t)
        heads = (query @ key.transpose(-1, -2) + bias).softmax(-1) @ value
        return self.mix(heads.transpose(1, 2).reshape(n, t, c)).mean(1)


@model
class Unseen(Base):
    """A layer computes what nobody looks at."""

    def __init__(self) -> None:
        super().__init__()
        self.aside = nn.Conv2d(16, 5, 3, padding=1)

    def middle(self, x: Tensor) -> Tensor:
        self.map = self.aside(x.tanh()).softmax(1)
        return x


@model
class CutByNumber(Base):
    """Gated parts of a layer's output, cut where an attribute says (TabNet)."""

    def __init__(self) -> None:
        super().__init__(12)
        self.width = 12
        self.conv, self.norm = nn.Conv2d(16, 24, 3, padding=1), nn.BatchNorm2d(24)

    def middle(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return x[:, : self.width] * x[:, self.width :].sigmoid()


@model
class UnevenCut(Base):
    def __init__(self) -> None:
        super().__init__(10)
        self.taken = 10
        self.conv, self.rest = nn.Conv2d(16, 24, 3, padding=1), nn.Conv2d(14, 10, 1)

    def middle(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu()
        return x[:, : self.taken] + self.rest(x[:, self.taken :])


@model
class SumNobodyReads(Base):
    """The last residual of a stack whose skips alone are read (WaveNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.skip, self.residual = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)

    def middle(self, x: Tensor) -> Tensor:
        self.stream = x[:, :, -x.shape[2] :] + self.residual(x.tanh())
        return self.skip(x.tanh())


@model
class NormedStack(Base):
    """Weight norm on convolutions that read each other, transposed and depthwise ones included."""

    def __init__(self) -> None:
        super().__init__(12)
        self.first = weight_norm(nn.Conv2d(16, 24, 3, padding=1))
        self.depthwise = torch.nn.utils.weight_norm(nn.Conv2d(24, 24, 3, padding=1, groups=24))
        self.up = weight_norm(nn.ConvTranspose2d(24, 12, 2, 2))

    def middle(self, x: Tensor) -> Tensor:
        return self.up(self.depthwise(F.elu(self.first(x))).sigmoid())


@model
class GroupedStream(Base):
    """A convolution in groups on a stream whose channels it ties across its groups."""

    def __init__(self) -> None:
        super().__init__(24)
        self.wide, self.grouped = nn.Conv2d(16, 24, 1), nn.Conv2d(24, 24, 3, padding=1, groups=4)

    def middle(self, x: Tensor) -> Tensor:
        x = self.wide(x)
        return x + self.grouped(x).relu()


@model
class Bags(Base):
    """Embeddings that are summed up in bags."""

    def __init__(self) -> None:
        super().__init__(24)
        self.bag, self.up = nn.EmbeddingBag(5, 16, mode="sum"), nn.Linear(16, 24)

    def middle(self, x: Tensor) -> Tensor:
        chosen = torch.arange(3, device=x.device).expand(len(x), -1)
        return self.up(x.mean((2, 3)) * self.bag(chosen))


@model
class TwoSided(Base):
    """A bilinear layer."""

    def __init__(self) -> None:
        super().__init__(10)
        self.first, self.second, self.both = nn.Linear(16, 12), nn.Linear(16, 8), nn.Bilinear(12, 8, 10)

    def middle(self, x: Tensor) -> Tensor:
        x = x.mean((2, 3))
        return self.both(self.first(x).relu(), self.second(x).sigmoid())


@model
class Packed(Base):
    """Sequences of different lengths in a recurrent layer."""

    def __init__(self) -> None:
        super().__init__(12)
        self.lstm = nn.LSTM(16, 12, batch_first=True)

    def middle(self, x: Tensor) -> Tensor:
        lengths = torch.arange(len(x)).flip(0) + 5
        packed = nn.utils.rnn.pack_padded_sequence(x.flatten(2).transpose(1, 2), lengths, batch_first=True)
        rows, _ = nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        return rows.mean(1)


@model
class NarrowDense(Base):
    """A dense block whose layers are two channels wide: of what is halved, only one is left."""

    def __init__(self) -> None:
        super().__init__(20)
        self.layers = nn.ModuleList(nn.Conv2d(16 + 2 * n, 2, 3, padding=1) for n in range(2))

    def middle(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, layer(x).relu()], 1)
        return x


@model
class DoubleAttention(Base):
    """Two layers whose softmaxes over places are multiplied: where both are zero, they are not (A^2-Nets)."""

    def __init__(self) -> None:
        super().__init__(12)
        self.wide, self.narrow = 12, 8
        self.value, self.gather, self.spread = nn.Conv2d(16, 12, 1), nn.Conv2d(16, 8, 1), nn.Conv2d(16, 8, 1)

    def middle(self, x: Tensor) -> Tensor:
        n, _, *size = x.shape
        value = self.value(x).view(n, self.wide, -1)
        gather, spread = (layer(x).view(n, self.narrow, -1).softmax(-1) for layer in (self.gather, self.spread))
        return ((value @ gather.transpose(1, 2)) @ spread).view(n, self.wide, *size)


@model
class SpectralHooks(Base):
    """Spectral norm by hooks, whose factor follows the whole weight."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.utils.spectral_norm(nn.Conv2d(16, 24, 3, padding=1))
        self.back = nn.Conv2d(24, 16, 1)

    def middle(self, x: Tensor) -> Tensor:
        return self.back(self.conv(x).relu())


@model
class Drawn(Base):
    """A latent that is drawn, as in a variational autoencoder."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.spread, self.back = nn.Linear(16, 6), nn.Linear(16, 6), nn.Linear(6, 16)

    def middle(self, x: Tensor) -> Tensor:
        x = x.mean((2, 3))
        mean, spread = self.mean(x), self.spread(x)
        return self.back(mean + torch.randn_like(mean) * (spread / 2).exp()).relu()


@model
class Noisy(Base):
    """What is drawn for each channel is another number where there are fewer."""

    def middle(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn_like(x)


@model
class AlwaysDropped(Base):
    """Dropout that stays on (Monte Carlo)."""

    def middle(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.2, training=True)


@model
class DroppedPlanes(Base):
    def middle(self, x: Tensor) -> Tensor:
        return F.dropout2d(x, 0.2, training=True)


@model
class ImageOfAVector(Base):
    """A vector that becomes an image, as in generators and decoders."""

    def __init__(self) -> None:
        super().__init__(8)
        self.fc, self.up = nn.Linear(16, 12 * 4), nn.ConvTranspose2d(12, 8, 3, stride=2)
        self.width, self.shape, self.unflatten = 12, (12, 2, 2), nn.Unflatten(1, (12, 2, 2))

    def image(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], -1, 2, 2)

    def middle(self, x: Tensor) -> Tensor:
        return self.up(self.image(self.fc(x.mean((2, 3)))))


@model
class ImageByShape(ImageOfAVector):
    def image(self, x: Tensor) -> Tensor:
        return x.view(-1, *self.shape)


@model
class ImageByWidth(ImageOfAVector):
    def image(self, x: Tensor) -> Tensor:
        return x.reshape(-1, self.width, 2, 2)


@model
class ImageByUnflatten(ImageOfAVector):
    def image(self, x: Tensor) -> Tensor:
        return self.unflatten(x)


@model
class DividedByTorch(Base):
    """Two plain numbers are divided by an op of torch (Longformer), which then takes no tensor."""

    def middle(self, x: Tensor) -> Tensor:
        half = int(torch.div(x.shape[2], 2, rounding_mode="trunc"))
        return x.unflatten(2, (2, half)).mean(2)


@model
class UnitLength(Base):
    """Places of length one, scaled for each channel (SSD), by a function or by hand; and how far they are from zero."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.conv = nn.Parameter(torch.rand(16, 1, 1) + 0.5), nn.Conv2d(16, 16, 1)

    def middle(self, x: Tensor) -> Tensor:
        unit = self.conv(F.normalize(x) * self.scale)
        unit = unit * torch.rsqrt(unit.square().sum(1, keepdim=True) + 1e-6)
        return unit + unit.abs().sum(1, keepdim=True)


@model
class DotProducts(Base):
    """Two halves of an image meet as products and as cosines of their features."""

    def __init__(self) -> None:
        super().__init__(6)
        self.left, self.right = nn.Linear(16, 12), nn.Linear(16, 12)

    def middle(self, x: Tensor) -> Tensor:
        left, right = self.left(x.mean((2, 3))), self.right(x.amax((2, 3)))
        both = [(left * right).sum(-1), F.cosine_similarity(left, right), F.pairwise_distance(left, right)]
        both += [(left - right).pow(2).sum(-1), left.norm(dim=-1), torch.einsum("nc,nc->n", left, right.tanh())]
        return torch.stack(both, 1)


@model
class Distances(Base):
    """How far places are from prototypes; torch has one op for many rows and one for few."""

    def __init__(self) -> None:
        super().__init__(5)
        self.value, self.prototypes = nn.Linear(16, 12), nn.Parameter(torch.randn(5, 12))

    def middle(self, x: Tensor) -> Tensor:
        rows = self.value(x.flatten(2).transpose(1, 2))
        prototypes = self.prototypes.expand(len(x), -1, -1)
        return torch.cdist(rows, prototypes).amin(1) + torch.cdist(rows[:, :4], prototypes).amin(1)


@model
class GraphAttention(Base):
    """Scores are sums over the channels of a head (Velickovic et al. 2018)."""

    def __init__(self) -> None:
        super().__init__(24)
        self.value, self.source = nn.Linear(16, 24), nn.Parameter(torch.randn(1, 2, 12))
        self.target = nn.Parameter(torch.randn(1, 2, 12))

    def middle(self, x: Tensor) -> Tensor:
        rows = self.value(x.flatten(2).transpose(1, 2))
        heads = rows.view(*rows.shape[:2], 2, -1)
        scores = (heads * self.source).sum(-1)[:, :, None] + (heads * self.target).sum(-1)[:, None]
        weights = F.leaky_relu(scores).softmax(2)
        return torch.einsum("nijh,njhc->nihc", weights, heads).flatten(2).mean(1)


@model
class SumOfConstants(Base):
    """A sum over channels of which none is zero when its filter is."""

    def middle(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x - 1).sum(1, keepdim=True)


@model
class ConvolutionalState(Base):
    """A state of as many channels as the image has rows, as its cell says (Shi et al. 2015)."""

    class Cell(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.width, self.gates = width, nn.Conv2d(16 + width, 4 * width, 3, padding=1)

        def start(self, x: Tensor) -> tuple[Tensor, Tensor]:
            state = torch.zeros(len(x), self.width, *x.shape[2:], device=x.device, dtype=x.dtype)
            return state, state.clone()

        def forward(self, x: Tensor, state: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
            keep, write, show, new = torch.split(self.gates(torch.cat([x, state], 1)), self.width, 1)
            memory = keep.sigmoid() * memory + write.sigmoid() * new.tanh()
            return show.sigmoid() * memory.tanh(), memory

    def __init__(self) -> None:
        super().__init__(8)
        self.cell = self.Cell(8)

    def middle(self, x: Tensor) -> Tensor:
        state, memory = self.cell.start(x)
        for _ in range(2):
            state, memory = self.cell(x, state, memory)
        return state


@model
class Splines(Base):
    """Weights computed from two parameters, and a buffer for each channel that is divided by (KAN)."""

    def __init__(self) -> None:
        super().__init__(6)
        self.inner, self.scale = nn.Linear(16, 12), nn.Parameter(torch.rand(6, 12))
        self.weight = nn.Parameter(torch.randn(6, 12, 5))
        self.register_buffer("grid", torch.linspace(-2, 2, 6).repeat(12, 1))

    def middle(self, x: Tensor) -> Tensor:
        x = self.inner(x.mean((2, 3))).tanh()[..., None]
        bases = 1 / (1 + ((x - self.grid[:, :-1]) / (self.grid[:, 1:] - self.grid[:, :-1])).square())
        return F.linear(bases.flatten(1), (self.weight * self.scale[..., None]).flatten(1))


@model
class LinearAttention(Base):
    """Products that torch computes in another way where a head has one channel (Katharopoulos et al. 2020)."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(3))

    def middle(self, x: Tensor) -> Tensor:
        rows = x.flatten(2).transpose(1, 2)
        query, key, value = (f(rows).unflatten(2, (4, -1)) for f in (self.query, self.key, self.value))
        memory = torch.einsum("bnhd,bnhe->bhde", key.sigmoid(), value)
        return torch.einsum("bnhd,bhde->bnhe", query.sigmoid(), memory).flatten(2).mean(1)


@model
class Retention(Base):
    """Channels that forget at a pace of their own what lies before a place (Sun et al. 2023)."""

    def __init__(self) -> None:
        super().__init__()
        self.scores, self.mix = nn.Conv2d(16, 4, 1), nn.Linear(4, 16)
        self.pace = nn.Parameter(torch.rand(4) - 1)

    def middle(self, x: Tensor) -> Tensor:
        place = torch.arange(64, device=x.device, dtype=x.dtype)
        decay = (self.pace[:, None, None] * (place[:, None] - place)).exp().tril()
        weights = (self.scores(x).flatten(2)[:, :, None].sigmoid() * decay).triu(-8)
        return self.mix(weights.mean(-1).mean(-1))


@model
class Bases(Base):
    """Each input of a layer becomes some functions of it, and a sum runs over both (FastKAN)."""

    def __init__(self) -> None:
        super().__init__(6)
        self.inner, self.centres = nn.Linear(16, 12), nn.Parameter(torch.linspace(-1, 1, 5))
        self.weight = nn.Parameter(torch.randn(12, 6, 5))

    def middle(self, x: Tensor) -> Tensor:
        x = self.inner(x.mean((2, 3)))
        return torch.einsum("nid,iod->no", (-(x[..., None] - self.centres).square()).exp(), self.weight)


@model
class PixelsAsChannels(Base):
    """A kernel of one mixes places, and channels lie where its pixels are: a gate over tokens (Liu et al. 2021)."""

    def __init__(self) -> None:
        super().__init__(12)
        self.inner, self.mix = nn.Linear(16, 24), nn.Conv1d(64, 64, 1)

    def middle(self, x: Tensor) -> Tensor:
        value, gate = self.inner(x.flatten(2).transpose(1, 2)).chunk(2, 2)
        return (value * self.mix(gate)).mean(1)


@model
class TimeAsChannel(Base):
    """One channel is looked at for its shape alone; the steps of an ODE (Chen et al. 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.step = nn.GroupNorm(4, 16), nn.Conv2d(17, 16, 3, padding=1)

    def middle(self, x: Tensor) -> Tensor:
        for t in (0.25, 0.75):
            x = x + self.step(torch.cat([torch.ones_like(x[:, :1]) * t, self.norm(x)], 1))
        return x
