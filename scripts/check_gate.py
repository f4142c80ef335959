"""Hold the packaged model's test scores against the gate, and record the verdict.

This script succeeds whatever the verdict, so that the report can show it; `enforce_gate` acts on it.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lib.cli import fail, parser, progress, run, settings_argument
from lib.comparison import compare
from lib.files import read_json, read_jsonl, write_json
from lib.metrics import MAIN_METRIC, Prediction


def main(args: argparse.Namespace) -> None:
    settings, quality = args.settings, read_json(args.score)["quality"]
    checks = [_minimum(metric, limit, quality, args.score) for metric, limit in settings["gate"]["minimum"].items()]
    if settings["gate"]["beat_baseline"]:
        predictions = list(read_jsonl(args.predictions))
        others = [row for row in read_jsonl(args.baseline_predictions) if row["split"] == "test"]
        checks.append(_beats(settings["task"], quality, predictions, read_json(args.baselines), others))
    passed = all(check["passed"] for check in checks)
    write_json(args.output, {"passed": passed, "checks": checks})
    failed = ", ".join(str(check["name"]) for check in checks if not check["passed"])
    progress(f"check_gate: {'passed' if passed else f'failed: {failed}'}")


def _minimum(metric: str, limit: float, quality: dict[str, Any], file: Path) -> dict[str, Any]:
    """Raises `UserError` for a metric that the score does not have."""
    if metric not in quality:
        known = ", ".join(key for key, value in quality.items() if isinstance(value, float))
        fail(f"no metric {metric!r} in it", f"use one of {known} in gate.minimum", at=file)
    value = quality[metric]
    return {"name": metric, "limit": limit, "value": value, "passed": value is not None and value >= limit}


def _beats(
    task: str,
    quality: dict[str, Any],
    predictions: Sequence[Prediction],
    baselines: dict[str, Any],
    baseline_predictions: Sequence[Prediction],
) -> dict[str, Any]:
    """The model must be better than the best baseline on the test rows; how sure that is stands beside it."""
    metric = MAIN_METRIC[task]
    limits = {name: splits["test"][metric] for name, splits in baselines.items() if name != "extra"}
    best = max(limits, key=lambda name: limits[name] or 0.0)
    limit, value = limits[best], quality[metric]
    rivals = [row for row in baseline_predictions if row["baseline"] == best]
    against = compare(task, rivals, predictions, name=best)["against"]
    return {
        "name": f"{metric}_above_{best}",
        "limit": limit,
        "value": value,
        "passed": value is not None and limit is not None and value > limit,
        "wins": against["wins"],
        "losses": against["losses"],
        "mcnemar_p": against["mcnemar_p"],
    }


if __name__ == "__main__":
    arguments = parser(__doc__)
    arguments.add_argument("--settings", type=settings_argument, required=True, help="task, gate")
    arguments.add_argument("--score", type=Path, required=True, help="the packaged model's score on test rows")
    arguments.add_argument("--predictions", type=Path, required=True, help="its predictions of every test row")
    arguments.add_argument("--baselines", type=Path, required=True, help="baselines.json")
    arguments.add_argument("--baseline-predictions", type=Path, required=True, help="their predictions")
    arguments.add_argument("--output", type=Path, required=True, help="gate.json")
    run(arguments, main)
