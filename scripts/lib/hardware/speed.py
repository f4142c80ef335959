"""How fast this machine multiplies matrices, measured in a process of its own while another one plans.

python -m lib.hardware.speed    waits for a line on standard input, then prints one line of JSON
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

_SECONDS = 0.5  # of products, for each dtype


class Speed(NamedTuple):
    """FLOP/s of the best products in float32, and in the dtype that `finetune.dtype: auto` trains with here."""

    float32: float
    auto: float
    auto_dtype: str


class SpeedTest:
    """A process that has loaded torch and waits: products beside other work would tell less than the machine has."""

    def __init__(self) -> None:
        folder = str(Path(__file__).resolve().parents[2])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "lib.hardware.speed"],
            cwd=folder,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},  # as every job without a GPU of its own
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def measure(self) -> Speed | None:
        """Return the speed, or None where torch cannot be loaded."""
        said, _ = self._process.communicate("\n")
        return Speed(**json.loads(said)) if self._process.returncode == 0 else None

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()


def main() -> None:
    import torch

    from lib.hardware.device import choose_training_dtype, measure_matmul_peak

    sys.stdin.readline()
    dtype = choose_training_dtype("auto")
    single = measure_matmul_peak(torch.float32, _SECONDS)
    auto = single if dtype == torch.float32 else measure_matmul_peak(dtype, _SECONDS)
    print(json.dumps({"float32": single, "auto": auto, "auto_dtype": str(dtype).removeprefix("torch.")}))


if __name__ == "__main__":
    main()
