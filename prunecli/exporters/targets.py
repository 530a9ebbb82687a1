"""Export targets by suffix. Each writes the file and runs it, so that what it reports was seen."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunecli.checkpoint.read import read
from prunecli.checkpoint.write import write_tensors
from prunecli.errors import InputError, VerificationError, summary
from prunecli.graph.examples import outputs, same_draws
from prunecli.graph.tape import Example, output_tensors
from prunecli.graph.tensors import dtype_name, stored

TOLERANCE = 1e-4  # of the largest output; of narrower dtypes some units in the last place


@dataclass(frozen=True)
class Target:
    """A format: its name, how it is written, and who runs it to check."""

    title: str
    runtime: str
    write: Callable[[nn.Module, Example, Path, bool], None]  # the last says whether any batch size fits
    run: Callable[[Path, Example], list[Tensor]] | None


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Exporters talk to stdout, stderr and three loggers; none of it is for the user."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        previous = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(previous)


def _program(module: nn.Module, example: Example, any_batch: bool) -> torch.export.ExportedProgram:
    """For any batch size, or for that of the example."""
    if not any_batch:
        return torch.export.export(module, example.args, dict(example.kwargs))
    pair = example.map(lambda t: torch.cat([t, t]))
    batch = torch.export.Dim("batch")
    return torch.export.export(
        module, pair.args, dict(pair.kwargs), dynamic_shapes=tuple({0: batch} for _ in pair.args)
    )


def _write_onnx(module: nn.Module, example: Example, path: Path, any_batch: bool) -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(f"ONNX export needs {error.name}", hint="pip install 'prunecli[export]'") from error
    program = torch.onnx.export(_program(module, example, any_batch), dynamo=True, verbose=False)
    assert program is not None
    program.save(str(path), external_data=False)


def _loaded_onnx(path: Path, example: Example) -> Callable[[], list[Any]]:
    """The file in onnxruntime, ready to run on an input."""
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError("running the ONNX file needs onnxruntime", hint="pip install 'prunecli[export]'") from error
    options = onnxruntime.SessionOptions()
    # its threads would spin on after a run, and slow down whatever is timed in turn with it to half the speed
    options.add_session_config_entry("session.force_spinning_stop", "1")
    loaded = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = {i.name: t.numpy() for i, t in zip(loaded.get_inputs(), example.args, strict=True)}
    return lambda: loaded.run(None, feed)


def _run_onnx(path: Path, example: Example) -> list[Tensor]:
    return [torch.from_numpy(output) for output in _loaded_onnx(path, example)()]


def onnx_session(module: nn.Module, example: Example) -> Callable[[], object]:
    """A model in onnxruntime, ready to run on an input.

    Raises:
        InputError: the exporter cannot carry this model, or a library is missing.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        write_and_run(TARGETS[".onnx"], module, example, [], path)
        return _loaded_onnx(path, example)


def _write_pt2(module: nn.Module, example: Example, path: Path, any_batch: bool) -> None:
    torch.export.save(_program(module, example, any_batch), path)


def _run_pt2(path: Path, example: Example) -> list[Tensor]:
    return output_tensors(torch.export.load(path).module()(*example.args))


def _write_torchscript(module: nn.Module, example: Example, path: Path, any_batch: bool) -> None:
    del any_batch  # a number that the Python code takes from a shape stays a number
    traced = torch.jit.trace(module, example.args, check_trace=False, strict=False)
    traced.save(str(path))


def _run_torchscript(path: Path, example: Example) -> list[Tensor]:
    return output_tensors(torch.jit.load(str(path))(*example.args))


def _write_state(module: nn.Module, example: Example, path: Path, any_batch: bool) -> None:
    del example, any_batch
    write_tensors(path, stored(module))


def _write_torch_state(module: nn.Module, example: Example, path: Path, any_batch: bool) -> None:
    del example, any_batch
    torch.save({name: tensor.detach().clone() for name, tensor in stored(module).items()}, path)


TARGETS: dict[str, Target] = {
    ".onnx": Target("ONNX", "onnxruntime", _write_onnx, _run_onnx),
    ".pt2": Target("torch.export", "torch.export", _write_pt2, _run_pt2),
    ".ts": Target("TorchScript", "torch.jit", _write_torchscript, _run_torchscript),
    ".safetensors": Target("state dict (safetensors)", "read back", _write_state, None),
    ".pth": Target("state dict (torch.save)", "read back", _write_torch_state, None),
}


def target_for(path: Path) -> Target:
    """The target of a suffix.

    Raises:
        InputError: the suffix is unknown.
    """
    if path.suffix not in TARGETS:
        known = ", ".join(TARGETS)
        raise InputError(f"unknown export suffix {path.suffix or '(none)'!r} of {path.name}", hint=f"known: {known}")
    return TARGETS[path.suffix]


@dataclass(frozen=True)
class Written:
    """A file that was run: the largest difference of its outputs from the module's, and whether any batch size fits."""

    max_abs_error: float
    any_batch: bool


def write_and_run(
    target: Target, module: nn.Module, example: Example, others: Sequence[Example], path: Path
) -> Written:
    """Write the file and run it: for any batch size or, where that does not work, for that of the example.

    Args:
        target: from `target_for`.
        module: in eval mode.
        example: one input, for the exporter and to compare on.
        others: inputs of other batch sizes, to compare on.
        path: is written.

    Raises:
        InputError: the exporter cannot carry this model, or its library is missing.
        VerificationError: the file computes something else.
    """
    with contextlib.suppress(Exception):  # the second attempt says why
        return Written(_written(target, module, [example, *others], path, any_batch=True), any_batch=True)
    try:
        return Written(_written(target, module, [example], path, any_batch=False), any_batch=False)
    except (InputError, VerificationError):
        raise
    except Exception as error:  # exporters raise whatever they meet, and wrap it in advice for their developers
        found = {dtype_name(p.dtype) for p in module.parameters() if p.is_floating_point()}
        dtypes = sorted(found - {"float32"})
        hint = f"its weights are {', '.join(dtypes)}, which few runtimes compute with: float32" if dtypes else ""
        raise InputError(f"{target.title} cannot carry this model: {summary(_root(error))}", hint=hint) from error


def _tolerance(dtype: torch.dtype) -> float:
    return max(TOLERANCE, 4 * torch.finfo(dtype).eps) if dtype.is_floating_point else TOLERANCE


def _written(target: Target, module: nn.Module, tests: Sequence[Example], path: Path, *, any_batch: bool) -> float:
    """Write the file for the first of some inputs, and compare on all of them."""
    with _hushed(), torch.no_grad():
        target.write(module, tests[0], path, any_batch)
        return _compare(target, module, tests, path)


def _root(error: BaseException) -> BaseException:
    return _root(error.__cause__) if error.__cause__ else error


def _compare(target: Target, module: nn.Module, tests: Sequence[Example], path: Path) -> float:
    if target.run is None:
        _same_tensors(module, path)
        return 0.0
    worst = 0.0
    for test in tests:
        expected = outputs(module, test)
        with same_draws():
            found = target.run(path, test)
        for a, b in zip(expected, found, strict=True):
            error = float((a - b).abs().max())
            if not error <= _tolerance(a.dtype) * max(1.0, float(a.abs().max())):
                same = all(map(torch.equal, expected, outputs(module, test, seed=1)))
                raise VerificationError(
                    f"the {target.title} file differs by {error:.2e} in {target.runtime}; nothing was written",
                    hint="" if same else "the forward pass draws random numbers: let them be an input",
                )
            worst = max(worst, error)
    return worst


def _same_tensors(module: nn.Module, path: Path) -> None:
    own = stored(module)
    found = read(path).spelled(own).state
    if own.keys() != found.keys() or not all(torch.equal(found[name], tensor) for name, tensor in own.items()):
        raise VerificationError("the written state dict differs from the model; nothing was written")
