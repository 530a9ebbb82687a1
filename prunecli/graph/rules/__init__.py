"""What each ATen op does to channels.

`RULES` has a row for each op: most rows are one line of notation (`pattern`), or say that the op is run on the ids
(`layout`); a function stands for what those cannot say. Ops that torch tags as pointwise need no row.
Any other op freezes what it touches; nothing is guessed.

Add an op to your own build with::

    @prunecli.rule("mylib::op")
    def my_op(call, book):
        return [call.labels(0)]
"""

from __future__ import annotations

from prunecli.errors import InputError
from prunecli.graph.labels import Book, Labels
from prunecli.graph.rules import convolution, join, layout, norm, pattern  # noqa: F401 - their rows
from prunecli.graph.rules.call import RULES, Call, unknown
from prunecli.graph.rules.pointwise import pointwise


def apply(call: Call, book: Book) -> list[Labels]:
    """Labels of the outputs of `call`; ties, reads and freezes go into `book`.

    Raises:
        InputError: the rule of a user gives labels for another number of outputs.
    """
    known = RULES.get(call.op.name)
    if known is None:
        known = pointwise if call.op.kind.pointwise else unknown
    labels = known(call, book)
    if len(labels) != len(call.op.outputs):
        outputs = f"gives labels for {len(labels)} outputs, the op has {len(call.op.outputs)}"
        raise InputError(f"the rule of {call.op.name} {outputs}", hint="a tuple of labels for each output tensor")
    return labels
