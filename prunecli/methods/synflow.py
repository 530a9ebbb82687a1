"""Synaptic flow (Tanaka et al. 2020, arXiv 2006.05467): data-free; meant to be asked for in many steps.

budget: {sparsity: 0.95, iterative: {steps: 100}}
"""

from __future__ import annotations

from typing import Literal

from prunecli.methods.base import Evidence
from prunecli.methods.saliency import Saliencies, Saliency


class SynFlow(Saliency):
    """Fields of ``method: {name: synflow}``."""

    name: Literal["synflow"]

    def saliencies(self, evidence: Evidence) -> Saliencies:
        """``|dR/dw * w|`` (equation 3); R sums the outputs of the model with absolute weights on an input of ones."""
        import torch
        from torch import nn

        from prunecli.errors import blamed
        from prunecli.graph.tape import output_tensors
        from prunecli.surgery.verify import widest

        module, example = widest(evidence.module, evidence.example)
        for part in module.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.running_mean is not None:
                part.running_mean.zero_()
        for parameter in module.parameters():
            parameter.data.copy_(parameter.data.abs())  # complex numbers have no abs in place
        weights = {n: w for n, w in module.named_parameters() if w.ndim > 1}
        ones = example.map(lambda t: torch.ones_like(t) if t.is_floating_point() else t)
        with torch.enable_grad(), blamed("the model has no gradients"):
            flow = sum(t.sum() for t in output_tensors(module(*ones.args, **ones.kwargs)) if t.is_floating_point())
            assert isinstance(flow, torch.Tensor)
            found = torch.autograd.grad(flow, list(weights.values()), allow_unused=True)
        pairs = zip(weights.items(), found, strict=True)
        return {n: torch.zeros_like(w) if g is None else (g * w.detach()).abs() for (n, w), g in pairs}
