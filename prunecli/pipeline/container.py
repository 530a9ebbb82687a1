"""Write the result: assemble the metadata, reload what was written, compare, and only then let the file appear."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunecli.checkpoint.journal import Journal
from prunecli.checkpoint.read import read, sha256
from prunecli.checkpoint.write import write_tensors
from prunecli.errors import VerificationError, blamed
from prunecli.facts import BudgetFacts, Verified
from prunecli.graph.copying import aligned, copied
from prunecli.graph.examples import drawn, outputs
from prunecli.graph.tensors import stored, unstored
from prunecli.inputs import to_json
from prunecli.model import Model, Opening, from_checkpoint
from prunecli.ranks import rank
from prunecli.surgery.assign import assign


@dataclass(frozen=True)
class Provenance:
    """What the file says about how it came to be: nothing in it depends on when or where the run took place."""

    recipe: Mapping[str, Any] | None
    verified: Verified | None
    budget: BudgetFacts | None
    evaluation: Mapping[str, Any]


def save(path: Path, model: Model, opened: Model, provenance: Provenance) -> int:
    """Write `model`; the file appears only if it reloads to bit-identical outputs.

    Of several processes, which all hold the same model, the first one writes.

    Args:
        path: of the result.
        model: what is written.
        opened: the same model as it was opened; gives the classes of a module without an architecture name.
        provenance: goes into the metadata.

    Returns:
        The size of the file in bytes.

    Raises:
        VerificationError: the reloaded model differs from the one in memory.
    """
    metadata = {
        "format_version": 1,
        "arch": None if model.arch is None else str(model.arch),
        "input": to_json(model.inputs),
        "journal": model.journal.to_json(),
        **({} if model.config is None else {"config": model.config}),
        "parent_sha256": parent_digest(model),
        "versions": {"prunecli": version("prunecli"), "torch": torch.__version__},
        **asdict(provenance),
    }
    if rank() != 0:
        return 0
    tensors = stored(model.module)
    write_tensors(path, tensors, metadata, _same_after_reload(model, opened))
    return path.stat().st_size


def parent_digest(model: Model) -> str | None:
    """SHA-256 of the file the model came from."""
    return None if model.path is None else sha256(model.path)


def origin(model: Model) -> str:
    """A digest of the weights that a run starts from: of the file, or of the tensors where there is none."""
    digest = hashlib.sha256((parent_digest(model) or "").encode())
    for name, tensor in stored(model.module).items() if model.path is None else ():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def identity(*parts: object) -> str:
    """A digest of everything that makes a run what it is."""
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()


def _same_after_reload(model: Model, opened: Model) -> Callable[[Path], None]:
    def check(path: Path) -> None:
        reloaded = _reload(path, model, opened)
        example = drawn(model.module, model.example.to(dtype=model.dtype), seed=1)
        with blamed("the model does not run in the dtype of its weights"):
            expected = outputs(aligned(model.module.eval()), example)
        with blamed("the model does not run as it is read back from its file"):
            found = outputs(aligned(reloaded.eval()), example)
        if len(expected) != len(found) or not all(map(_identical, expected, found)):
            raise VerificationError(
                "the file does not reload to the model that was written; nothing was written",
                hint=_forgotten(model.module, reloaded),
            )

    return check


def _forgotten(module: nn.Module, reloaded: nn.Module) -> str:
    """Says which of the buffers that no file holds come out otherwise."""
    again = unstored(reloaded)
    lost = [n for n, b in unstored(module).items() if not (n in again and _identical(b, again[n]))]
    names = ", ".join(lost)
    return f"{names}: no file holds these buffers, and the architecture gives other values each time" if lost else ""


def _identical(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and torch.equal(torch.nan_to_num(first), torch.nan_to_num(second))


def _reload(path: Path, model: Model, opened: Model) -> nn.Module:
    checkpoint = read(path)
    if model.arch is not None or model.config is not None:
        arch = None if model.arch is None else str(model.arch)
        return from_checkpoint(checkpoint, Opening(arch=arch, inputs=model.inputs)).module
    module = copied(opened.module)
    assert checkpoint.container is not None
    journal = Journal.from_json(checkpoint.container["journal"])
    assign(module, checkpoint.state, journal, str(path))
    return module.eval()
