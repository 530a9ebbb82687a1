"""Every failure the tool reports on purpose.

    PrunecliError                 exit status
    ├── InputError                2   bad usage, recipe or input
    │   ├── RecipeError           2   one or more problems in a recipe, all in one report
    │   ├── CheckpointError       2   a file that cannot be read as a checkpoint
    │   │   └── UnsafeFileError   2   a file that would execute code when read
    │   ├── ArchError             2   no architecture, several, or the wrong one
    │   ├── DataError             2   unknown, missing or unfitting data
    │   └── OutputError           2   the result cannot be written there
    └── OutcomeError              1   the work was done and the answer is no
        ├── CheckFailed           1   `--check` did not hold
        ├── BudgetMissed          1   the asked budget was not met
        ├── NothingRemoved        1   no weight changed and no channel went away
        └── VerificationError     1   the smaller model does not equal the masked one

An error states four facts: what was given, where, what was expected, what to do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class PrunecliError(Exception):
    """Base of all errors; `exit_status` is what the command line returns."""

    exit_status = 2

    def __init__(self, problem: str, *, hint: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.problem}\ntry: {self.hint}" if self.hint else self.problem


class InputError(PrunecliError):
    """Bad usage or bad input."""


class RecipeError(InputError):
    """A recipe that does not validate; the message lists every problem."""


class CheckpointError(InputError):
    """A file that cannot be read as a checkpoint."""


class UnsafeFileError(CheckpointError):
    """A file whose reading would execute code."""


class ArchError(InputError):
    """The architecture is unknown, ambiguous or does not fit the checkpoint."""


class DataError(InputError):
    """The data set is unknown, missing or does not fit the model."""


class OutputError(InputError):
    """The output path cannot be used."""


class OutcomeError(PrunecliError):
    """The work was done and the answer is no."""

    exit_status = 1


class CheckFailed(OutcomeError):
    """A `--check` condition did not hold."""


class BudgetMissed(OutcomeError):
    """The asked budget was not met."""


class NothingRemoved(OutcomeError):
    """Nothing could be removed."""


class VerificationError(OutcomeError):
    """The smaller model does not compute what the masked one did."""


def summary(error: BaseException) -> str:
    """An exception in one line: its type, and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]


def is_out_of_memory(error: BaseException) -> bool:
    """Python's own error, CUDA's, and that of torch's allocator on the CPU, which has no type of its own."""
    known = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return known or "can't allocate memory" in str(error)


@contextlib.contextmanager
def blamed(what: str, kind: type[InputError] = InputError) -> Iterator[None]:
    """What a user's code raises meanwhile is no internal error: ``the model cannot be trained: RuntimeError ...``.

    Raises:
        InputError: of this kind, with what it said.
    """
    try:
        yield
    except PrunecliError:
        raise
    except (Exception, SystemExit) as error:
        if is_out_of_memory(error):
            raise
        raise kind(f"{what}: {summary(error)}", hint="PRUNECLI_TRACEBACK=1 shows where it happened") from error
