"""Groups: what is coupled is found, and what cannot be followed is frozen with a reason."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunecli
from prunecli.errors import InputError
from prunecli.graph.channels import Channels, Group, trace
from prunecli.graph.rules.call import RULES, Call
from prunecli.graph.tape import Example
from prunecli.surgery.plan import repair


def channels_of(module: nn.Module, *shape: int) -> Channels:
    return trace(module.eval(), Example((torch.zeros(shape),)))


def group_of(channels: Channels, member: str) -> Group:
    return next(g for g in channels.groups if member in channels.member_names(g))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        x = x + self.norm(self.second(x))
        return self.head(x.mean((2, 3)))


class Concatenated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 6, 1), nn.Conv2d(10, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.cat([self.a(x), self.b(x)], 1)).mean((2, 3))


class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x))).mean((2, 3))


class Flattened(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 25, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).flatten(1))


class ChannelsLast(nn.Module):
    """Pools to one pixel in another memory layout, which torch does with `as_strided_`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).contiguous(memory_format=torch.channels_last)
        return self.head(F.adaptive_avg_pool2d(x, 1)).flatten(1)


class Renormed(nn.Module):
    """An op without a rule."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.renorm(self.conv(x), 2, 1, 1.0)).mean((2, 3))


def test_pooling_does_not_depend_on_the_memory_layout() -> None:
    channels = channels_of(ChannelsLast(), 2, 3, 5, 5)
    assert any(op.name == "aten.as_strided_" for op in channels.tape.ops)
    assert not channels.unknown
    assert group_of(channels, "conv.weight[0]").frozen == ""


def test_residual_couples_both_writers() -> None:
    channels = channels_of(Residual(), 1, 3, 5, 5)
    stream = group_of(channels, "first.weight[0]")
    names = set(channels.member_names(stream))
    assert {"first.weight[0]", "second.weight[0]", "second.weight[1]", "norm.weight[0]", "head.weight[1]"} <= names
    assert len(stream.channels) == 8
    assert stream.frozen == ""


def test_concatenation_keeps_the_parts_apart() -> None:
    channels = channels_of(Concatenated(), 1, 3, 5, 5)
    first, second = group_of(channels, "a.weight[0]"), group_of(channels, "b.weight[0]")
    assert (len(first.channels), len(second.channels)) == (4, 6)
    read = next(slot for slot in channels.slots if (slot.name, slot.dim) == ("c.weight", 1))
    assert read.channels.tolist() == [*first.channels.tolist(), *second.channels.tolist()]
    assert "c.weight[1]" in channels.member_names(first)
    assert "c.weight[1]" in channels.member_names(second)


def test_depthwise_ties_input_and_output() -> None:
    channels = channels_of(Depthwise(), 1, 3, 5, 5)
    assert {"a.weight[0]", "b.weight[0]", "b.bias[0]", "c.weight[1]"} <= set(
        channels.member_names(group_of(channels, "a.weight[0]"))
    )


def test_grouped_rows_keep_equal_counts() -> None:
    """Four groups of three rows: a wish for two rows of one group is granted in all groups or in none."""
    net = nn.Sequential(nn.Conv2d(8, 12, 3, groups=4), nn.ReLU(), nn.Conv2d(12, 2, 1), nn.Flatten(2))
    channels = channels_of(net, 1, 8, 3, 3)
    (rows,) = (block for block in channels.blocks if block.shape == (4, 3))
    wish = np.zeros(channels.count, dtype=np.bool_)
    wish[rows[0, :2]] = wish[rows[1:, 0]] = True
    removed = repair(channels, wish)
    assert removed[rows].sum(axis=1).tolist() == [1, 1, 1, 1]


class TokenMixer(nn.Module):
    """(N, 6, 5) -> (N, 6): the features of tokens lie where a convolution has its pixels."""

    def __init__(self, mix: nn.Module) -> None:
        super().__init__()
        self.inner, self.mix = nn.Linear(5, 9), mix

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.inner(x).relu()).sum(2)


@pytest.mark.parametrize(
    ("mix", "free"),
    [(nn.Conv1d(6, 6, 1), True), (nn.ConvTranspose1d(6, 6, 1), True), (nn.Conv1d(6, 6, 3, padding=1), False),
     (nn.Conv1d(6, 6, 1, padding=1), False), (nn.Conv1d(6, 6, 1, stride=4, padding=12), False),
     (nn.Conv1d(6, 6, 3), False), (nn.Conv1d(6, 6, 1, stride=2), False), (nn.ConvTranspose1d(6, 6, 3), False)],
)  # fmt: skip
def test_channels_pass_a_convolution_that_sees_one_pixel(mix: nn.Module, free: bool) -> None:
    channels = channels_of(TokenMixer(mix), 1, 6, 5)
    assert (group_of(channels, "inner.weight[0]").frozen == "") == free


def _written(x: Tensor) -> Tensor:
    made = torch.zeros_like(x)
    part = made[:, :, 1:].copy_(x[:, :, 1:])
    return made + torch.ones_like(part).shape[1]


def _looked_at(x: Tensor) -> Tensor:
    return torch.zeros_like(x) if x.sum() > 0 else torch.ones_like(x)


def _item(x: Tensor) -> Tensor:
    return torch.full_like(x, x[0, 0, 0, 0].item())


def _listed(x: Tensor) -> Tensor:
    return torch.full_like(x, x.flatten().tolist()[0])


class OneMore(nn.Module):
    """A channel beside those of `first`, made from its first."""

    def __init__(self, made: Callable[[Tensor], Tensor], *, returned: bool = False) -> None:
        super().__init__()
        self.first, self.second, self.made, self.returned = nn.Conv2d(3, 6, 1), nn.Conv2d(7, 4, 1), made, returned

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        x = self.first(x).relu()
        one = x[:, 0].unsqueeze(1)
        return self.second(torch.cat([x, self.made(one)], 1)), one if self.returned else None


@pytest.mark.parametrize(
    ("made", "free"),
    [(torch.ones_like, True), (lambda x: torch.full_like(x + 1, 2.0).exp(), True), (torch.exp, False),
     (lambda x: torch.zeros_like(x).index_copy(0, torch.tensor([0]), x), False), (_written, False),
     (_looked_at, False), (_item, False), (_listed, False)],
)  # fmt: skip
def test_a_channel_that_is_picked_stays_unless_its_shape_alone_matters(
    made: Callable[[Tensor], Tensor], free: bool
) -> None:
    channels = channels_of(OneMore(made), 1, 3, 4, 4)
    assert (group_of(channels, "first.weight[0]").frozen == "") == free
    assert group_of(channels_of(OneMore(made, returned=True), 1, 3, 4, 4), "first.weight[0]").frozen


class GroupedResidual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide, self.grouped, self.head = nn.Conv2d(3, 32, 1), nn.Conv2d(32, 32, 1, groups=4), nn.Conv2d(32, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.wide(x)
        return self.head(x + self.grouped(x))


def test_rows_that_share_their_channels_give_back_no_more_than_they_must() -> None:
    channels = channels_of(GroupedResidual(), 1, 3, 3, 3)
    (stream,) = group_of(channels, "wide.weight[0]").channels.reshape(1, -1)
    wish = np.zeros(channels.count, dtype=np.bool_)
    wish[stream[:5]] = True  # 3 of 8 would stay, and 4 are as fast
    assert repair(channels, wish).sum() == 4


def test_flatten_ties_a_channel_to_all_its_positions() -> None:
    channels = channels_of(Flattened(), 1, 3, 5, 5)
    group = group_of(channels, "conv.weight[0]")
    slot = next(channels.slots[s] for s in group.slots if channels.slots[s].name == "head.weight")
    assert [(slot.channels == c).sum() for c in group.channels] == [25] * 4


def test_inputs_and_outputs_are_frozen() -> None:
    channels = channels_of(Residual(), 1, 3, 5, 5)
    assert group_of(channels, "head.bias[0]").frozen == "model output"


def test_a_group_of_a_group_norm_is_one_channel() -> None:
    net = nn.Sequential(nn.Conv2d(3, 12, 3), nn.GroupNorm(3, 12), nn.Conv2d(12, 4, 3))
    channels = channels_of(net, 1, 3, 9, 9)
    rows = {(slot.name, slot.dim): slot.channels for slot in channels.slots}
    assert [len(set(rows["0.weight", 0][n : n + 4].tolist())) for n in (0, 4, 8)] == [1, 1, 1]
    assert len(set(rows["0.weight", 0].tolist())) == 3
    for place in (("0.bias", 0), ("1.weight", 0), ("1.bias", 0), ("2.weight", 1)):
        assert rows[place].tolist() == rows["0.weight", 0].tolist()


def test_an_unknown_op_freezes_and_is_named() -> None:
    channels = channels_of(Renormed(), 1, 3, 5, 5)
    assert channels.unknown == {"aten.renorm": 1}
    assert "aten.renorm" in group_of(channels, "conv.weight[0]").frozen


def test_a_user_can_teach_a_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, "aten.renorm", RULES["aten.cat"])  # gone again after the test
    del RULES["aten.renorm"]

    @prunecli.rule("aten::renorm")
    def renorm(call: Call, book: object) -> list[object]:
        return [call.labels(0)]

    assert channels_of(Renormed(), 1, 3, 5, 5).unknown == {}
    assert group_of(channels_of(Renormed(), 1, 3, 5, 5), "conv.weight[0]").frozen == ""


def test_a_rule_with_labels_for_other_outputs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, "aten.renorm", lambda call, book: [(), ()])
    with pytest.raises(InputError, match="2 outputs, the op has 1"):
        channels_of(Renormed(), 1, 3, 5, 5)


def test_the_order_is_the_same_every_time() -> None:
    first, second = (channels_of(Residual(), 1, 3, 5, 5) for _ in range(2))
    assert [(g.name, g.channels.tolist()) for g in first.groups] == [
        (g.name, g.channels.tolist()) for g in second.groups
    ]


class Turns(nn.Module):
    """One half of the channels goes through a layer, then both halves take turns, by torch's own op or by hand."""

    def __init__(self, by_hand: bool) -> None:
        super().__init__()
        self.stem, self.odd, self.head = nn.Conv2d(3, 12, 1), nn.Conv2d(6, 6, 1), nn.Conv2d(12, 4, 1)
        self.by_hand = by_hand

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.stem(x).chunk(2, 1)
        x = torch.cat([first, self.odd(second)], 1)
        if self.by_hand:
            return self.head(x.view(len(x), 2, -1, *x.shape[2:]).transpose(1, 2).flatten(1, 2))
        return self.head(F.channel_shuffle(x, 2))


def test_channels_that_are_shuffled_go_in_turns() -> None:
    example = Example((torch.randn(2, 3, 4, 4),))
    by_op, by_hand = (trace(Turns(by_hand).eval(), example) for by_hand in (False, True))
    found = [{(tuple(c.member_names(g)), len(g.channels), bool(g.frozen)) for g in c.groups} for c in (by_op, by_hand)]
    assert found[0] == found[1]
    head = next(slot for slot in by_op.slots if (slot.name, slot.dim) == ("head.weight", 1))
    assert len(set(head.channels.tolist())) == 6  # of both halves together


class Layouts(nn.Module):
    """Weights whose outputs lie along different dims."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.deep = nn.ConvTranspose2d(3, 8, 2), nn.Conv2d(8, 8, 3, groups=8)
        self.normed = nn.utils.parametrizations.weight_norm(nn.ConvTranspose2d(8, 6, 2))
        self.turned, self.tied = nn.Parameter(torch.randn(6, 10)), nn.Linear(10, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.normed(self.deep(self.up(x))).mean((2, 3)) @ self.turned
        return F.linear(self.tied(x), self.tied.weight.t())


def test_outputs_lie_along_what_is_not_summed_over() -> None:
    channels = channels_of(Layouts(), 2, 3, 8, 8)
    directions = "normed.parametrizations.weight.original"
    written = {"up.weight": [1], "deep.weight": [0], "turned": [1], "tied.weight": [0]}
    written |= {f"{directions}0": [], f"{directions}1": [1, 2, 3]}
    assert {name: channels.written_dims(name) for name in written} == written


class Halves(nn.Module):
    """Both halves are equally wide; one of them is an output."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(8, 32), nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shown, hidden = self.into(x).chunk(2, dim=-1)
        return shown, self.out(hidden)


def test_what_must_be_as_wide_as_something_frozen_is_frozen() -> None:
    hidden = group_of(channels_of(Halves(), 1, 8), "out.weight[1]")
    assert hidden.frozen == "as many must stay as are frozen elsewhere: model output"
