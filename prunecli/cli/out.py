"""stdout is data, stderr is talk; every failure is one message and an exit status."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from typing import Any

import typer
from rich.console import Console, RenderableType

from prunecli.errors import PrunecliError, is_out_of_memory, summary
from prunecli.facts import to_json
from prunecli.ranks import rank

INTERRUPTED = 130
PATIENCE = 5.0  # seconds in which torchrun ends the other processes once the first one has failed


class Out:
    """Where a command writes; of several processes only the first one does."""

    def __init__(self, *, as_json: bool, quiet: bool = False) -> None:
        self.as_json = as_json
        self._documented = rank() != 0
        self.talk = Console(stderr=True, quiet=quiet or rank() != 0, highlight=False, emoji=False)
        self._failed = Console(stderr=True, highlight=False, emoji=False)
        # off a terminal nothing is folded to a guessed width
        self._results = Console(highlight=False, emoji=False, width=None if sys.stdout.isatty() else 160)

    def notes(self, notes: list[str]) -> None:
        """Choices that were made, on stderr."""
        for note in notes:
            self.talk.print(f"note: {note}", style="dim", markup=False, soft_wrap=True)

    def document(self, document: dict[str, Any]) -> None:
        """One JSON object; what comes after the first is on stderr alone."""
        if self._documented:
            return
        self._documented = True
        sys.stdout.write(json.dumps(document, indent=2, allow_nan=False) + "\n")

    def table(self, report: RenderableType) -> None:
        """A human's result on stdout."""
        self._results.print(report)

    def result(self, facts: Any, report: RenderableType, line: str | None) -> None:
        """The facts as JSON; or the report on stderr and one line, such as the path written, on stdout."""
        self.notes(getattr(facts, "notes", []))
        if self.as_json:
            self.document(to_json(facts))
            return
        self.talk.print(report)
        if line is not None and rank() == 0:
            sys.stdout.write(f"{line}\n")

    @contextlib.contextmanager
    def failures(self) -> Iterator[None]:
        """Turn exceptions into a message and an exit status."""
        try:
            yield
            sys.stdout.flush()
        except PrunecliError as error:
            if error.__cause__ is not None:
                _trace()
            self._fail(error.problem, error.hint, error.exit_status)
        except KeyboardInterrupt:
            self._fail("interrupted", "", INTERRUPTED)
        except BrokenPipeError:  # the reader of a pipe went away; nothing is left to say to it
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except OSError as error:
            self._fail(
                f"{error.filename or 'input or output'}: {error.strerror or error}", "check the path and the disk", 2
            )
        except Exception as error:
            if is_out_of_memory(error):
                self._fail("out of memory", "a smaller --input or train.batch_size", 1)
            _trace()
            hint = "please report this; PRUNECLI_TRACEBACK=1 shows where it happened"
            self._fail(f"internal error: {summary(error)}", hint, 1)

    def _fail(self, problem: str, hint: str, status: int) -> None:
        if rank() != 0:
            time.sleep(PATIENCE)  # what all processes find, the first one says
        if self.as_json:
            self.document({"error": {"problem": problem, "try": hint, "exit_status": status}})
        self._failed.print(f"error: {problem}", style="red", markup=False, soft_wrap=True)
        if hint:
            self._failed.print(f"try: {hint}", markup=False, soft_wrap=True)
        raise typer.Exit(status)


def _trace() -> None:
    """The whole story of the exception at hand, for those who asked for it."""
    if os.environ.get("PRUNECLI_TRACEBACK"):
        traceback.print_exc()
