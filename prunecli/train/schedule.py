"""The learning rate as a pure function of progress: nothing to save, nothing to restore."""

from __future__ import annotations

import math
from bisect import bisect_right

from prunecli.recipe.schema import Train


def learning_rate(settings: Train, step: int, steps: int, per_epoch: int) -> float:
    """Rate for step `step` of `steps`: linear warm-up, then cosine (Loshchilov and Hutter 2017), step or constant."""
    warmup = round(settings.warmup_epochs * per_epoch)
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    if settings.schedule == "cosine":
        return settings.lr * 0.5 * (1 + math.cos(math.pi * progress))
    if settings.schedule == "step":
        return settings.lr * settings.gamma ** bisect_right(settings.milestones, progress)
    return settings.lr
