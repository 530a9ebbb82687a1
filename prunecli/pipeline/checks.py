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


def require(checks: Sequence[Check], found: Sequence[AnalyzeFacts]) -> None:
    """Insist on all checks for all models.

    Raises:
        CheckFailed: some do not hold, or speak about a figure that is not known; each is named.
    """
    failed = [f"{facts.model}: {problem}" for facts in found for check in checks if (problem := _problem(check, facts))]
    if failed:
        raise CheckFailed(f"check failed: {'; '.join(failed)}")


def _problem(check: Check, facts: AnalyzeFacts) -> str:
    value = getattr(facts, check.field)
    if value is None:
        return f"{check.text}: {check.field} is not known"
    if OPERATORS[check.operator](value, check.amount):
        return ""
    return f"{check.text}: {check.field} is {value if isinstance(value, int) else format(value, '.6g')}"
