"""Memory, time, disk, threads and GPUs of each rule, from the size of the model and the data.

Units are Snakemake's: `mem_mb` in MB, `runtime` in minutes. They are what a scheduler reserves, and what
`scripts/check.py` shows before a run. On one machine they only keep heavy rules from running at the same time. Peaks
that they were fitted to: benchmarks/memory.md and benchmarks/plan.md.

Times are those of two CPU cores without bf16 units: on more cores or a GPU a rule is done earlier. What a
GPU needs is said by the profile, which knows the GPU.
"""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

HEAVY_THREADS = 16  # "all cores": Snakemake lowers it to --cores
_DATA_THREADS, _SMALL_DATA_MB = 4, 10  # of rules that read every row; below it processes start in vain
_MB = 1e6
CHECK_MODEL_SECONDS = 10  # benchmarks/model_checks.md
CHECK_MODEL_MB = 1200  # torch, transformers and the builder, beside models of some megabytes
FETCH_TOKENIZER_MB = 2000  # torch and transformers, and 1 GB for the largest vocabularies out of a GGUF file
CPU_OPERATIONS = 75e9  # a second: fp32 products on two cores
_ONNX_OPERATIONS = 1.4 * CPU_OPERATIONS  # of int4 kernels, which multiply bytes
# Weights read for one token after the other, in a second: 36 tokens/s of 538 MB (benchmarks/quantization.md).
_CPU_BYTES = 19e9
_TOKEN_SECONDS = 0.004  # that ONNX Runtime GenAI takes for a token beside reading the weights
_STEP_SECONDS = 0.04  # the same in PyTorch, for a token of each row in a batch
TOKEN_BYTES = 3  # of a corpus file
EVAL_ROWS = 1000  # of a validation, as in scripts/train_adapter.py
# Bytes of a weight in ONNX, with scales and with what stays in a higher precision.
_STORED_BYTES = {"int4": 0.7, "int8": 1.2, "fp16": 2.1, "bf16": 2.1, "fp32": 4.1}


@dataclass
class Expected:
    """Hold what a plan knows before the files are there, and a run does not ask for: it takes the most that can be.

    sizes_mb: of files, by path. longest: tokens of the longest row. row_bytes: of a row in a corpus. shared: the part
    of a row that all rows begin with, which is computed once. answer_tokens: of a free answer. vocabulary: ids of the
    model. auto_bytes: of a weight in the dtype that `finetune.dtype: auto` stands for.
    """

    sizes_mb: dict[str, float] = field(default_factory=dict)
    longest: float = math.inf
    row_bytes: float = 400
    shared: float = 0.0
    answer_tokens: float = math.inf
    vocabulary: int = 150_000  # Qwen's; few have more
    auto_bytes: int = 4


EXPECTED = Expected()


def estimate_weights_mb(parameters: int, bytes_each: int = 4) -> float:
    """Return size of a model's weights in MB (fp32 unless told otherwise)."""
    return parameters * bytes_each / _MB


def estimate_data_mb(rows_mb: float) -> int:
    """Return what rules take that hold the rows and a few facts of each: MinHash and ids beside the text."""
    return math.ceil(1000 + 12 * rows_mb)


def count_data_threads(rows_mb: float) -> int:
    """Return how many threads or processes read the rows."""
    return _DATA_THREADS if rows_mb > _SMALL_DATA_MB else 1


def estimate_fetch_model_mb(parameters: int) -> int:
    """Return what reading a GGUF file takes, which is held in fp32 and once more while it is saved."""
    return math.ceil(1000 + 2.5 * estimate_weights_mb(parameters))


def estimate_train_mb(parameters: int, finetune: Mapping[str, Any], max_length: int, task: str) -> int:
    """Return weights in fp32, adapter with two Adam moments and gradient, activations and logits of one batch.

    Activations: about 34 bytes per hidden value and layer (Korthikanti et al. 2022, table 2, without
    the attention matrix); hidden x layers is taken as 1.4 * parameters ** 0.5, which holds within a
    factor of 2 from 0.1 to 8 billion parameters.
    Measured peaks of the demo in MB: 1728 in bfloat16, 2531 in float32 (docs/fine-tuning.md). Before freed activations
    were given back, 2923 with DoRA beside 2404 with LoRA for examples/methods.yaml (benchmarks/methods.md).
    """
    tokens = _estimate_batch_tokens(finetune, max_length)
    activations = 2 * 34 * 1.4 * math.sqrt(parameters) * tokens / _MB
    if finetune["gradient_checkpointing"]:
        activations /= 4
    if task == "generation" or finetune["loss"] == "all":  # logits, their softmax and its gradient; a label is short
        activations += 3 * 4 * EXPECTED.vocabulary * tokens / _MB
    adapter = 4 * estimate_adapter_mb(parameters, finetune["r"])
    weights = estimate_weights_mb(parameters, {"auto": EXPECTED.auto_bytes, "bfloat16": 2}.get(finetune["dtype"], 4))
    return math.ceil(1250 + 1.1 * weights + adapter + activations)


def _estimate_batch_tokens(finetune: Mapping[str, Any], max_length: int) -> float:
    """Return the tokens of the largest batch: rows of the most tokens, or in a plan, which knows more, rows of the mean
    and as many more as some of them will have at once.
    """
    rows = finetune["per_device_train_batch_size"]
    if finetune["corpus_strategy"] == "join":
        return float(rows * finetune["source_max_len"])
    if math.isinf(EXPECTED.longest):
        return float(rows * max_length)
    longest, mean = min(max_length, EXPECTED.longest), EXPECTED.row_bytes / TOKEN_BYTES
    return rows * mean * _find_computed_part(rows) + math.sqrt(rows) * (longest - mean)


def _find_computed_part(batch: float) -> float:
    """Return which part of the tokens is computed when what the rows of a batch share stands there once."""
    return 1 - EXPECTED.shared * (1 - 1 / batch)


def estimate_merge_mb(parameters: int) -> int:
    """Return the libraries and a few copies of the largest matrix, seldom more than a fifth of the weights.

    Measured: 651 MB for 134.5 million parameters, 1880 for 1236 million (benchmarks/memory.md, second_base.md).
    """
    return math.ceil(700 + 0.3 * estimate_weights_mb(parameters))


def estimate_build_mb(parameters: int, algo_config: str | None = None) -> int:
    """Return what the builder takes, which holds the weights in fp32 and once more while it packs them.

    Measured (benchmarks/memory.md, second_base.md), int4 / k_quant / fp32 in MB: 585 / 645 / 587 for 3.2 million
    parameters, 1244 / 1650 / 1206 for 47.2, 2290 / 2829 / 2337 for 134.5, 4072 / 5696 / 5285 for 361.8; int4 11788 for
    1236.
    """
    return math.ceil(1200 + (3.5 if algo_config == "k_quant" else 2.9) * estimate_weights_mb(parameters))


def estimate_calibrate_mb(parameters: int) -> int:
    """Return the weights in fp32, a layer's inputs and gradients, or in GPTQ the weights once more, by columns: 1320 MB
    measured for AutoRound and 1830 for GPTQ, for 134.5 million parameters.

    Not below what `calibrate_weights` refuses to begin with.
    """
    return math.ceil(800 + 2.1 * estimate_weights_mb(parameters))


def estimate_score_mb(parameters: int) -> int:
    """Return what scoring in PyTorch takes: 1836 MB measured for 134.5 million parameters, 7703 for 1236 million."""
    return math.ceil(1200 + 1.4 * estimate_weights_mb(parameters))


def estimate_score_onnx_mb(built_mb: float) -> int:
    """Return what ONNX Runtime takes, which keeps weights as they are stored and once more as it multiplies them.

    built_mb: size of the model. Measured for int4: 3289 MB for 1236 million parameters (benchmarks/second_base.md).
    """
    return math.ceil(1150 + 3 * built_mb)


def estimate_benchmark_mb(built_mb: float) -> int:
    """Return what writing text with ONNX Runtime GenAI takes: 332 MB measured for a model of 92 MB, 1451 for 806."""
    return math.ceil(250 + 1.6 * built_mb)


def estimate_adapter_mb(parameters: int, r: int) -> float:
    """Return the size of an adapter on all linear layers, in fp32: 19.5 MB for the demo."""
    return 4 * 0.0023 * r * parameters / _MB


def estimate_onnx_mb(parameters: int, precision: str) -> float:
    """Return the size of a build: 92 MB for the demo's int4, 806 MB for 1.2 billion parameters."""
    return _STORED_BYTES[precision] * parameters / _MB


def grow_with_attempts(mb: float, attempt: int) -> int:
    """Return memory at a further attempt: half as much again each time, since the first may have died of too little."""
    return math.ceil(mb * 1.5 ** max(0, attempt - 1))


def reserve_minutes(seconds: float, attempt: int) -> int:
    """Return reserved time: what it should take, four times, and twice that at each further attempt.

    Attempt 0, which no job has, stands for a plan: the seconds themselves.
    """
    if attempt == 0:
        return math.ceil(seconds)
    return math.ceil((4 * seconds / 60 + 10) * 2 ** (attempt - 1))


def estimate_data_minutes(rows_mb: float, attempt: int) -> int:
    """Return the minutes of the slowest, the audit: 250 s for a million rows, about 300 MB (benchmarks/data.md)."""
    return reserve_minutes(2 * rows_mb, attempt)


def estimate_load_seconds(megabytes: float) -> float:
    """Return what reading weights and converting them takes, at 500 MB/s."""
    return megabytes / 500


def estimate_writing_seconds(parameters: int, evaluate: Mapping[str, int], batch: int) -> float:
    """Return what free answers take in PyTorch: 2N operations for each of their tokens, and weights read for each place
    in the answers of a batch.
    """
    rows, longest = evaluate["greedy_rows"], evaluate["max_new_tokens"]
    computed = 2 * parameters * rows * min(longest, EXPECTED.answer_tokens) / CPU_OPERATIONS
    steps = math.ceil(rows / batch) * longest
    return computed + steps * (4 * parameters / _CPU_BYTES + _STEP_SECONDS)


def estimate_train_minutes(
    parameters: int,
    train_mb: float,
    validation_mb: float,
    finetune: Mapping[str, Any],
    evaluate: Mapping[str, int] | None,
    attempt: int,
) -> int:
    """Return the minutes of a training that computes 4N operations a token, and 2N in each validation.

    evaluate: of a task whose validations write free answers, else None. A row is taken as 400 bytes of the corpus file.
    """
    batch = finetune["per_device_train_batch_size"] * finetune["gradient_accumulation_steps"]
    row_bytes, validated_every = EXPECTED.row_bytes, finetune["eval_steps"]
    steps = finetune["max_steps"] or train_mb * _MB / row_bytes / batch * finetune["num_train_epochs"]
    validations = max(1.0, steps / validated_every)
    tokens = steps * batch * row_bytes / TOKEN_BYTES
    if finetune["corpus_strategy"] != "join":
        tokens *= _find_computed_part(finetune["per_device_train_batch_size"])
    scored = validations * min(validation_mb * _MB, (finetune["eval_rows"] or EVAL_ROWS) * row_bytes) / TOKEN_BYTES
    scored *= _find_computed_part(finetune["per_device_eval_batch_size"])
    work = 2 * parameters * (2 * tokens + scored) / CPU_OPERATIONS
    if evaluate:
        work += validations * estimate_writing_seconds(parameters, evaluate, finetune["per_device_eval_batch_size"])
    return reserve_minutes(estimate_load_seconds(estimate_weights_mb(parameters)) + work, attempt)


def estimate_merge_minutes(parameters: int, attempt: int) -> int:
    """Return the minutes in which weights are read and written and two forward passes compared: 53 s of work for 1.2
    billion parameters (benchmarks/second_base.md).
    """
    return reserve_minutes(estimate_weights_mb(parameters) / 60, attempt)


def estimate_build_minutes(parameters: int, algo_config: str | None, attempt: int) -> int:
    """Return the minutes of a build; slowest is k_quant. The default took 80 s for 1.2 billion parameters."""
    return reserve_minutes(estimate_weights_mb(parameters) / (10 if algo_config == "k_quant" else 42), attempt)


def estimate_calibrate_minutes(parameters: int, calibration: Mapping[str, int | None], attempt: int) -> int:
    """Return the minutes in which each layer passes 4 sequences forward and back in a step (benchmarks/plan.md).

    GPTQ, which has no steps: rows pass forward once and are multiplied with themselves, then columns are rounded.
    """
    if not calibration["iterations"] or not calibration["length"]:
        tokens = (calibration["rows"] or 0) * EXPECTED.row_bytes / TOKEN_BYTES
        return reserve_minutes(3 * parameters * tokens / CPU_OPERATIONS + 2e-7 * parameters, attempt)
    tokens = 4 * calibration["length"] * calibration["iterations"]
    return reserve_minutes(10 * parameters * tokens / CPU_OPERATIONS, attempt)


def _count_own_tokens(rows_mb: float) -> float:
    """Return the tokens of a corpus without what all rows begin with, which a score computes once."""
    return rows_mb * _MB / TOKEN_BYTES * (1 - EXPECTED.shared)


def estimate_score_minutes(parameters: int, rows_mb: float, evaluate: Mapping[str, int], attempt: int) -> int:
    """Return the minutes of a score in PyTorch: 2N operations a token of every row, and free answers to the first."""
    seconds = 2 * parameters * _count_own_tokens(rows_mb) / CPU_OPERATIONS
    seconds += estimate_writing_seconds(parameters, evaluate, evaluate["batch_size"])
    return reserve_minutes(estimate_load_seconds(estimate_weights_mb(parameters)) + seconds, attempt)


def estimate_score_onnx_minutes(
    parameters: int, built_mb: float, rows_mb: float, evaluate: Mapping[str, int], attempt: int
) -> int:
    """Return the minutes of a score in ONNX Runtime: as in PyTorch, but each free answer is written alone.

    built_mb: size of the model.
    """
    read = evaluate["greedy_rows"] * min(evaluate["max_new_tokens"], EXPECTED.answer_tokens)
    seconds = 2 * parameters * _count_own_tokens(rows_mb) / _ONNX_OPERATIONS + built_mb * _MB * read / _CPU_BYTES
    return reserve_minutes(estimate_load_seconds(built_mb) + seconds, attempt)


def estimate_benchmark_minutes(built_mb: float, benchmark: Mapping[str, int], attempt: int) -> int:
    """Return the minutes of writing token after token. built_mb: size of the model."""
    tokens = (benchmark["prompts"] + 1) * benchmark["new_tokens"]
    seconds = tokens * (built_mb * _MB / _CPU_BYTES + _TOKEN_SECONDS)
    return reserve_minutes(estimate_load_seconds(built_mb) + seconds, attempt)


def count_gpus(resources: Mapping[str, Any]) -> int:
    """Return GPUs of a job on one node: its `gpu`, which counts those of all its nodes, or the number in `gres`.

    gres: as Slurm writes it, `gpu`, `gpu:2` or `gpu:a100:2`.
    """
    if gpu := resources.get("gpu"):
        return int(gpu) // int(resources.get("nodes", 1))
    found = re.fullmatch(r"gpu(?::[\w.]*[A-Za-z_][\w.]*)?(?::(\d+))?", str(resources.get("gres", "")))
    return int(found[1] or 1) if found else 0


def measure_size_mb(path: str) -> float:
    known = EXPECTED.sizes_mb.get(str(path))
    return os.path.getsize(path) / _MB if known is None else known
