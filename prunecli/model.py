"""A model as the tool handles it: a module, the architecture it was built from, and an input it accepts.

This is the only module that brings networks to life.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunecli.arch.guess import guess, named_in
from prunecli.arch.hugging_face import Configured, is_configured
from prunecli.arch.registry import arguments, build, default_input, skeleton
from prunecli.arch.spec import ArchSpec, parse
from prunecli.checkpoint.journal import Journal
from prunecli.checkpoint.read import Checkpoint, read
from prunecli.errors import ArchError, CheckpointError, InputError
from prunecli.graph.copying import moved, placed, shadow
from prunecli.graph.examples import picking
from prunecli.graph.lazy import awakened, insist_on_values, is_lazy
from prunecli.graph.tape import Example, ForwardError, record
from prunecli.graph.tensors import cast, dtype_name, home, row_major, stored, unstored
from prunecli.inputs import DTYPES, Argument, Inputs, from_json
from prunecli.surgery.assign import assign


@dataclass(frozen=True)
class Opening:
    """How a MODEL is opened.

    Attributes:
        arch: the architecture; guessed from names and shapes by default.
        inputs: what the forward pass takes; by default what the architecture expects.
        key: entry of a nested checkpoint that holds the weights.
        trust: allow files that execute code.
    """

    arch: str | None = None
    inputs: Inputs | None = None
    key: str | None = None
    trust: bool = False

    @staticmethod
    def like(*examples: Tensor) -> Opening:
        """For a module in memory: its forward pass takes tensors like these.

        Floats in the dtype of its parameters, integers (indices, lengths, masks) as large as their largest.

        Raises:
            InputError: an example is no such tensor.
        """
        return Opening(inputs=tuple(map(_argument_like, examples)))

    def completed(self, arch: str | None, inputs: Inputs | None) -> Opening:
        """With defaults for what was not said."""
        return replace(self, arch=self.arch or arch, inputs=self.inputs or inputs)


def _argument_like(example: Tensor) -> Argument:
    dtype = dtype_name(example.dtype) if isinstance(example, Tensor) else type(example).__name__
    if dtype not in DTYPES:
        raise InputError(
            f"a forward pass is described by tensors of floats or integers, not {dtype}",
            hint="wrap the module in one whose forward takes such tensors",
        )
    if example.is_floating_point():
        return Argument(tuple(example.shape))
    return Argument(tuple(example.shape), dtype, max(0, int(example.max())) if example.numel() else 0)


DEFAULT = Opening()
Source = str | Path | nn.Module  # MODEL as on the command line, a file, or a module in memory


@dataclass(frozen=True)
class Model:
    """A module in eval mode with what is known about it.

    Attributes:
        source: path or architecture, as it was asked for; the class of a module that was in memory.
        format: kind of file, or "architecture".
        arch: None for a module that came out of a pickle, or was in memory.
        journal: cuts since the architecture was built.
        inputs: what the forward pass takes.
        container: metadata of the file, where we wrote it.
        config: that of transformers, which says how to build the module.
    """

    source: str
    format: str
    module: nn.Module
    arch: ArchSpec | None
    journal: Journal
    inputs: Inputs
    path: Path | None = None
    container: Mapping[str, Any] | None = None
    config: Mapping[str, Any] | None = None
    notes: list[str] = field(default_factory=list)

    @cached_property
    def example(self) -> Example:
        """Zeros; integers as they were asked for, or random ones where they only pick rows of embeddings."""
        return picking(self.module, _zeros(self.arch, self.inputs, self.dtype))

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the first floating-point parameter."""
        return home(self.module).dtype

    def after(self, module: nn.Module, cut: Journal) -> Model:
        """The same model with a smaller module, `cut` since this one."""
        return replace(self, module=module, journal=self.journal.then(cut))


def _zeros(arch: ArchSpec | None, inputs: Inputs, own: torch.dtype) -> Example:
    """Zeros, or the integers that were asked for; `own` is the dtype of the parameters."""
    first, *others = (
        torch.full(given.shape, given.value, dtype=getattr(torch, given.dtype) if given.dtype else own)
        for given in inputs
    )
    return Example((first, *others) if others else arguments(arch, first))


def open_model(source: Source, opening: Opening = DEFAULT) -> Model:
    """A model from a file, a folder or an architecture, or a copy of a module in memory.

    Raises:
        InputError: the file, the architecture or their combination cannot be used; the message says why.
    """
    if isinstance(source, nn.Module):
        return _in_memory(source, opening)
    if is_architecture(source):
        return _fresh(parse(str(source)), str(source), opening.inputs)
    return from_checkpoint(read(source, key=opening.key, trust=opening.trust), opening)


def open_beside(first: Model, source: Source, *, trust: bool = False) -> Model:
    """A model with the inputs of one that is open; of its architecture, too, where nothing else tells.

    Raises:
        InputError: as `open_model`.
    """
    opening = Opening(inputs=first.inputs, trust=trust)
    try:
        return open_model(source, opening)
    except ArchError:
        if first.arch is None:
            raise
        return open_model(source, replace(opening, arch=str(first.arch)))


def is_architecture(source: str | Path) -> bool:
    """Whether MODEL names an architecture rather than a file."""
    if isinstance(source, Path) or Path(source).exists():
        return False
    head = source.partition("?")[0]
    return ":" in head or not any(c in head for c in "/.\\")


def _fresh(spec: ArchSpec, source: str, asked: Inputs | None) -> Model:
    torch.manual_seed(0)
    module = row_major(_built(spec, asked)).eval()
    return Model(source, "architecture", module, spec, Journal(), _inputs(spec, module, asked))


def _in_memory(module: nn.Module, opening: Opening) -> Model:
    """A copy on the CPU: the module itself stays as it is, in whatever mode and on whatever device it is."""
    name, spec = type(unwrapped(module)).__qualname__, parse(opening.arch) if opening.arch else None
    if spec is None and opening.inputs is None:
        raise InputError(
            f"what input does {name} take?", hint="say it: prunecli.Opening.like(example), or input: in the recipe"
        )
    insist_on_values(unwrapped(module))
    module = row_major(_ready(moved(unwrapped(module), "cpu"), spec, opening.inputs)).eval()
    held = stored(module)
    notes = [f"{entry} is no tensor: no file holds it" for entry in module.state_dict() if entry not in held]
    return Model(name, "module", module, spec, Journal(), _inputs(spec, module, opening.inputs), notes=notes)


def from_checkpoint(checkpoint: Checkpoint, opening: Opening = DEFAULT) -> Model:
    """Build the architecture of a checkpoint and put its tensors in."""
    if checkpoint.module is not None:
        return _from_module(checkpoint, checkpoint.module, opening)
    if checkpoint.container is not None:
        return _from_container(checkpoint, checkpoint.container, opening)
    if checkpoint.config is not None and opening.arch is None and is_configured(checkpoint.config):
        return _from_config(checkpoint, checkpoint.config, opening)
    spec, why = _choose(checkpoint, opening.arch)
    if opening.arch is not None:  # a guess fits the plain names
        checkpoint = checkpoint.spelled(blank(spec, opening.inputs).state_dict())
    checkpoint = replace(checkpoint, config=None)  # the architecture says all that it does
    module = filled(spec, checkpoint.state, Journal(), str(checkpoint.path), opening.inputs)
    found = _model(checkpoint, module, spec, Journal(), _inputs(spec, module, opening.inputs))
    return replace(found, notes=[*found.notes, why]) if why else found


def _model(checkpoint: Checkpoint, module: nn.Module, spec: ArchSpec | None, journal: Journal, inputs: Inputs) -> Model:
    found = Model(
        source=str(checkpoint.path),
        format=checkpoint.format,
        module=row_major(module).eval(),
        arch=spec,
        journal=journal,
        inputs=inputs,
        path=checkpoint.path,
        container=checkpoint.container,
        config=checkpoint.config or (checkpoint.container or {}).get("config"),
        notes=checkpoint.remarks,
    )
    return _in_one_dtype(found)


def _in_one_dtype(model: Model) -> Model:
    """With all floats in the widest dtype that the file has, where layers of several do not run together."""
    dtypes = {p.dtype for p in model.module.parameters() if p.is_floating_point() and p.element_size() > 1}
    if len(dtypes) < 2 or _runs(model.module, model.example):
        return model
    widest = functools.reduce(torch.promote_types, dtypes)
    if not _runs(cast(shadow(model.module), widest), model.example.to(dtype=widest)):
        return model  # that is not why
    names = " and ".join(sorted(map(dtype_name, dtypes)))
    note = f"its weights are {names}, which do not run together: opened as {dtype_name(widest)}"
    return replace(model, module=cast(model.module, widest), notes=[*model.notes, note])


def _runs(module: nn.Module, example: Example) -> bool:
    with contextlib.suppress(ForwardError):
        record(module, example)
        return True
    return False


def blank(spec: ArchSpec, inputs: Inputs | None = None) -> nn.Module:
    """The architecture without storage for its parameters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with skeleton():
                module = build(spec)
            return _ready(placed(module, "cpu"), spec, inputs)
        except (ArchError, ForwardError):  # some constructors, or lazy layers, compute with what has just been made
            return _built(spec, inputs)


def _built(spec: ArchSpec, inputs: Inputs | None) -> nn.Module:
    """The architecture, on the CPU wherever its constructor puts it."""
    return _ready(placed(build(spec), "cpu"), spec, inputs)


def _ready(module: nn.Module, spec: ArchSpec | None, inputs: Inputs | None) -> nn.Module:
    """Lazy layers have the widths that such inputs give them."""
    if not is_lazy(module):
        return module
    return awakened(module, _zeros(spec, _inputs(spec, module, inputs), home(module).dtype))


def filled(
    spec: ArchSpec, state: Mapping[str, Tensor], journal: Journal, source: str, inputs: Inputs | None = None
) -> nn.Module:
    """The architecture with the tensors of a file.

    Raises:
        ArchError: they do not fit.
    """
    empty, what = blank(spec, inputs), f"{source} as {spec}"
    module = _filled(empty, lambda: _built(spec, inputs), state, journal, what)
    dtypes = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
    return _converted(module, *dtypes) if len(dtypes) == 1 else module


def _converted(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """With the buffers that no file holds in the dtype of the others, as they were when `module.half()` was saved."""
    for name, buffer in unstored(module).items():
        if buffer.dtype == torch.get_default_dtype():
            owner, _, attribute = name.rpartition(".")
            setattr(module.get_submodule(owner), attribute, buffer.to(dtype))
    return module


def _filled(
    module: nn.Module, make: Callable[[], nn.Module], state: Mapping[str, Tensor], journal: Journal, what: str
) -> nn.Module:
    """A skeleton with the tensors of a file; made anew, with numbers, where it keeps tensors that no file holds."""
    assign(module, state, journal, what)
    if any(t.is_meta for t in (*module.parameters(), *module.buffers())):
        with torch.random.fork_rng(devices=[]):
            module = make()
        assign(module, state, journal, what)
    return module


def _choose(checkpoint: Checkpoint, arch: str | None) -> tuple[ArchSpec, str]:
    if arch is not None:
        return parse(arch), ""
    if named := named_in(checkpoint.config or {}):
        return named, f"architecture {named}: config.json names it"
    found = guess(checkpoint.state)
    if found is None:
        raise ArchError(
            f"cannot tell the architecture of {checkpoint.path} ({len(checkpoint.state)} tensors)",
            hint="name it: --arch torchvision:NAME, timm:NAME or path/to/net.py:build",
        )
    return found.spec, f"architecture {found.spec}: {found.why}"


def _from_module(checkpoint: Checkpoint, module: nn.Module, opening: Opening) -> Model:
    """A module that came out of a trusted pickle is its own architecture."""
    module = placed(unwrapped(module), "cpu")
    spec = parse(opening.arch) if opening.arch else None
    return _model(checkpoint, module, spec, Journal(), _inputs(spec, module, opening.inputs))


def unwrapped(module: nn.Module) -> nn.Module:
    """The model inside `torch.compile`, DataParallel and DistributedDataParallel."""
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while isinstance(module, wrappers) or hasattr(module, "_orig_mod"):
        module = module.module if isinstance(module, wrappers) else module._orig_mod  # type: ignore[assignment]
    return module


def _from_container(checkpoint: Checkpoint, container: Mapping[str, Any], opening: Opening) -> Model:
    spec, path = _named_in(container, checkpoint.path, opening.arch), str(checkpoint.path)
    journal, inputs = _recorded(container, path)
    inputs = opening.inputs or inputs
    if spec is not None:
        made = str(container.get("arch") or spec)[:200]
        what = path if made == str(spec) else f"{path} (made from {made})"
        module = filled(spec, checkpoint.state, journal, what, inputs)
    else:
        known = Configured(checkpoint.path, container["config"])
        with skeleton():
            module = known.build()
        module = _filled(module, known.build, checkpoint.state, journal, str(known))
    return _model(checkpoint, module, spec, journal, inputs)


def _recorded(container: Mapping[str, Any], path: str) -> tuple[Journal, Inputs]:
    """The journal in the metadata of a file, and what the forward pass takes.

    Raises:
        CheckpointError: they are damaged.
    """
    try:
        return Journal.from_json(container["journal"]), from_json(container["input"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: its metadata is damaged: {error!r}") from error


def refilled(module: nn.Module, checkpoint: Checkpoint) -> nn.Module:
    """A module of the user's with the tensors of a file, in place, cut as the file says.

    Args:
        module: of the class and the widths that the file was made from.
        checkpoint: a container, or plain tensors.

    Raises:
        InputError: they do not fit.
    """
    path, inner = str(checkpoint.path), unwrapped(module)
    container = checkpoint.container
    journal, inputs = (Journal(), None) if container is None else _recorded(container, path)
    if inputs is None:
        insist_on_values(inner)
    else:
        _ready(inner, None, inputs)
    state = checkpoint.state if container is not None else checkpoint.spelled(inner.state_dict()).state
    device = next((tensor.device for tensor in stored(inner).values()), torch.device("meta"))
    assign(inner, state, journal, f"{path} as {type(inner).__qualname__}")
    return (module if device.type == "meta" else module.to(device)).eval()


def _named_in(container: Mapping[str, Any], path: Path, asked: str | None) -> ArchSpec | None:
    """The architecture of a container; None where a configuration of transformers says it.

    Raises:
        ArchError: it has no name, or is user code that nobody asked for.
    """
    text = asked or container.get("arch")
    if text is None:
        if isinstance(container.get("config"), Mapping):
            return None
        raise ArchError(
            f"{path} was made from a module without a name",
            hint="give its --arch, or prunecli.load(path, into=module) in Python",
        )
    spec = parse(text)
    if not spec.is_registry and asked is None:
        raise ArchError(
            f"{path} was made from {spec}, which is user code; a file never says what to import",
            hint=f"if you trust that code, say so: --arch {spec}",
        )
    return spec


def _from_config(checkpoint: Checkpoint, config: Mapping[str, Any], opening: Opening) -> Model:
    known, named = Configured(checkpoint.path, config), replace(checkpoint, renamed=[])  # transformers knows its names
    return _model(named, known.filled(), None, Journal(), opening.inputs or known.inputs())


def _inputs(spec: ArchSpec | None, module: nn.Module, asked: Inputs | None) -> Inputs:
    if asked:
        return asked
    shape = default_input(spec, module) if spec else None
    if shape is None:
        raise InputError(f"what input does {spec or 'this module'} take?", hint="say it: --input 1x3x224x224")
    return (Argument(shape),)
