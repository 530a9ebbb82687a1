"""What a cut may take: channels whose trial cut breaks the model are found by bisection and frozen."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter

import numpy as np
from torch import nn

from prunecli.arrays import Bools
from prunecli.errors import InputError
from prunecli.graph.channels import Channels, Group, components, holders, trace
from prunecli.graph.garbage import uncollected
from prunecli.graph.labels import Split, Views
from prunecli.graph.rules.call import NOT_A_CHANNEL
from prunecli.graph.tape import Example
from prunecli.graph.tensors import submodules
from prunecli.surgery.fix import head_numbers
from prunecli.surgery.plan import of_each, repair
from prunecli.surgery.trial import Trouble, trial

Restrict = Callable[[Channels], Channels]


def as_written(module: nn.Module) -> Views:
    """Heads get narrower, but of torch's own attention, whose scale follows from the width of a head."""
    return Views({p: head_numbers(m) for p, m in submodules(module) if isinstance(m, nn.MultiheadAttention)})


def with_images(views: Views, channels: Channels) -> Views:
    """The same, but what makes three dims or more, of which a kernel takes the last for places, makes an image."""

    def is_lost(split: Split) -> bool:
        first = int(channels.of(split.ids).flat[0])
        return split.dims > 2 and channels.reasons.get(first, "").startswith(NOT_A_CHANNEL)

    return replace(views, images=views.images | {split.module for split in channels.splits if is_lost(split)})


def with_whole_heads(module: nn.Module, views: Views, channels: Channels, *, all_of_them: bool = False) -> Views:
    """The same, but modules whose views split off heads of which nothing can go lose heads as a whole."""
    stuck = (s.module for s in channels.splits if all_of_them or channels.frozen[channels.of(s.ids)].all())
    heads = {path: head_numbers(module.get_submodule(path)) for path in stuck}
    return replace(views, heads={**heads, **views.heads})


@dataclass(frozen=True)
class _Attempt:
    """What may go where views are read in some way, and the modules whose numbers do not fit then."""

    views: Views
    channels: Channels
    misfits: frozenset[str]

    @property
    def free(self) -> int:
        """How many rows and columns of parameters can go."""
        free = ~self.channels.frozen
        return sum(int(np.count_nonzero(free[slot.channels])) for slot in self.channels.slots)


@uncollected()
def survey(
    module: nn.Module,
    example: Example,
    restrict: Restrict = lambda channels: channels,
    *,
    through_norms: bool = False,
) -> Channels:
    """The channels of a model, with what breaks it frozen.

    Views that make several dims of a channel dim are read again where nothing can go: as heads that go as a whole, as
    images; and modules that say a size which no longer fits with an attribute that follows.

    Args:
        module: stays as it is.
        example: one input.
        restrict: freezes groups that must stay whole.
        through_norms: let channels go that a layer norm or a mean runs over.
    """

    def attempt(views: Views) -> _Attempt:
        traced = restrict(trace(module, example, views, through_norms=through_norms))
        found = settle(module, example, traced)
        return _Attempt(views, found, misfits(module, found, found.frozen & ~traced.frozen))

    best = attempt(as_written(module))
    tries = [best]
    for wider in (with_images, partial(with_whole_heads, module)):
        views = wider(best.views, best.channels)
        if views != best.views:
            tries.append(attempt(views))
            best = max(tries, key=attrgetter("free"))
    numbered = [attempt(replace(known.views, numbered=known.misfits)) for known in tries if known.misfits]
    return max([*tries, *numbered], key=attrgetter("free")).channels if numbered else best.channels


def misfits(module: nn.Module, channels: Channels, broken: Bools) -> frozenset[str]:
    """Modules that tell an op the size of channels whose cut broke the model, and have an attribute of that size."""
    suspects = (replace(told, one_by_one=True) for told in channels.told)
    return frozenset(
        told.module
        for told in suspects
        if any(broken[channels.of(ids)].any() for ids in told.ids if ids is not None)
        and holders(module.get_submodule(told.module), told)
    )


def settle(module: nn.Module, example: Example, channels: Channels, removed: Bools | None = None) -> Channels:
    """Freeze the groups whose cut breaks the model, or keep two of each of their rows where that is enough.

    The module in which it breaks is suspected first, then everything; bisection finds the guilty.

    Args:
        module: the model before the cut.
        example: one input.
        channels: of the model.
        removed: (channels,) the cut that is tried; by default half of every group.

    Returns:
        Channels in which that cut, as far as it is still allowed, does not break the model; the same object
        where nothing had to be frozen.
    """
    sift = _Sift(module, example, channels.of_any_width(), halves(channels) if removed is None else removed)
    bundles = sift.bundles()
    broken: dict[str, str] = {}
    while (trouble := sift.trouble(bundles)) is not None:
        guilty = sift.search(sift.near(trouble.module, bundles)) or sift.search(bundles)
        suspects = [bundle for bundle, _ in guilty]
        if (wider := sift.of_two(suspects)) is not None:
            sift = wider
            continue
        guilty += sift.twins(suspects, bundles)
        broken |= {group.name: found.reason for bundle, found in guilty for group in bundle}
        bundles = [bundle for bundle in bundles if bundle[0].name not in broken]
    if sift.channels.never_alone is not channels.never_alone:
        channels = replace(channels, never_alone=sift.channels.never_alone)
    return channels.freeze(broken) if broken else channels


Bundle = list[Group]
Guilt = list[tuple[Bundle, Trouble]]  # what breaks the model, and how


@dataclass(frozen=True)
class _Sift:
    module: nn.Module
    example: Example
    channels: Channels
    wish: Bools

    def bundles(self) -> list[Bundle]:
        """Groups that the cut touches; those that must keep equal counts come together."""
        touched = [g for g in self.channels.groups if not g.frozen and self.wish[g.channels].any()]
        number_of = np.full(self.channels.count, -1)
        for number, group in enumerate(touched):
            number_of[group.channels] = number
        met = (np.unique(number_of[rows]) for rows in self.channels.blocks)
        ties = [numbers[numbers >= 0] for numbers in met]
        together = components(len(touched), [np.broadcast_arrays(t[:1], t) for t in ties])
        found: dict[int, Bundle] = {}
        for label, group in zip(together.tolist(), touched, strict=True):
            found.setdefault(label, []).append(group)
        return list(found.values())

    def trouble(self, bundles: list[Bundle]) -> Trouble | None:
        """What goes wrong when these alone are cut."""
        removed = self.removed(bundles)
        return trial(self.module, self.example, self.channels, removed) if removed.any() else None

    def removed(self, bundles: list[Bundle]) -> Bools:
        """(channels,) what goes when these alone are cut."""
        return repair(self.channels, self.wish & self.inside(bundles))

    def inside(self, bundles: list[Bundle]) -> Bools:
        """(channels,) those of these bundles."""
        inside = np.zeros(self.channels.count, dtype=np.bool_)
        for group in itertools.chain(*bundles):
            inside[group.channels] = True
        return inside

    def of_two(self, bundles: list[Bundle]) -> _Sift | None:
        """The same with two channels at least in each row of these; None where nothing goes then, or it breaks."""
        never_alone = self.channels.never_alone | self.inside(bundles)
        wider = replace(self, channels=replace(self.channels, never_alone=never_alone))
        before, after = self.removed(bundles), wider.removed(bundles)
        if not after.any() or (before == after).all() or wider.trouble(bundles) is not None:
            return None
        return wider

    def near(self, module: str, bundles: list[Bundle]) -> list[Bundle]:
        """Those with a tensor in the module, or else in the nearest module around it."""
        while True:
            found = [bundle for bundle in bundles if any(self._lies_in(group, module) for group in bundle)]
            if found or not module:
                return found
            module = module.rpartition(".")[0]

    def _lies_in(self, group: Group, module: str) -> bool:
        return not module or any(self.channels.slots[s].name.startswith(f"{module}.") for s in group.slots)

    def twins(self, guilty: list[Bundle], bundles: list[Bundle]) -> Guilt:
        """Bundles of the same place in other layers; they go with the guilty unless all of them are innocent."""
        kinds = {self._kind(bundle) for bundle in guilty}
        found = [
            bundle for bundle in bundles if not any(bundle is known for known in guilty) and self._kind(bundle) in kinds
        ]
        trouble = self.trouble(found)
        return [(bundle, trouble) for bundle in found] if trouble else []

    def _kind(self, bundle: Bundle) -> str:
        """The tensors of a bundle without the numbers of their layers."""
        names = {self.channels.slots[s].name for g in bundle for s in g.slots}
        return re.sub(r"\d+", "#", " ".join(sorted(names)))

    def search(self, bundles: list[Bundle]) -> Guilt:
        """The guilty ones; all where only their union breaks the model, none where even that does not."""
        trouble = self.trouble(bundles) if bundles else None
        if trouble is None:
            return []
        middle = len(bundles) // 2
        if not middle:
            return [(bundles[0], trouble)]
        return self.search(bundles[:middle]) + self.search(bundles[middle:]) or [(b, trouble) for b in bundles]


def insist_on_free(channels: Channels) -> None:
    """At least one channel may go.

    Raises:
        InputError: none may.
    """
    if all(group.frozen for group in channels.groups):
        raise InputError(
            "no prunable channel: every group is frozen", hint="prunecli analyze --why LAYER tells the reason"
        )


def halves(channels: Channels) -> Bools:
    """Every second channel of each group that can be pruned, as far as all constraints allow."""
    return of_each(channels, lambda group: group[1::2] if len(group) > 1 else group)


def one_of_each(channels: Channels) -> Bools:
    """One channel of each group that can be pruned, as far as all constraints allow; even widths are odd then."""
    return of_each(channels, lambda group: group[-1:])


def uneven(channels: Channels) -> Bools:
    """One to seven channels of each group that can be pruned, of each another number than of its neighbours."""
    free = [group for group in channels.groups if not group.frozen]
    wish = np.zeros(channels.count, dtype=np.bool_)
    for number, group in enumerate(free):
        wish[group.channels[1:][-1 - number % 7 :]] = True
    return repair(channels, wish)
