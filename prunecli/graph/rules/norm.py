"""Statistics over channels: normalisations, softmax, reductions."""

from __future__ import annotations

from prunecli.graph.labels import Book, Counted, Label, Labels, Mixed, Normed, Sum, along
from prunecli.graph.rules.call import RULES, Call, dims_of, rule, unknown
from prunecli.graph.rules.pattern import BATCH_NORM, pattern

# Each output depends on all channels along the given dim: channels pass, but removing one changes the rest.
MIXING = {
    "aten." + name
    for name in ("_softmax", "_safe_softmax", "_log_softmax", "cumsum", "cumprod", "cummax", "cummin", "logcumsumexp",
                 "sort", "topk", "_fft_r2c", "_fft_c2c", "_fft_c2r")
}  # fmt: skip

REDUCTIONS = {
    "aten." + name
    for name in ("mean", "sum", "amax", "amin", "var", "std", "max", "min", "logsumexp", "linalg_vector_norm", "norm",
                 "argmax", "argmin", "prod", "any", "all", "var_mean", "std_mean")
}  # fmt: skip


THROUGH = "; method.through_norms would let them go"


def mixing(call: Call, book: Book) -> list[Labels]:
    """Softmax, sums along a dim, sorting, Fourier transforms: channels along it stay whole, the others pass."""
    mixed = dims_of(call.named("dim", -1), len(call.out_shapes[0]))
    first, *others = _passed(call, book, mixed)
    return [first, *(first for _ in others)]


def _passed(call: Call, book: Book, mixed: set[int], affine: tuple[int, ...] = (), remedy: str = "") -> list[Labels]:
    """All labels pass; those along the dims of the statistic stay whole, with the arguments that scale and shift.

    Rows that the statistic brings together lose the same channels. A dim that changes its size holds no channels then.
    """
    whole = tuple(label for label in call.labels(0) if label.axis in mixed)
    book.freeze(whole, f"every channel influences the others at {call.op.where}{remedy}")
    for position in affine:
        book.freeze(call.labels(position), f"belongs to the normalisation {call.op.where}{remedy}")
    aligned = (book.align(label) if mixed.intersection(label.index_dims) else label for label in call.labels(0))
    shape = call.out_shapes[0]
    passed = tuple(
        label for label in aligned if label.axis not in mixed or label.ids.shape[label.axis] == shape[label.axis]
    )
    return [passed, *(() for _ in call.op.outputs[1:])]


@rule("aten::native_layer_norm")
def layer_norm(call: Call, book: Book) -> list[Labels]:
    """A statistic over the last dims."""
    ndim, normal = len(call.out_shapes[0]), len(call.op.args[1])
    if book.through_norms and normal == 1:
        return _through(call, book, ndim - 1, (2, 3))
    return _passed(call, book, set(range(ndim - normal, ndim)), (2, 3), THROUGH if normal == 1 else "")


@rule("aten::native_group_norm")
def group_norm(call: Call, book: Book) -> list[Labels]:
    """A statistic over the channels of a group and all places: a group goes as a whole, and the others never see it."""
    ndim, groups = len(call.out_shapes[0]), int(call.op.args[6])
    places = set(range(2, ndim))
    if groups == 1:
        through = book.through_norms
        return _through(call, book, 1, (1, 2)) if through else _passed(call, book, {1, *places}, (1, 2), THROUGH)
    outputs = _scaled(call, book, 1, (1, 2))
    for label in outputs[0]:
        if label.axis == 1:
            rows = label.ids.reshape(groups, -1)
            book.tie(rows[:, :1], rows)
            book.counted.append(Counted(call.op.module, label.ids.reshape(-1)))
        elif label.axis in places:
            book.freeze((label,), f"every place influences the others at {call.op.where}")
    return outputs


@rule("aten::native_batch_norm")
def batch_norm(call: Call, book: Book) -> list[Labels]:
    """A statistic for each channel. Where it is taken now, over all other dims, as in standardised weights (Qiao et al.
    2019, arXiv 1903.10520), inputs may go through it.
    """
    standardised = [label for label in call.labels(0) if label.axis > 1 and call.op.args[5] and book.through_norms]
    rest = tuple(label for label in call.labels(0) if not any(label is known for known in standardised))
    source = call.ref(0)
    known = {**call.known, source.index: rest} if source and standardised else call.known
    first, *others = pattern(Call(call.op, call.tape, known), book, *BATCH_NORM)
    aligned = tuple(book.align(label) for label in standardised)
    book.mixed.extend(Mixed(call.op.index, label) for label in aligned)
    return [(*first, *aligned), *others]


def _through(call: Call, book: Book, dim: int, affine: tuple[int, ...]) -> list[Labels]:
    """Channels along `dim` may go; the statistic is of those that stay."""
    book.mixed.extend(Mixed(call.op.index, book.align(label)) for label in call.labels(0) if label.axis == dim)
    return _scaled(call, book, dim, affine)


def _scaled(call: Call, book: Book, dim: int, affine: tuple[int, ...]) -> list[Labels]:
    """Labels pass; scale and shift follow the channels along `dim`."""
    ndim = len(call.out_shapes[0])
    own = [book.align(label) for label in call.labels(0) if label.axis == dim]
    scale = [along(label.ids.reshape(-1), dim, ndim) for position in affine for label in call.labels(position)]
    if not own:
        book.freeze(tuple(scale), f"belongs to the normalisation {call.op.where}")
    merged = book.merge([*own, *scale], f"two widths meet at {call.op.where}") if own else ()
    others = (label for label in call.labels(0) if label.axis != dim)
    return [(*others, *merged), *(() for _ in call.op.outputs[1:])]


def reduction(call: Call, book: Book) -> list[Labels]:
    """A statistic over dims: channels along them stay, or end where it is a sum; the others pass."""
    source = call.ref(0)
    if source is None:
        return unknown(call, book)
    shape = call.shape(source)
    dims = call.named("dim", None)
    reduced = dims_of(dims, len(shape)) if dims not in (None, []) else set(range(len(shape)))
    keepdim = bool(call.named("keepdim", False))
    passed = []
    for label in call.labels(0):
        if label.axis in reduced and _is_sum(call):
            book.sums.append(Sum(call.op.index, 0, label))
        elif book.through_norms and label.axis in reduced and not label.index_dims:
            book.mixed.append(Mixed(call.op.index, label))
        elif label.axis in reduced or any(d in reduced for d in label.index_dims):
            remedy = THROUGH if label.axis in reduced and not label.index_dims else ""
            book.freeze((label,), f"summed up at {call.op.where}{remedy}")
        elif keepdim:
            passed.append(label)
        else:
            before = sum(dim < label.axis for dim in reduced)
            passed.append(Label(label.ids.squeeze(tuple(reduced)), label.axis - before))
    return [tuple(passed) for _ in call.op.outputs]


def _is_sum(call: Call) -> bool:
    """Whether zeros change nothing: of a norm, where its order is not negative."""
    if call.op.name == "aten.sum":
        return True
    order = {"aten.linalg_vector_norm": "ord", "aten.norm": "p"}.get(call.op.name)
    return order is not None and (call.named(order, None) or 0) >= 0


def distance(call: Call, book: Book) -> list[Labels]:
    """Of rows, (*, P, M) and (*, R, M) -> (*, P, R): their differences are summed over the last dim."""
    ndim, ends, passed = len(call.out_shapes[0]), [], []
    for argument in (0, 1):
        for label in call.labels(argument):
            place = label.axis - label.ids.ndim
            if place == -1:
                ends.append(Sum(call.op.index, argument, book.align(label)))
            elif place == -2 and not label.index_dims:
                passed.append(along(label.ids.reshape(-1), ndim - 2 + argument, ndim))
            else:
                book.freeze((label,), f"measured apart at {call.op.where}")
    if len(ends) == 2:
        book.tie(*(end.label.ids.reshape(-1) for end in ends))
        book.sums.extend(ends)
    else:
        book.freeze(tuple(end.label for end in ends), f"meets a tensor of fixed size at {call.op.where}")
    return [tuple(passed)]


@rule("aten::_weight_norm_interface")
def weight_norm(call: Call, book: Book) -> list[Labels]:
    """``g * v / |v|``, the norm over all dims but one: a g that is a parameter makes up for what goes inside."""
    direction, norms = call.out_shapes
    dim = int(call.op.args[2]) % len(direction) if len(call.op.args) > 2 else 0
    names = {index: name for name, index in call.tape.params.items()}
    v, g = (ref and names.get(ref.index) for ref in (call.ref(0), call.ref(1)))
    outside = [label for label in (*call.labels(0), *call.labels(1)) if label.axis == dim and not label.index_dims]
    inside = tuple(label for label in (*call.labels(0), *call.labels(1)) if not any(label is o for o in outside))
    if v and g:
        book.normed.append(Normed(call.op.outputs[0], v, g, dim))
    else:
        book.freeze(inside, f"normalised at {call.op.where}")
    passed = book.merge(outside, f"two widths meet at {call.op.where}")
    return [(*passed, *inside), passed if len(norms) == len(direction) else ()]


RULES |= dict.fromkeys(MIXING, mixing) | dict.fromkeys(REDUCTIONS, reduction)
RULES |= dict.fromkeys(("aten._cdist_forward", "aten._euclidean_dist"), distance)
