"""Conditions on figures, as ``--check 'flops<=2e9'``. No torch here."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prunecli.errors import CheckFailed, InputError
from prunecli.facts import AnalyzeFacts
from prunecli.units import parse_amount

FIELDS = ("params", "nonzero", "sparsity", "flops", "bytes", "accuracy")
OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le, ">=": operator.ge, "==": operator.eq, "<": operator.lt, ">": operator.gt,
}  # fmt: skip
_CHECK = re.compile(r"^\s*(\w+)\s*(<=|>=|==|<|>)\s*(.+?)\s*$")


@dataclass(frozen=True)
class Check:
    """One condition."""

    field: str
    operator: str
    amount: float
    text: str


def parse_check(text: str) -> Check:
    """Read ``FIELD OPERATOR AMOUNT``.

    Raises:
        InputError: it is none.
    """
    hint = f"for example 'flops<=20M'; fields: {', '.join(FIELDS)}"
    match = _CHECK.match(text)
    if match is None or match[1] not in FIELDS:
        raise InputError(f"--check {text!r} is not a condition", hint=hint)
    try:
        amount = parse_amount(match[3])
    except ValueError as error:
        raise InputError(f"--check {text!r}: {error}", hint=hint) from error
    return Check(match[1], match[2], amount, text)


def require(checks: Sequence[Check], facts: AnalyzeFacts) -> None:
    """Insist on all of them.

    Raises:
        CheckFailed: one or more do not hold, or speak about a figure that is not known; each is named.
    """
    failed = []
    for check in checks:
        value = getattr(facts, check.field)
        if value is None:
            failed.append(f"{check.text}: {check.field} is not known")
        elif not OPERATORS[check.operator](value, check.amount):
            failed.append(
                f"{check.text}: {check.field} is {value:.6g}"
                if isinstance(value, float)
                else f"{check.text}: {check.field} is {value}"
            )
    if failed:
        raise CheckFailed(f"{facts.model}: check failed: {'; '.join(failed)}")
