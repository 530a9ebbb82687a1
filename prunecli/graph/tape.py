"""The tape: the ATen ops of one forward pass, in order, with the tensors they read and write."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode

from prunecli.errors import InputError, summary
from prunecli.graph.attention import in_parts
from prunecli.graph.copying import moved, shadow
from prunecli.graph.norms import in_one_op
from prunecli.graph.shapes import shortcut
from prunecli.graph.tensors import named_tensors, submodules

Line = tuple[CodeType, int]
# Where Python lies that is not the model's: torch's, and what runs its ops here.
_OTHERS = tuple(os.path.dirname(path) + os.sep for path in (torch.__file__, __file__))
_MODULE_CALL = nn.Module._call_impl.__code__  # its frames say which module runs; hooks would cost as much as the ops


@dataclass(frozen=True)
class Example:
    """Arguments of one forward pass."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def map(self, function: Callable[[Tensor], Tensor]) -> Example:
        """The same arguments with `function` applied to every tensor."""
        return Example(_map_tensors(self.args, function), _map_tensors(dict(self.kwargs), function))

    def tensors(self) -> list[Tensor]:
        """All of them, in the order of `map`."""
        return output_tensors((self.args, dict(self.kwargs)))

    def to(self, *, device: str | None = None, dtype: torch.dtype | None = None) -> Example:
        """Move every tensor; only floating-point tensors change their dtype."""
        return self.map(lambda t: t.to(device=device, dtype=dtype if t.is_floating_point() else None))


@dataclass(frozen=True, slots=True)
class Ref:
    """A value on the tape: one tensor at one moment (an in-place write makes a new value)."""

    index: int


_PLAIN = frozenset(
    {Ref, type(None), bool, int, float, str, torch.dtype, torch.device, torch.layout, torch.memory_format}
)
_LEAVES = _PLAIN | {Tensor, nn.Parameter}  # most of what ops get


SIZED_LIKE = {"aten." + name for name in ("zeros_like", "ones_like", "full_like", "empty_like")}  # values do not matter
# Those that torch 2.10 and 2.11 do not tag yet.
_POINTWISE = {"aten." + n for n in ("leaky_relu", "leaky_relu_", "hardtanh_", "elu_", "celu_", "selu_", "hardsigmoid_")}


@dataclass(frozen=True, slots=True)
class Kind:
    """What is true of every call of an op.

    Attributes:
        name: the op without its overload: ``aten.convolution``.
        writes: whether it changes one of its arguments.
        pointwise: whether each position of the result depends on that position of the arguments alone; torch tags
            such ops.
        composite: whether it is made of others.
    """

    name: str
    writes: bool
    pointwise: bool
    composite: bool


@cache
def kind_of(func: Any) -> Kind:
    """What is true of every call of `func`."""
    name = str(func.overloadpacket)
    pointwise = torch.Tag.pointwise in func.tags or name in _POINTWISE
    composite = torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")
    return Kind(name, bool(func._schema.is_mutable), pointwise, composite)


@dataclass(slots=True, eq=False)
class Op:
    """One recorded call.

    `refs` are its tensor arguments in order, `clobbers` older values that an in-place write has changed behind
    their back; `line` is the innermost one of the model's Python that is not torch's.
    """

    index: int
    func: Any
    kind: Kind
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    refs: tuple[Ref, ...]
    outputs: tuple[int, ...]
    clobbers: tuple[int, ...]
    module: str
    line: Line | None

    @property
    def name(self) -> str:
        """The op without its overload: ``aten.convolution``."""
        return self.kind.name

    @property
    def source(self) -> str:
        """File and number of the line."""
        return _written(self.line)

    @property
    def where(self) -> str:
        """For messages: module path, op and source line, which a module of torch's own has none of."""
        source = f", {self.source}" if self.source else ""
        return f"{self.name} in {self.module or 'the model'}{source}"


@dataclass
class Tape:
    """All ops of one forward pass, and which values are parameters, buffers, inputs and outputs.

    `numbers` are the values that Python code made of one number: ``torch.tensor(x.shape[-1])``.
    `needs_data` says that the model's Python looks at values, so that it cannot run on meta; `training` in which mode
    it ran.
    """

    ops: list[Op] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    params: dict[str, int] = field(default_factory=dict)
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    numbers: dict[int, complex] = field(default_factory=dict)
    needs_data: bool = False
    training: bool = False

    def live_ops(self, *, unseen: bool = False) -> list[Op]:
        """Ops that the outputs depend on, and those that write into a tensor.

        With `unseen`, layers and pointwise ops as well whose results nobody looks at, and what those depend on.
        """
        wanted, own, found = set(self.outputs), set(self.params.values()) if unseen else set[int](), []
        for op in reversed(self.ops):
            reads = [ref.index for ref in op.refs]
            runs = unseen and (op.kind.pointwise or not own.isdisjoint(reads))
            if runs or op.kind.writes or not wanted.isdisjoint(op.outputs):
                wanted.update(reads)
                found.append(op)
        return found[::-1]

    @cached_property
    def needed(self) -> list[Op]:
        """Ops that must run after a cut as well; to be asked once all ops are there."""
        return self.live_ops(unseen=True)

    @cached_property
    def seen(self) -> set[int]:
        """What outputs, writes or Python code depend on by more than its shape; to be asked once all ops are there.

        Python may look at what no op reads: ``if x[:, 0].sum() > 0``.
        """
        read = {ref.index for op in self.ops for ref in op.refs}
        found = {index for op in self.ops for index in op.outputs if index not in read}.union(self.outputs)
        for op in reversed(self.ops):
            looks = not op.outputs or op.kind.writes or not found.isdisjoint(op.outputs)
            if looks and op.name not in SIZED_LIKE:
                found.update(ref.index for ref in op.refs)
        return found

    def readers(self) -> dict[int, list[Op]]:
        """The ops that read each value."""
        found: dict[int, list[Op]] = {}
        for op in self.ops:
            for ref in op.refs:
                found.setdefault(ref.index, []).append(op)
        return found

    def of_inputs(self) -> set[int]:
        """The values that are computed from the inputs, the inputs among them."""
        found = set(self.inputs)
        for op in self.ops:
            if any(ref.index in found for ref in op.refs):
                found.update(op.outputs)
        return found

    def by_module(self) -> dict[str, list[Op]]:
        """The ops of each module, those of modules inside it excepted."""
        found: dict[str, list[Op]] = {}
        for op in self.ops:
            found.setdefault(op.module, []).append(op)
        return found

    def calls(self, names: Collection[str]) -> dict[str, Op]:
        """The op that a module is there for, by module: the only one of these names in it, and its last.

        Not of modules that lend a parameter: whoever changes it changes more than this op.
        """
        found, lent = {}, self.lent()
        for module, ops in self.by_module().items():
            chosen = [op for op in ops if op.name in names]
            if len(chosen) == 1 and chosen[0] is ops[-1] and module not in lent:
                found[module] = chosen[0]
        return found

    def lent(self) -> set[str]:
        """Modules that hold a parameter or a buffer which an op outside of them reads."""
        owners = {index: name.rpartition(".")[0] for name, index in self.params.items()}
        read = ((owners[ref.index], op.module) for op in self.ops for ref in op.refs if ref.index in owners)
        return {owner for owner, reader in read if owner != reader}

    def used_params(self) -> set[str]:
        """Names of the parameters and buffers that some op reads."""
        used = {r.index for op in self.ops for r in op.refs}
        return {name for name, index in self.params.items() if index in used}


def flatten(tree: Any) -> list[Any]:
    """Leaves of nested lists, tuples, mappings and dataclasses, in order."""
    if type(tree) in _LEAVES:
        return [tree]
    if isinstance(tree, list | tuple):
        found = []
        for item in tree:
            found += [item] if type(item) in _LEAVES else flatten(item)
        return found
    if isinstance(tree, Mapping):
        return [leaf for item in tree.values() for leaf in flatten(item)]
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return [leaf for f in dataclasses.fields(tree) for leaf in flatten(getattr(tree, f.name))]
    return [tree]


def output_tensors(output: Any) -> list[Tensor]:
    """Tensors among the leaves of whatever a model returned."""
    return [output] if isinstance(output, Tensor) else [t for t in flatten(output) if isinstance(t, Tensor)]


def _map_tensors(tree: Any, function: Callable[[Tensor], Any]) -> Any:
    kind = type(tree)
    if kind in _PLAIN:
        return tree
    if kind in _LEAVES or isinstance(tree, Tensor):
        return function(tree)
    if kind is tuple or kind is list:
        if _PLAIN.issuperset(map(type, tree)):  # sizes and the like
            return kind(tree)
        return kind([item if type(item) in _PLAIN else _map_tensors(item, function) for item in tree])
    if isinstance(tree, list | tuple):
        items = [_map_tensors(item, function) for item in tree]
        return kind(*items) if hasattr(tree, "_fields") else kind(items)
    if isinstance(tree, dict):
        return {key: _map_tensors(item, function) for key, item in tree.items()}
    return tree


class ForwardError(InputError):
    """The model's forward raised; `module` is the path of the module in which it did, `source` the line of Python."""

    def __init__(self, error: Exception, module: str = "", source: str = "") -> None:
        place = ", ".join(part for part in (module, source) if part)
        super().__init__(f"the model does not run: {summary(error)}{place and f' (in {place})'}", hint="check --input")
        self.module = module


def record_private(module: nn.Module, example: Example, *, train: bool = False) -> Tape:
    """`record` for a module that nobody else holds: on meta it is run as it is, and not copied.

    Raises:
        ForwardError: the model does not run on this input.
    """
    on_meta = all(tensor.is_meta for _, tensor in named_tensors(module))
    return _record_on_meta(module, example.to(device="meta"), train) if on_meta else _record(module, example, train)


def record(module: nn.Module, example: Example, *, train: bool = False) -> Tape:
    """Run a meta copy of `module` once and write down every ATen op.

    The model itself is not touched: no mode, hook, statistic, gradient or random state changes.
    Where it does not run on meta, since its Python needs data (nms, nonzero, ``.item()``) or a kernel has no such form,
    a copy on the CPU runs on real tensors instead.

    Raises:
        ForwardError: the model does not run on this input.
    """
    try:
        return _record_on_meta(shadow(module), example.to(device="meta"), train)
    except ForwardError:
        tape = _record(moved(module, "cpu"), example.to(device="cpu"), train)
        tape.needs_data = True
        return tape


def _record_on_meta(module: nn.Module, example: Example, train: bool) -> Tape:
    """Twice where tensors that the model makes on the way have no device, so that they land on the CPU."""
    try:
        return _record(module, example, train)
    except ForwardError as error:
        if not _wants_data(error):
            raise
        with torch.device("meta"):
            return _record(module, example, train)


def _wants_data(error: ForwardError) -> bool:
    """Whether it is the meta device that a forward pass does not like."""
    cause = str(error.__cause__).lower()
    return "meta" in cause or "data-dependent" in cause


def _record(module: nn.Module, example: Example, train: bool) -> Tape:
    prepare(module, train=train)
    recorder = _Recorder(module)
    recorder.tape.training = train
    for name, tensor in named_tensors(module):
        recorder.tape.params[name] = recorder.value_of(tensor)
    recorder.tape.inputs = tuple(recorder.value_of(tensor) for tensor in example.tensors())
    try:
        with unobtrusive(), recorder:
            output = module(*example.args, **example.kwargs)
    except Exception as error:  # the user's forward may raise anything
        raise ForwardError(error, *recorder.place_of(error)) from error
    recorder.tape.outputs = tuple(recorder.value_of(t) for t in output_tensors(output))
    return recorder.tape


def is_observed() -> bool:
    """Whether what runs is written down: on a tape, by TorchScript's tracer, by export or by the compiler."""
    traced = torch.jit.is_tracing() or torch.compiler.is_compiling()  # type: ignore[attr-defined, no-untyped-call]
    return traced or _get_current_dispatch_mode() is not None


@contextlib.contextmanager
def unfused() -> Iterator[None]:
    """Attention as the matrix products that it is: fused paths hide heads and FLOPs."""
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)


def prepare(module: nn.Module, *, train: bool) -> None:
    """What forward passes are looked at on, in place: all in one mode, layers of torch's own as the ops they are."""
    parts = [part for _, part in submodules(module)]
    in_parts(parts)
    in_one_op(parts)
    if any(part.training != train for part in parts):  # torch takes as long again as for a dozen ops
        module.train(train)


@contextlib.contextmanager
def unobtrusive() -> Iterator[None]:
    """How forward passes are looked at: without gradients, with attention in parts, and no random number is missed."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]), unfused():
        yield


class Observer(TorchDispatchMode):
    """Sees every op of a forward pass."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled meanwhile: torch need not load its compiler, which takes seconds."""
        return False

    @staticmethod
    def run(func: Any, args: Any, kwargs: Any) -> Any:
        """What the op gives."""
        result = shortcut(kind_of(func).name, args, kwargs)
        return func(*args, **kwargs) if result is None else result


class _Recorder(Observer):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tape = Tape()
        self._paths = {id(part): path for path, part in submodules(module)}
        self._current: dict[int, int] = {}  # id(tensor) -> its newest value
        self._alive: list[Tensor] = []  # ids stay unique while the tensors live
        self._aliases: dict[int, list[Tensor]] = {}  # storage -> tensors that look at it

    def place_of(self, error: Exception) -> tuple[str, str]:
        """`_place` where the error was raised."""
        frames = [*traceback.walk_tb(error.__traceback__)][::-1]
        modules = (path for frame, _ in frames if (path := self._module_in(frame)) is not None)
        own = ((frame.f_code, number) for frame, number in frames if not _is_of_others(frame.f_code.co_filename))
        return next(modules, ""), _written(next(own, None))

    def _module_in(self, frame: FrameType) -> str | None:
        """Path of the module that this frame calls, if it calls one of the model's."""
        return self._paths.get(id(frame.f_locals["self"])) if frame.f_code is _MODULE_CALL else None

    def _place(self, frame: FrameType | None) -> tuple[str, Line | None]:
        """Path of the innermost module that runs, and the innermost line of the model's Python that is not torch's."""
        module, line = None, None
        while frame is not None and (module is None or line is None):
            code = frame.f_code
            if code is _MODULE_CALL:
                module = self._module_in(frame) if module is None else module
            elif code is _record.__code__:
                break
            elif line is None and not _is_of_others(code.co_filename):
                line = code, frame.f_lineno
            frame = frame.f_back
        return module or "", line

    def value_of(self, tensor: Tensor) -> int:
        known = self._current.get(id(tensor))
        if known is None:
            self._alive.append(tensor)
            self._aliases.setdefault(_storage(tensor), []).append(tensor)
            known = self._new_value(tensor)
        return known

    def _new_value(self, tensor: Tensor) -> int:
        number = len(self.tape.shapes)
        self._current[id(tensor)] = number
        self.tape.shapes.append(tuple(tensor.shape))
        return number

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kind, kwargs = kind_of(func), kwargs or {}
        if kind.composite and torch.is_inference_mode_enabled():  # elsewhere they arrive in parts
            with self:
                return func._op_dk(torch._C.DispatchKey.CompositeImplicitAutograd, *args, **kwargs)
        refs: list[Ref] = []

        def to_ref(tensor: Tensor) -> Ref:
            known = self._current.get(id(tensor))
            if known is None:
                known = self.value_of(tensor)
                if not tensor.is_meta and tensor.numel() == 1:
                    self.tape.numbers[known] = tensor.item()
            ref = Ref(known)
            refs.append(ref)
            return ref

        ref_args = _map_tensors(args, to_ref)
        ref_kwargs = _map_tensors(kwargs, to_ref) if kwargs else {}
        result = self.run(func, args, kwargs)
        clobbers = self._after_write(func, args, kwargs) if kind.writes else ()
        outputs = tuple([self.value_of(tensor) for tensor in output_tensors(result)])
        module, line = self._place(sys._getframe(1))
        ops = self.tape.ops
        ops.append(Op(len(ops), func, kind, ref_args, ref_kwargs, tuple(refs), outputs, clobbers, module, line))
        return result

    def _after_write(self, func: Any, args: Any, kwargs: Any) -> tuple[int, ...]:
        clobbered = []
        for position, argument in enumerate(func._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            written = args[position] if position < len(args) else kwargs.get(argument.name)
            for tensor in output_tensors(written):
                for other in self._aliases.get(_storage(tensor), ()):  # a storage may have been exchanged
                    if other is not tensor:
                        clobbered.append(self._current[id(other)])
                self._new_value(tensor)
        return tuple(clobbered)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _written(line: Line | None) -> str:
    return f"{os.path.basename(line[0].co_filename)}:{line[1]}" if line else ""


@cache
def _is_of_others(path: str) -> bool:
    return path.startswith(_OTHERS)
