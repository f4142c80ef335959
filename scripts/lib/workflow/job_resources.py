"""Memory, time and GPUs of a job, as Snakemake asks for them: functions of its inputs and of the attempt.

Snakemake fills in their arguments by name. The estimates themselves are in `lib.hardware.resources`.
"""

import shlex
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lib.hardware import resources as estimates

Memory = float | Callable[[Any, Any], float]


def grow_memory(mb: Memory) -> Callable[[Any, Any, int], int]:
    """Return a function for `mem_mb` that asks for more with each attempt.

    mb: what the first attempt gets; a number, or a function of wildcards and input.
    """

    def mem_mb(wildcards: Any, input: Any, attempt: int) -> int:
        return estimates.grow_with_attempts(mb(wildcards, input) if callable(mb) else mb, attempt)

    return mem_mb


def measure_mb(files: Iterable[Any]) -> float:
    """Return the size of input files in MB, whether they are on this machine or in a storage.

    Modules of Python count as nothing: an edit to a comment must not change what a job asks for.
    """
    data = [file for file in files if not str(file).endswith(".py")]
    return sum(
        file.storage_object.size() / 1e6 if file.is_storage else estimates.measure_size_mb(file) for file in data
    )


def estimate_data_memory(wildcards: Any, input: Any, attempt: int) -> int:
    """Return `mem_mb` of a rule that holds facts about every row."""
    return estimates.grow_with_attempts(estimates.estimate_data_mb(measure_mb(input)), attempt)


def count_data_threads(wildcards: Any, input: Any) -> int:
    """Return `threads` of a rule that reads every row: one, also while its input is not there, unless that is large."""
    try:
        return estimates.count_data_threads(measure_mb(input))
    except FileNotFoundError:
        return 1


def estimate_data_minutes(wildcards: Any, input: Any, attempt: int) -> int:
    """Return `runtime` of a rule that reads every row."""
    return estimates.estimate_data_minutes(measure_mb(input), attempt)


def estimate_score_minutes(parameters: int, evaluate: Mapping[str, int]) -> Callable[[Any, Any, int], int]:
    """Return a function for `runtime` of a rule that scores a model on `input.rows`."""

    def runtime(wildcards: Any, input: Any, attempt: int) -> int:
        return estimates.estimate_score_minutes(parameters, measure_mb([input.rows]), evaluate, attempt)

    return runtime


def reserve_gpus(with_gpus: str, resources: Any, threads: int) -> list[Any]:
    """Return the shell prefix that reserves this job's GPUs; a job without GPUs has them hidden.

    On several nodes it starts the command on each of them. with_gpus: path of the script.
    """
    launcher: list[Any] = []
    if resources.get("mpi"):
        launcher = [*shlex.split(str(resources.mpi)), "-n", resources.tasks, "-N", resources.nodes]
        launcher.append(f"--cpus-per-task={threads}")
    gpus = estimates.count_gpus(resources)
    return [*launcher, *(["python", with_gpus, gpus] if gpus else ["env", "CUDA_VISIBLE_DEVICES="])]


def count_processes(wildcards: Any, resources: Any) -> int:
    """Return how many processes train together on each node."""
    return max(1, estimates.count_gpus(resources))
