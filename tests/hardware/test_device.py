"""What is measured of the machine that a step runs on."""

import pytest
import torch

from lib.hardware.device import measure_matmul_peak


@pytest.mark.parametrize(("has_gpu", "device", "size"), [(False, "cpu", 1536), (True, "cuda", 8192)])
def test_the_matmul_of_the_peak_is_large_enough_for_its_device(monkeypatch, has_gpu, device, size):
    """A GPU multiplies 1,536 by 1,536 faster than it starts: the peak would be many times too low."""
    asked, draw = [], torch.randn

    def draw_small(*shape, dtype, device):
        asked.append((shape, device))
        return draw(2, 2, dtype=dtype)

    monkeypatch.setattr(torch, "randn", draw_small)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert measure_matmul_peak(torch.float32, seconds=0.01) > 0
    assert asked == [((size, size), device)] * 2
