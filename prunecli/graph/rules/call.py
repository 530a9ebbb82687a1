"""One recorded op with the labels of its arguments, and the table of what ops do to channels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from prunecli.graph.labels import Book, Labels
from prunecli.graph.reshaping import reshaped
from prunecli.graph.tape import Op, Ref, Tape, flatten

NOT_A_CHANNEL = "not a channel dim"  # kernel and position dims

Rule = Callable[["Call", Book], list[Labels]]
RULES: dict[str, Rule] = {}


def rule(name: str) -> Callable[[Rule], Rule]:
    """Register what an op does to channels: ``rule("namespace::op")``.

    The function gets a `Call` and the `Book`, and returns one tuple of labels for each output tensor.

    Raises:
        ValueError: the op has a rule already.
    """
    key = name.replace("::", ".")

    def register(function: Rule) -> Rule:
        known = RULES.get(key, function)
        if _place(known) != _place(function):  # else its file was executed once more
            raise ValueError(f"{name} has a rule already: {_place(known)}")
        RULES[key] = function
        return function

    return register


def _place(function: Rule) -> str:
    return f"{function.__module__}.{function.__qualname__}"


@dataclass(frozen=True)
class Call:
    """One op together with the labels of its arguments."""

    op: Op
    tape: Tape
    known: dict[int, Labels]

    def ref(self, position: int) -> Ref | None:
        """The tensor argument at `position`, or None."""
        value = self.op.args[position] if position < len(self.op.args) else None
        return value if isinstance(value, Ref) else None

    def named(self, name: str, default: Any) -> Any:
        """The argument of that name, `default` where it is not given."""
        names = (argument.name for argument in self.op.func._schema.arguments)
        return {**dict(zip(names, self.op.args, strict=False)), **self.op.kwargs}.get(name, default)

    def labels(self, position: int) -> Labels:
        """Labels of the argument at `position`; empty where it is no tensor."""
        ref = self.ref(position)
        return self.known.get(ref.index, ()) if ref else ()

    def shape(self, ref: Ref) -> tuple[int, ...]:
        """Shape of a tensor argument."""
        return self.tape.shapes[ref.index]

    def run(self, positions: dict[int, Tensor]) -> list[Tensor]:
        """The op itself on other tensors; arguments by value index."""
        args = [positions.get(a.index, a) if isinstance(a, Ref) else a for a in self.op.args]
        if self.op.name in ("aten.view", "aten._unsafe_view"):
            assert isinstance(args[0], Tensor)
            return [reshaped(args[0], self.out_shapes[0])]
        return [t for t in flatten(self.op.func(*args, **self.op.kwargs)) if isinstance(t, Tensor)]

    @property
    def out_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the output tensors."""
        return [self.tape.shapes[i] for i in self.op.outputs]


def unknown(call: Call, book: Book) -> list[Labels]:
    """No rule: every channel that comes near stays."""
    refs = call.op.refs
    if any(call.known.get(ref.index) for ref in refs):
        book.unknown[call.op.name] = book.unknown.get(call.op.name, 0) + 1
    for ref in refs:
        book.freeze(call.known.get(ref.index, ()), f"no rule for {call.op.where}")
    return [() for _ in call.op.outputs]


def dims_of(dims: Any, ndim: int) -> set[int]:
    """Dims as an op names them, counted from the front."""
    listed = dims if isinstance(dims, list | tuple) else [dims]
    return {int(d) % max(ndim, 1) for d in listed}
