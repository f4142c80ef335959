"""Memory, time and threads of each rule, from the size of the model and the data.

Units are Snakemake's: `mem_mb` in MB, `runtime` in minutes. They are what a scheduler reserves. On one
machine they only keep heavy rules from running at the same time. Peaks of the demo (134.5 million
parameters, fp32, 2 cores; column max_rss of results/timings/): fetch_model 574, train_adapter 3652,
build_onnx 2592, scoring 1188 MB. Merge and build are measured on more sizes: benchmarks/memory.md.
"""

import math
import os
from collections.abc import Mapping
from typing import Any

HEAVY_THREADS = 16  # "all cores": Snakemake lowers it to --cores
_MB = 1e6


def weights_mb(parameters: int, bytes_each: int = 4) -> float:
    """Size of a model's weights in MB (fp32 unless told otherwise)."""
    return parameters * bytes_each / _MB


def data_mb(rows_mb: float) -> int:
    """Rules that hold the rows and a few facts of each: MinHash and ids beside the text."""
    return math.ceil(1000 + 12 * rows_mb)


def fetch_model_mb(parameters: int) -> int:
    """Dequantising a GGUF holds it in fp32 and once more while it is saved."""
    return math.ceil(1000 + 2.5 * weights_mb(parameters))


def train_mb(parameters: int, finetune: Mapping[str, Any], max_length: int) -> int:
    """Weights in fp32, adapter with two Adam moments and gradient, activations of one batch.

    Activations: about 34 bytes per hidden value and layer (Korthikanti et al. 2022, table 2, without
    the attention matrix); hidden x layers is taken as 1.4 * parameters ** 0.5, which holds within a
    factor of 2 from 0.1 to 8 billion parameters.
    Measured peaks in MB, task metric while training included: 3009 for the demo (4423 here); 2404 with LoRA, 2423 with
    QLoRA and 2923 with DoRA for examples/methods.yaml (3009 here; benchmarks/methods.md).
    """
    block = finetune["source_max_len"] if finetune["corpus_strategy"] == "join" else max_length
    tokens = finetune["per_device_train_batch_size"] * block
    activations = 2 * 34 * 1.4 * math.sqrt(parameters) * tokens / _MB
    if finetune["gradient_checkpointing"]:
        activations /= 4
    adapter = 16 * 0.002 * finetune["r"] * parameters / _MB
    return math.ceil(1500 + 1.1 * weights_mb(parameters) + adapter + activations)


def merge_mb(parameters: int) -> int:
    """The libraries and a few copies of the largest matrix, seldom more than a fifth of the weights.

    Measured (benchmarks/memory.md): 651 MB for 134.5 million parameters.
    """
    return math.ceil(1000 + 0.5 * weights_mb(parameters))


def build_mb(parameters: int) -> int:
    """The builder holds the weights in fp32 and once more while it packs them; k_quant takes most.

    Measured (benchmarks/memory.md), int4 / k_quant / fp32 in MB: 585 / 645 / 587 for 3.2 million parameters,
    1244 / 1650 / 1206 for 47.2, 1859 / 2829 / 2337 for 134.5: at most 1011 + 3.4 times the weights.
    """
    return math.ceil(1200 + 3.5 * weights_mb(parameters))


def calibrate_mb(parameters: int) -> int:
    """The weights in fp32, a layer's inputs and gradients: 1320 MB measured for 134.5 million parameters."""
    return math.ceil(1200 + 2.5 * weights_mb(parameters))


def score_mb(parameters: int) -> int:
    return math.ceil(1500 + 1.5 * weights_mb(parameters))


def minutes(seconds: float, attempt: int) -> int:
    """Reserved time: what it should take, four times, and twice that at each further attempt."""
    return math.ceil(4 * seconds / 60 * 2 ** (attempt - 1)) + 10


def train_minutes(parameters: int, corpus_mb: float, finetune: Mapping[str, Any], attempt: int) -> int:
    """4N operations a token at 75 GFLOP/s: what two cores without bf16 units reach.

    A token is taken as 3 bytes of the corpus file and a row as 400.
    """
    tokens = corpus_mb * _MB / 3 * finetune["epochs"]
    if finetune["max_steps"]:
        rows = finetune["max_steps"] * finetune["per_device_train_batch_size"] * finetune["gradient_accumulation_steps"]
        tokens = rows * 400 / 3
    return minutes(4 * parameters * tokens / 75e9, attempt)


def size_mb(path: str) -> float:
    return os.path.getsize(path) / _MB
