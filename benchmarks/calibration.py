"""Rounding with and without training rows: two tasks, three seeds of the training each.

    .venv/bin/python benchmarks/calibration.py

Runs the workflow for the demo and for the tones with the routes as variants and a sweep of seeds, in results folders of
their own, and writes the table from their scores. Each seed is another adapter; split and calibration rows stay.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import yaml
from bench import machine, markdown_table, write_table
from quantization import ROOT, ROUTES, time_route

from lib.core.files import read_json, read_jsonl
from lib.evaluation.bootstrap import bootstrap_interval, build_ratio

TASKS = {"demo": ROOT / "config.yaml", "tones": ROOT / "examples/tones.yaml"}
COMPARED = ("int4", "int4-k-quant", "int4-gptq", "int4-gptq-64", "int4-calibrated")
AGAINST = "int4-gptq"
HEAD = [
    *("task", "route", "MB", "accuracy, validation", f"minus {AGAINST}, points, 95 %"),
    *("macro-F1", "flips", "KL to merged", "seconds to make"),
]


def derive_config(source: Path, results: str, seeds: Sequence[int]) -> Path:
    """Return the configuration with the routes as variants and a sweep of seeds, without constraints and gate."""
    values = yaml.safe_load(source.read_text(encoding="utf-8"))
    for section in ("selection", "gate"):
        values.pop(section, None)
    values |= {
        "results": results,
        "sweep": {"seed": list(seeds)},
        "variants": {name: ROUTES[name] for name in COMPARED},
        "evaluate": {"greedy_rows": 0},
        "benchmark": {"prompts": 5, "new_tokens": 16},
    }
    path = ROOT / "work" / f"{results}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return path


def run_task(source: Path, results: str, seeds: Sequence[int]) -> Path:
    command = [sys.executable, "-m", "snakemake", "--cores", "all", "--configfile"]
    if code := subprocess.run([*command, derive_config(source, results, seeds)], cwd=ROOT).returncode:
        sys.exit(code)
    return ROOT / results


def find_right_rows(results: Path, runs: Sequence[str], stage: str) -> Any:
    """Return which validation rows a stage of each run answers rightly: [runs, rows] of 0 and 1."""
    files = [results / f"scores/{run}/{stage}.validation.predictions.jsonl" for run in runs]
    return np.array([[row["predicted"] == row["label"] for row in read_jsonl(file)] for file in files], dtype=float)


def compare_rows(one: Any, other: Any) -> str:
    """Return the difference of two stages in points with its interval: rows are drawn, each with all its seeds."""
    rows = [build_ratio(right.sum(axis=0), np.full(right.shape[1], len(right))) for right in (one, other)]
    interval = bootstrap_interval(rows[0], seed=0, samples=10_000, minus=rows[1])
    assert interval is not None
    low, high = interval
    return f"{100 * (one.mean() - other.mean()):+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def list_lines(task: str, results: Path) -> list[list[str]]:
    """Return a line for the merged model and for each route: means over the seeds, with the lowest and highest."""
    summary = read_json(results / "summary.json")
    runs = sorted(summary["runs"])
    reference = find_right_rows(results, runs, f"onnx-{AGAINST}")
    lines = []
    for stage in ("merged", *(f"onnx-{route}" for route in COMPARED)):
        facts = [summary["runs"][run]["stages"][stage] for run in runs]
        scores = [one["validation"] for one in facts]
        seconds = [time_route(results, run, stage) for run in runs]
        accuracies = [one["accuracy"] for one in scores]
        lines.append(
            [
                task,
                stage.removeprefix("onnx-"),
                f"{facts[0]['size_mb']:.1f}",
                f"{mean(accuracies):.3f} ({min(accuracies):.3f} to {max(accuracies):.3f})",
                compare_rows(find_right_rows(results, runs, stage), reference) if stage != f"onnx-{AGAINST}" else "",
                f"{mean(one['macro_f1'] for one in scores):.3f}",
                f"{mean(one['flips'] for one in scores):.0f}",
                f"{mean(one['kl'] for one in scores):.4f}",
                f"{mean(one for one in seconds if one):.0f}" if any(seconds) else "",
            ]
        )
    return lines


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    arguments.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments.add_argument("--output", type=Path, default=ROOT / "benchmarks/calibration.md")
    args = arguments.parse_args()
    made = {task: run_task(TASKS[task], f"results-calibration-{task}", args.seeds) for task in args.tasks}
    lines = [line for task, results in made.items() for line in list_lines(task, results)]
    rows = {task: read_json(results / "summary.json")["data"]["validation"] for task, results in made.items()}
    given = ", ".join(f"{count} of the {task}" for task, count in rows.items())
    command = " ".join(["benchmarks/calibration.py", *map(json.dumps, sys.argv[1:])])
    write_table(
        args.output,
        f"# {__doc__}\n`{command}`: {len(args.seeds)} seeds, validation rows: {given}.\n\n"
        f"{machine('onnxruntime', 'onnxruntime-genai', 'torch', 'auto-round')}\n\n{markdown_table(HEAD, lines)}\n\n"
        "Means over the seeds (lowest to highest). Flips: rows whose label differs from the merged model. KL: mean\n"
        "divergence of the label probabilities from it, in nats. Seconds to make: rounding by rows, and the build.\n",
    )


if __name__ == "__main__":
    main()
