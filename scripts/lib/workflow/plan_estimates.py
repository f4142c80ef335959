"""Time, memory and disk of planned jobs on the machine at hand, and what will not fit into it."""

import csv
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.core.files import read_json
from lib.hardware import resources
from lib.hardware.resources import EXPECTED
from lib.hardware.speed import Speed
from lib.workflow.plan import PlannedJob
from lib.workflow.steps import describe_step

# Seconds from the start of a job to its work and from there to its end, on the machine that the rest was measured on.
_START_UP = {"train": 7.0, "onnx": 5.0}
_OTHER_START_UP = 2.5
# Of the best products' speed, what a job reaches in float32, and what a training does, which leaves work out.
_SHARE, _TRAINING_SHARE = 0.65, 0.8
# The range that is told to both sides of an estimate, and where finished jobs of the same rule say how long one takes.
_RANGE, _RANGE_SEEN = 1.5, 1.25


@dataclass(frozen=True)
class Settings:
    """What estimates depend on beside the jobs. parameters: of the base model; weight_bytes: of each in its files.

    runs: `finetune` of each training, by the name of its run; variants: their settings. results: the folder.
    """

    results: Path
    parameters: int
    weight_bytes: int
    runs: Mapping[str, Mapping[str, Any]]
    variants: Mapping[str, Mapping[str, Any]]


def estimate_jobs(jobs: Sequence[PlannedJob], settings: Settings, speed: Speed | None) -> list[dict[str, Any]]:
    """Return each job that will run, with `seconds` and their range, `mem_mb` and `disk_mb`; None what is not known.

    speed: of this machine; None: the jobs run elsewhere, and times are those of two slow cores.
    """
    expected = {id(job): _expect_seconds(job, settings, speed) for job in jobs}
    seen = _compare_finished(jobs, expected)
    return [_estimate_job(job, expected[id(job)], seen.get(job.rule), settings) for job in jobs if not job.is_done]


def _estimate_job(job: PlannedJob, expected: float | None, ratio: float | None, settings: Settings) -> dict[str, Any]:
    seconds = None if expected is None else expected * (ratio or 1.0)
    factor = _RANGE_SEEN if ratio else _RANGE
    return {
        "rule": job.rule,
        "step": describe_step(job.rule, job.wildcards),
        "wildcards": dict(job.wildcards),
        "reason": job.reason,
        "seconds": seconds,
        "seconds_range": None if seconds is None else [seconds / factor, seconds * factor],
        "reserved_minutes": job.reserved,
        "gpus": job.gpus,
        "mem_mb": job.mem_mb,
        "disk_mb": _estimate_disk_mb(job, settings),
    }


def _expect_seconds(job: PlannedJob, settings: Settings, speed: Speed | None) -> float | None:
    """Return start-up and work in seconds; None on a GPU, whose speed nobody has measured."""
    if job.gpus or job.reserved is not None:
        return None
    slower = resources.CPU_OPERATIONS / (_SHARE * speed.float32) if speed else 1.0
    work = (job.seconds or 0.0) * slower
    if job.rule == "train_adapter":
        finetune = settings.runs[job.wildcards["run"]]
        share = _SHARE / _TRAINING_SHARE
        if speed and finetune["dtype"] == "auto" and speed.auto_dtype != "float32":
            share = _SHARE * speed.float32 / (_share_in_bfloat16(settings.parameters) * speed.auto)
        work *= share
    return _START_UP.get(job.environment, _OTHER_START_UP) * slower + work


def _share_in_bfloat16(parameters: int) -> float:
    """Return the share of the best bfloat16 products' speed that a training reaches: small matrices reach less."""
    return min(0.69, 0.45 * (parameters / 134.5e6) ** 0.16)


def _compare_finished(jobs: Sequence[PlannedJob], expected: Mapping[int, float | None]) -> dict[str, float]:
    """Return what the finished jobs of each rule took, per second that was expected."""
    taken: dict[str, float] = {}
    known: dict[str, float] = {}
    for job in jobs:
        seconds, guess = _read_seconds(Path(job.timing)), expected[id(job)]
        if job.is_done and seconds and guess:
            taken[job.rule] = taken.get(job.rule, 0.0) + seconds
            known[job.rule] = known.get(job.rule, 0.0) + guess
    return {rule: seconds / known[rule] for rule, seconds in taken.items()}


def _read_seconds(timing: Path) -> float | None:
    """Return the seconds in Snakemake's benchmark table of a job, or None where there is none."""
    if not timing.is_file():
        return None
    with open(timing, encoding="utf-8", newline="") as lines:
        return sum(float(row["s"]) for row in csv.DictReader(lines, delimiter="\t"))


def _estimate_disk_mb(job: PlannedJob, settings: Settings) -> float:
    """Return what a job leaves on the disk, in MB; nothing for files that are small beside a model's."""
    whole = settings.parameters * settings.weight_bytes / 1e6
    sizes = {
        name: resources.estimate_onnx_mb(settings.parameters, variant["precision"])
        for name, variant in settings.variants.items()
    }
    if job.rule in ("fetch_model", "merge_adapter", "choose_merge", "fetch_merged"):
        return whole
    if job.rule == "train_adapter":
        finetune = settings.runs[job.wildcards["run"]]
        return 4 * resources.estimate_adapter_mb(settings.parameters, finetune["r"])  # itself and its progress
    if job.rule in ("build_onnx", "calibrate_weights"):
        return sizes[job.wildcards["variant"]]
    if job.rule in ("assemble_model", "package_model"):
        return max(sizes.values())
    return 0.0


def read_model_sizes(tokenizer: Path) -> dict[str, int]:
    """Return the bytes of a weight as the base model stores it (4 where its config.json does not say), and the ids of
    its vocabulary.
    """
    config = read_json(tokenizer / "config.json")
    named = config.get("dtype") or config.get("torch_dtype")
    vocabulary = config.get("vocab_size") or EXPECTED.vocabulary
    return {"weight_bytes": 2 if named in ("bfloat16", "float16") else 4, "vocabulary": vocabulary}


def sum_jobs(jobs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what all jobs take one after the other; time of jobs that cannot be estimated is not in it."""
    known = [job for job in jobs if job["seconds"] is not None]
    return {
        "jobs": len(jobs),
        "seconds": sum(job["seconds"] for job in known),
        "seconds_range": [sum(job["seconds_range"][end] for job in known) for end in (0, 1)],
        "not_estimated": len(jobs) - len(known),
        "mem_mb": max((job["mem_mb"] or 0 for job in jobs), default=0),
        "disk_mb": sum(job["disk_mb"] for job in jobs),
    }


def find_problems(jobs: Sequence[Mapping[str, Any]], memory_mb: float, results: Path) -> list[str]:
    """Return a line for each rule that needs more memory than this machine has, and one for the disk."""
    found = []
    largest: dict[str, float] = {}
    for job in jobs:
        largest[job["rule"]] = max(largest.get(job["rule"], 0.0), job["mem_mb"] or 0.0)
    for rule, needed in largest.items():
        if needed > memory_mb:
            found.append(
                f"{rule} needs about {needed / 1000:.1f} GB of memory, this machine has {memory_mb / 1000:.1f} GB free;"
                " take a larger machine (a profile), or a smaller base model"
            )
    folder = next(folder for folder in (results, *results.absolute().parents) if folder.exists())
    free, needed = shutil.disk_usage(folder).free / 1e6, sum(job["disk_mb"] for job in jobs)
    if needed > free:
        found.append(
            f"{results}: the run writes about {needed / 1000:.1f} GB, {free / 1000:.1f} GB are free; free some space"
        )
    return found


def count_steps(finetune: Mapping[str, Any], look: Mapping[str, Any]) -> dict[str, Any]:
    """Return steps, sequences and tokens of a training, from rows and tokens of the look at the data."""
    rows, mean, block = look["splits"]["train"], look["tokens"]["mean"], finetune["source_max_len"]
    sequences = rows
    if finetune["corpus_strategy"] == "join":
        sequences = math.floor(rows * mean / block)
    batch = finetune["per_device_train_batch_size"] * finetune["gradient_accumulation_steps"]
    in_epoch = math.ceil(sequences / batch)
    steps = finetune["max_steps"] or math.ceil(in_epoch * finetune["num_train_epochs"])
    share = steps / in_epoch if in_epoch else 0.0
    return {"steps": steps, "sequences": sequences, "epochs": round(share, 2), "tokens": round(share * rows * mean)}


def read_model_checks(jobs: Sequence[PlannedJob], results: Path) -> dict[str, Any]:
    """Return what the checks of the base model found: `passed`, `refused` with the line, or `not checked yet`."""
    checks = [job for job in jobs if job.rule in ("check_training", "check_build", "check_model")]
    if all(job.is_done for job in checks):
        return {"outcome": "passed"}
    for job in checks:
        log = Path(job.log)
        if not job.is_done and log.is_file():
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
            if errors := [line for line in lines if line.startswith("error: ")]:
                return {"outcome": "refused", "reason": errors[-1].removeprefix("error: ")}
    return {"outcome": "not checked yet"}
