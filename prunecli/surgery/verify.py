"""The oracle: the smaller model must compute what the reference computes, in float64."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from prunecli.errors import VerificationError, blamed
from prunecli.facts import Verified
from prunecli.graph.copying import copied
from prunecli.graph.examples import outputs
from prunecli.graph.tape import Example, ForwardError, record
from prunecli.graph.tensors import cast, dtype_name

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def widest(module: nn.Module, example: Example) -> tuple[nn.Module, Example]:
    """A copy in float64; where it holds tensors that a conversion does not reach, or has kernels for narrower
    numbers only, in float32 or in its own dtype.
    """
    for dtype in (torch.float64, torch.float32):
        wide, given = cast(copied(module), dtype), example.to(dtype=dtype)
        with contextlib.suppress(ForwardError):
            record(wide, given)
            return wide, given
    return copied(module), example


def compare(
    reference: nn.Module,
    smaller: nn.Module,
    examples: Sequence[Example],
    dtype: torch.dtype,
    seeds: tuple[int, int] = (0, 0),
) -> Verified:
    """Largest difference of all outputs of two models in eval mode; neither is changed.

    `seeds` are of what their forward passes draw: the latent of a variational autoencoder.
    """
    first, second = (cast(copied(m), dtype).eval() for m in (reference, smaller))
    worst_abs = worst_rel = 0.0
    inputs = 0
    for example in (example.to(dtype=dtype) for example in examples):
        expected, found = outputs(first, example, seeds[0]), outputs(second, example, seeds[1])
        for a, b in zip(expected, found, strict=True):
            error, scale = difference(a, b)
            worst_abs = max(worst_abs, error)
            worst_rel = max(worst_rel, error / scale if error else 0.0)
        inputs += len(expected[0]) if expected and expected[0].ndim else 1
    return Verified(worst_abs, worst_rel, inputs, dtype_name(dtype))


def difference(expected: Tensor, found: Tensor) -> tuple[float, float]:
    """Largest difference and largest expected value; infinite where shapes or non-finite places differ."""
    finite = torch.isfinite(expected)
    if expected.shape != found.shape or not torch.equal(finite, torch.isfinite(found)):
        return float("inf"), 1.0
    if not finite.any():
        return (float("inf") if expected.numel() else 0.0), 1.0  # nothing to compare is no proof
    return float((expected - found)[finite].abs().max()), max(float(expected[finite].abs().max()), 1e-300)


def verify(
    reference: nn.Module, smaller: nn.Module, examples: Sequence[Example], dtype: torch.dtype = torch.float64
) -> Verified:
    """Compare and insist.

    Args:
        reference: the masked model.
        smaller: the cut model.
        examples: inputs, random and real.
        dtype: float64 wherever the model runs in it.

    Raises:
        VerificationError: the outputs differ by more than `TOLERANCE` of the largest output, or are not finite.
    """
    with blamed("the model does not run"):
        result = compare(reference, smaller, examples, dtype)
    if result.max_rel_error > TOLERANCE[dtype]:
        raise _refusal(reference, examples, dtype, result)
    return result


def _refusal(
    reference: nn.Module, examples: Sequence[Example], dtype: torch.dtype, result: Verified
) -> VerificationError:
    """Why equality is not shown: the model's own numbers, its random outputs, or the cut."""
    broken = [name for name, weight in reference.named_parameters() if not bool(weight.isfinite().all())]
    if broken:
        return VerificationError(
            f"{broken[0]} holds numbers that are not finite, so that nothing can be shown to be equal; "
            "nothing was written",
            hint="did its training diverge? take an earlier checkpoint",
        )
    given = outputs(cast(copied(reference), dtype).eval(), examples[0].to(dtype=dtype))
    if not all(bool(tensor.isfinite().any()) for tensor in given if tensor.numel()):
        return VerificationError(
            "the model gives nothing but numbers that are not finite, so that nothing can be shown to be equal; "
            "nothing was written",
            hint="a weight norm without a direction, or a batch norm without variance?",
        )
    if compare(reference, reference, examples, dtype, seeds=(0, 1)).max_abs_error:
        return VerificationError(
            "the model gives other outputs for the same input, so that nothing can be shown to be equal; "
            "nothing was written",
            hint="its forward pass draws random numbers in eval mode, and others when it is smaller",
        )
    return VerificationError(
        f"the smaller model differs from the masked one by {result.max_rel_error:.2e} of its largest output "
        f"(allowed {TOLERANCE[dtype]:.0e}); nothing was written",
        hint="report this network; meanwhile exclude its layers with method.exclude",
    )
