"""Ops that a notation describes.

Letters are dims, `*` any further dims. A letter in two operands ties them; one that is missing
in the result is summed over (a read); dims under `*` are never pruned.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from prunecli.arrays import Ints
from prunecli.graph.labels import Book, Label, Labels, Read, along
from prunecli.graph.rules.call import NOT_A_CHANNEL, RULES, Call, Rule, rule, unknown
from prunecli.graph.tape import Ref

Letters = tuple[str, ...]  # one for each dim

BATCH_NORM = ((0, 1, 2, 3, 4), "n c *, c, c, c, c -> n c *")
PATTERNS: dict[str, tuple[tuple[int, ...], str]] = {
    "aten.addmm": ((0, 1, 2), "m, n k, k m -> n m"),
    "aten.mm": ((0, 1), "n k, k m -> n m"),
    "aten.bmm": ((0, 1), "b n k, b k m -> b n m"),
    "aten.baddbmm": ((0, 1, 2), "b n m, b n k, b k m -> b n m"),
    "aten.mv": ((0, 1), "n k, k -> n"),
    "aten.linear": ((0, 1, 2), "* k, m k, m -> * m"),
    "aten._trilinear": ((0, 2, 1), "b i, b j, o i j -> b o"),
    "aten._native_batch_norm_legit": BATCH_NORM,
    "aten._native_batch_norm_legit_no_training": BATCH_NORM,
    "aten._prelu_kernel": ((0, 1), "n c *, 1 c * -> n c *"),
    "aten.embedding": ((0,), "v e -> * e"),
    "aten._embedding_bag": ((0,), "v e -> b e"),
    "aten._embedding_bag_forward_only": ((0,), "v e -> b e"),
    "aten._pack_padded_sequence": ((0,), "* c -> * c"),
    "aten.grid_sampler_2d": ((0, 1), "n c *, * -> n c *"),
    "aten.grid_sampler_3d": ((0, 1), "n c *, * -> n c *"),
    "aten.max_unpool2d": ((0, 1), "n c *, n c * -> n c *"),
    "aten.max_unpool3d": ((0, 1), "n c *, n c * -> n c *"),
    "torchvision.roi_align": ((0, 1), "n c *, * -> r c *"),
    "torchvision.roi_pool": ((0, 1), "n c *, * -> r c *"),
}
PATTERNS |= {
    "aten." + name: ((0,), "n c * -> n c *")
    for name in (
        "max_pool1d", "max_pool2d", "max_pool3d", "max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool1d",
        "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d",
        "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d", "upsample_nearest1d",
        "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact2d", "upsample_linear1d",
        "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d", "_upsample_bilinear2d_aa",
        "_upsample_bicubic2d_aa", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d",
        "replication_pad2d", "replication_pad3d",
    )
}  # fmt: skip


def pattern(call: Call, book: Book, operands: tuple[int, ...], text: str) -> list[Labels]:
    """Interpret one line of `PATTERNS`; further outputs in the shape of the first are laid out like it."""
    sides, right = _operands(text)
    ends: dict[str, list[tuple[int, Label]]] = {}
    refs: list[tuple[Ref, Letters]] = []
    for position, side in zip(operands, sides, strict=True):
        ref = call.ref(position)
        if ref is not None:
            refs.append((ref, _spread(side, len(call.shape(ref)))))
    for number, (ref, letters) in enumerate(refs):
        for label in call.known.get(ref.index, ()):
            ends.setdefault(letters[label.axis], []).append((number, label))
    outputs: list[Label] = []
    out_letters = _spread(right, len(call.out_shapes[0]))
    for letter, found in ends.items():
        outputs += _letter(call, book, letter, found, refs, out_letters)
    return [tuple(outputs) if shape == call.out_shapes[0] else () for shape in call.out_shapes]


@cache
def _operands(text: str) -> tuple[list[str], str]:
    """The sides of a notation: one for each operand, and the result."""
    left, right = text.split("->")
    return left.split(","), right


@cache
def _spread(side: str, ndim: int) -> Letters:
    """A letter for each dim; `*` stands for as many unnamed dims as the tensor has."""
    letters = tuple(side.split())
    if "*" not in letters:
        return ("1",) * (ndim - len(letters)) + letters
    star = letters.index("*")
    return letters[:star] + ("*",) * (ndim - len(letters) + 1) + letters[star + 1 :]


def _letter(
    call: Call,
    book: Book,
    letter: str,
    found: list[tuple[int, Label]],
    refs: list[tuple[Ref, Letters]],
    out: Letters,
) -> list[Label]:
    """Tie all labels of one letter, and hand them on or end them in a read."""
    labels = tuple(label for _, label in found)
    holders = [n for n, (ref, letters) in enumerate(refs) if _extent(call, ref, letters, letter) > 1]
    if letter in ("*", "1"):
        book.freeze(labels, f"{NOT_A_CHANNEL} at {call.op.where}")
        return []
    if {n for n, _ in found} != set(holders):
        book.freeze(labels, f"meets a dim of fixed size at {call.op.where}")
        return []
    aligned = {n: _shape_to_batch(book, label, refs[n][1]) for n, label in found}
    numbers = sorted(aligned)
    first, *others = (_by_letters(aligned[number], refs[number][1], letter) for number in numbers)
    for other in others:
        book.tie(first, other)
    if letter in out:
        return [_to_output(aligned[numbers[0]], refs[numbers[0]][1], out, letter)]
    if len(numbers) == 2:
        (a, b) = numbers
        book.reads.append(Read(call.op.index, refs[a][0].index, aligned[a], refs[b][0].index, aligned[b]))
    else:
        book.freeze(labels, f"{'picked by index' if len(refs) == 1 else 'summed up'} at {call.op.where}")
    return []


def _extent(call: Call, ref: Ref, letters: Letters, letter: str) -> int:
    return call.shape(ref)[letters.index(letter)] if letter in letters else 1


def _shape_to_batch(book: Book, label: Label, letters: Letters) -> Label:
    """Rows may differ along a batch letter `b` only; along anything else they are tied."""
    if all(letters[d] == "b" for d in label.index_dims):
        return label
    return book.align(label)


def _by_letters(label: Label, letters: Letters, letter: str) -> Ints:
    """Ids as (batch or 1, channels)."""
    if "b" not in letters or letter == "b":
        return label.ids.reshape(1, -1)
    return np.moveaxis(label.ids, label.axis, -1).reshape(label.ids.shape[letters.index("b")], -1)


def _to_output(label: Label, letters: Letters, out: Letters, letter: str) -> Label:
    if "b" not in letters or letter == "b":
        return along(label.ids, out.index(letter), len(out))
    rows = _by_letters(label, letters, letter)
    shape = [1] * len(out)
    shape[out.index(letter)] = rows.shape[1]
    if rows.shape[0] > 1:
        shape[out.index("b")] = rows.shape[0]
        if out.index("b") > out.index(letter):
            rows = rows.T
    return Label(rows.reshape(shape), out.index(letter))


def described(operands: tuple[int, ...], text: str) -> Rule:
    """The rule that a line of `PATTERNS` stands for."""
    return lambda call, book: pattern(call, book, operands, text)


RULES |= {name: described(*line) for name, line in PATTERNS.items()}


@rule("aten::_grouped_mm")
def grouped_mm(call: Call, book: Book) -> list[Labels]:
    """The rows of each expert meet its matrix, (S, K), (E, K, M) -> (S, M). Other forms are not followed.

    The kernel refuses widths that do not fill 16 bytes.
    """
    first, second = call.ref(0), call.ref(1)
    if first is None or second is None or (len(call.shape(first)), len(call.shape(second))) != (2, 3):
        return unknown(call, book)
    for number, axis in ((0, 1), (1, 2)):
        book.aligned += [label.rows() for label in call.labels(number) if label.axis == axis]
    return pattern(call, book, (0, 1), "n k, e k m -> n m")
