"""A forward pass beside a tape: whether a module does, op for op, what the tape says."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from prunecli.graph.tape import Example, Observer, Ref, Tape, output_tensors, prepare, unobtrusive
from prunecli.graph.tensors import named_tensors

Shapes = Sequence[tuple[int, ...]]


def follows(
    module: nn.Module,
    example: Example,
    tape: Tape,
    shapes: Shapes,
    *,
    seen: Collection[int],
    told: Mapping[str, int],
) -> bool:
    """Whether a forward pass on meta calls the ops of a tape, on the same values and with the same numbers.

    Where it does not, or fails, the reason is for a tape of its own to tell.

    Args:
        module: on meta, and nobody else's; its tensors have the names of those on the tape.
        example: one input.
        tape: of a forward pass in eval mode.
        shapes: of each value on the tape, as they must be here.
        seen: the values whose shapes matter.
        told: the position of the argument of an op that follows from shapes: sizes, the number of groups.
    """
    follower = _Follower(tape, shapes, seen, told)
    example = example.to(device="meta")
    follower.name(dict(zip(tape.inputs, example.tensors(), strict=True)))
    follower.name({tape.params[name]: tensor for name, tensor in named_tensors(module)})
    prepare(module, train=False)
    try:
        with unobtrusive(), follower:
            output = module(*example.args, **example.kwargs)
    except Exception:  # the user's forward may raise anything
        return False
    return follower.has_ended_with(output_tensors(output))


class _Follower(Observer):
    def __init__(self, tape: Tape, shapes: Shapes, seen: Collection[int], told: Mapping[str, int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tape, self._shapes, self._seen, self._told = tape, shapes, seen, told
        self._number_of: dict[int, int] = {}  # id(tensor) -> its newest value
        self._alive: list[Tensor] = []  # ids stay unique while the tensors live
        self._reached = 0
        self._strayed = False

    def name(self, tensors: Mapping[int, Tensor]) -> None:
        """These tensors are these values."""
        self._alive += tensors.values()
        self._number_of.update({id(tensor): number for number, tensor in tensors.items()})

    def has_ended_with(self, outputs: Sequence[Tensor]) -> bool:
        """Whether all ops have come, and these are the outputs on the tape."""
        found = tuple(self._number_of.get(id(tensor)) for tensor in outputs)
        return not self._strayed and self._reached == len(self._tape.ops) and found == self._tape.outputs

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = self.run(func, args, kwargs)
        self._strayed = self._strayed or not self._is_next(func, args, kwargs, output_tensors(result))
        return result

    def _is_next(self, func: Any, args: Any, kwargs: Any, results: Sequence[Tensor]) -> bool:
        """Whether this is the next call on the tape; its results have the numbers of those there from now on."""
        if self._reached == len(self._tape.ops):
            return False
        op = self._tape.ops[self._reached]
        self._reached += 1
        if op.func is not func or len(op.args) != len(args) or len(op.outputs) != len(results):
            return False
        if (op.kwargs or kwargs) and not self._is_alike(op.kwargs, kwargs):
            return False
        free = self._told.get(op.name)
        for place, (told, here) in enumerate(zip(op.args, args, strict=True)):
            if place != free and not self._is_alike(told, here):
                return False
        for number, tensor in zip(op.outputs, results, strict=True):
            self._number_of[id(tensor)] = number
            if number in self._seen and tensor.shape != self._shapes[number]:
                return False
        self._alive += results
        return True

    def _is_alike(self, told: Any, here: Any) -> bool:
        """Whether an argument is what the tape says, a tensor the same value."""
        kind = type(told)
        if kind is Ref:
            return isinstance(here, Tensor) and self._number_of.get(id(here)) == told.index
        if kind is list or kind is tuple:
            if told and type(told[0]) is int:  # sizes and the like
                return bool(told == here)
            return len(told) == len(here) and all(map(self._is_alike, told, here))
        if kind is dict:
            return told.keys() == here.keys() and all(self._is_alike(told[name], here[name]) for name in told)
        return kind is type(here) and bool(told == here)
