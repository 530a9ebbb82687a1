"""A pytest plugin: ``auto`` means a device that is not the CPU, though it computes there (``pytest -p second_device``).

What mixes tensors of two devices fails, as it would on a GPU. The device is built by the compiler of this machine, and
stays for the whole process.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils import cpp_extension

import prunecli.device
import prunecli.train.loop

NAME = "second"


def _build() -> None:
    cpp_extension.load("second_device", [str(Path(__file__).with_name("device.cpp"))], extra_cflags=["-O1"])
    torch.utils.rename_privateuse1_backend(NAME)
    torch.utils.generate_methods_for_privateuse1_backend()
    only: Any = SimpleNamespace(
        is_available=lambda: True,
        device_count=lambda: 1,
        current_device=lambda: 0,
        _is_in_bad_fork=lambda: False,
        manual_seed_all=lambda seed: None,
        get_amp_supported_dtype=lambda: [torch.bfloat16],
    )
    torch._register_device_module(NAME, only)


_build()
_known = prunecli.device.chosen


def _chosen(name: str) -> torch.device:
    return torch.device(NAME, 0) if name == "auto" else _known(name)


prunecli.device.chosen = prunecli.train.loop.chosen = _chosen  # type: ignore[attr-defined]
