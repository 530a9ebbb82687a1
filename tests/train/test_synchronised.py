"""Batch norm over several processes, here of one that meets its own images again."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from prunecli.train import synchronised


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("affine", [True, False])
def test_of_the_same_images_twice_it_is_plain_batch_norm(
    dtype: torch.dtype, affine: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synchronised, "world", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: tensor.mul_(2))
    torch.manual_seed(0)
    found: list[tuple[Tensor, ...]] = []
    for together in (False, True):
        norm = nn.BatchNorm2d(5, affine=affine).to(torch.promote_types(dtype, torch.float32))
        images = torch.randn(16, 5, 4, 4, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
        with synchronised.synchronised(norm if together else nn.Module()):
            assert type(norm).__name__.startswith("Synchronised") == together
            output = norm(images)
        assert output.dtype == dtype
        (output.float() * torch.linspace(-1, 1, output.numel()).reshape(output.shape)).sum().backward()
        assert images.grad is not None
        found.append((output, images.grad, norm.running_mean, norm.running_var))  # type: ignore[arg-type]
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5
    for plain, ours in zip(*(one[:3] for one in found), strict=True):
        torch.testing.assert_close(ours, plain, atol=tolerance, rtol=tolerance)
    unbiased = [
        (variance - 0.9) / 0.1 * (count - 1) / count
        for variance, count in zip((one[3] for one in found), (256, 512), strict=True)
    ]
    torch.testing.assert_close(*unbiased, atol=1e-5, rtol=1e-5)
