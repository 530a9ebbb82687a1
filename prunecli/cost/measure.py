"""fvcore's count of the finished model: the figure that reports state."""

from __future__ import annotations

import logging
import warnings

from torch import nn

from prunecli.graph.tape import Example


def fvcore_flops(module: nn.Module, example: Example) -> int | None:
    """FLOPs by fvcore (one multiply-add counts once), or None where fvcore cannot trace the model."""
    from fvcore.nn import FlopCountAnalysis

    training = {name: m.training for name, m in module.named_modules()}
    module.eval()  # in training mode fvcore's trace would move batch-norm statistics
    logger = logging.getLogger("fvcore")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            analysis = FlopCountAnalysis(module, tuple(example.args))
            analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
            return int(analysis.total())
    except Exception:
        return None
    finally:
        logger.setLevel(level)
        for name, m in module.named_modules():
            m.training = training[name]
