"""Export a model for a runtime, checked in that runtime."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from prunecli.checkpoint.write import atomic, check_output
from prunecli.exporters.targets import target_for, write_and_run
from prunecli.facts import ExportFacts
from prunecli.graph.examples import random_example, takes
from prunecli.graph.tape import Example, record
from prunecli.model import DEFAULT, Opening, Source, open_model

FIXED = "the file takes a batch of {} only: this format cannot carry the model for any batch size"
GATED = "the gates are masks in this file: every channel is computed, then set to zero where an image does not need it"


def export(source: Source, output: str | Path, opening: Opening = DEFAULT) -> ExportFacts:
    """Write a model in the format of the output's suffix.

    Args:
        source: MODEL as on the command line, or a module, which stays as it is.
        output: its suffix chooses the format.
        opening: how to open the model.

    Raises:
        InputError: unknown suffix, an input that the model does not take, or the format cannot carry the model.
        VerificationError: the file computes something else.
    """
    started, output = time.monotonic(), Path(output)
    target = target_for(output)
    model = open_model(source, opening)
    check_output(output, *([model.path] if model.path else []))
    example = model.example.to(dtype=model.dtype)
    first, *more = (random_example(example, seed, batch) for seed, batch in ((0, 1), (1, 2), (2, 5)))
    if target.run is not None:  # a state dict is for any input
        record(model.module, first)
    others = [test for test in more if takes(model.module, test)]
    with tempfile.TemporaryDirectory(prefix="prunecli-") as folder:
        draft = Path(folder) / output.name  # exporters look at the suffix
        written = write_and_run(target, model.module.eval(), Example(first.args), others, draft)
        with atomic(output) as stream, draft.open("rb") as drafted:
            while block := drafted.read(1 << 20):
                stream.write(block)
    fixed = bool(others) and not written.any_batch
    notes = {GATED: bool(model.journal.gates), FIXED.format(first.tensors()[0].shape[0]): fixed}
    return ExportFacts(
        model=model.source,
        output=str(output),
        format=target.title,
        bytes=output.stat().st_size,
        checked=target.runtime,
        max_abs_error=written.max_abs_error,
        notes=[note for note, applies in notes.items() if applies],
        seconds=round(time.monotonic() - started, 3),
    )
