"""What this machine can do: dtype, threads, memory, matmul peak."""

import time
from pathlib import Path

import torch


def use_threads(threads: int) -> None:
    """Let torch use this many threads; more of them than cores only get in each other's way."""
    torch.set_num_threads(threads)


def choose_training_dtype(wanted: str) -> torch.dtype:
    """Choose the dtype: `auto` is bfloat16 on a GPU that has it or on a CPU with AMX or AVX512-BF16, else float32.

    Without such units a CPU does bfloat16 matmuls about ten times slower than float32.
    """
    if wanted != "auto":
        return getattr(torch, wanted)
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if _cpu_has_bfloat16_units() else torch.float32


def measure_matmul_peak(dtype: torch.dtype, seconds: float = 1.0) -> float:
    """Return best FLOP/s of square matmuls over about a second: what the share of the peak refers to."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # An H100 multiplies matrices of 1,536 in 9 microseconds: less than it takes to start it.
    size = 8192 if device == "cuda" else 1536
    left, right = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        left @ right
        if device == "cuda":
            torch.cuda.synchronize()
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def _cpu_has_bfloat16_units() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "amx_bf16" in flags or "avx512_bf16" in flags
