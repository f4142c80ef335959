"""Hold the packaged model's test scores against the gate, and record the verdict.

This script succeeds whatever the verdict, so that the report can show it; `enforce_gate` acts on it.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lib.core.cli import build_parser, fail, parse_settings, report_progress, run
from lib.core.files import read_json, read_jsonl, write_json
from lib.evaluation.answers import Prediction
from lib.evaluation.comparison import compare_stages_with_intervals, is_better
from lib.evaluation.registry import MAIN_METRIC


def main(args: argparse.Namespace) -> None:
    settings, quality = args.settings, read_json(args.score)["quality"]
    checks = [_minimum(metric, limit, quality, args.score) for metric, limit in settings["gate"]["minimum"].items()]
    if settings["gate"]["beat_baseline"]:
        value = quality[MAIN_METRIC[settings["task"]]]
        checks += _beat_baselines(settings, value, list(read_jsonl(args.predictions)), _rivals(args))
    passed = all(check["passed"] for check in checks)
    write_json(args.output, {"passed": passed, "checks": checks})
    failed = ", ".join(str(check["name"]) for check in checks if not check["passed"])
    report_progress(f"check_gate: {'passed' if passed else f'failed: {failed}'}")


def _minimum(metric: str, limit: float, quality: dict[str, Any], file: Path) -> dict[str, Any]:
    """Raise `UserError` for a metric that the score does not have."""
    if metric not in quality:
        known = ", ".join(key for key, value in quality.items() if isinstance(value, float))
        fail(f"no metric {metric!r} in it", f"use one of {known} in gate.minimum", at=file)
    value = quality[metric]
    return {"name": metric, "limit": limit, "value": value, "passed": value is not None and value >= limit}


def _rivals(args: argparse.Namespace) -> dict[str, list[Prediction]]:
    """Return the test predictions of every baseline and of the untouched base model, by name."""
    found: dict[str, list[Prediction]] = {}
    for row in read_jsonl(args.baseline_predictions):
        if row["split"] == "test":
            found.setdefault(row["baseline"], []).append(row)
    return found | {"base": list(read_jsonl(args.base_predictions))}


def _beat_baselines(
    settings: dict[str, Any],
    value: float | None,
    predictions: Sequence[Prediction],
    rivals: dict[str, list[Prediction]],
) -> list[dict[str, Any]]:
    """Compare the model with each rival on the same rows; `point` asks for the value of the best baseline alone."""
    found = [_beat(settings, value, predictions, rows, name) for name, rows in rivals.items()]
    if settings["gate"]["beat_baseline"] == "shown":
        return found
    return [max((check for check in found if check["rival"] != "base"), key=lambda check: check["limit"] or 0.0)]


def _beat(
    settings: dict[str, Any],
    value: float | None,
    predictions: Sequence[Prediction],
    rival_predictions: Sequence[Prediction],
    rival: str,
) -> dict[str, Any]:
    """Compare the model with one rival. value: its main metric."""
    metric, required = MAIN_METRIC[settings["task"]], settings["gate"]["beat_baseline"]
    draw = {"seed": settings["seed"], "samples": settings["evaluate"]["bootstrap_samples"]}
    found = compare_stages_with_intervals(settings["task"], rival_predictions, predictions, name=rival, **draw)
    against = found["against"]
    gap = against["difference"][metric]
    return {
        "name": f"{metric}_above_{rival}",
        "rival": rival,
        "required": required,
        "limit": None if gap is None or value is None else value - gap,
        "value": value,
        "passed": is_better(against, metric) if required == "shown" else gap is not None and gap > 0,
        "wins": against["wins"],
        "losses": against["losses"],
        "mcnemar_p": against["mcnemar_p"],
    }


if __name__ == "__main__":
    arguments = build_parser(__doc__)
    arguments.add_argument("--settings", type=parse_settings, required=True, help="task, seed, gate, evaluate")
    arguments.add_argument("--score", type=Path, required=True, help="the packaged model's score on test rows")
    arguments.add_argument("--predictions", type=Path, required=True, help="its predictions of every test row")
    arguments.add_argument("--baseline-predictions", type=Path, required=True, help="those of the baselines")
    arguments.add_argument("--base-predictions", type=Path, required=True, help="those of the untouched base")
    arguments.add_argument("--output", type=Path, required=True, help="gate.json")
    run(arguments, main)
