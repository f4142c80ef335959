"""Write what DVC shows: the headline numbers as JSON, the points of the plots as CSV tables for any spreadsheet.

The numbers are a few of the summary's, so that experiments can be compared at a glance. The tables are the learning
curve of the selected run, actual and predicted label of each test row, and every variant's quality, size and speed; one
has its head only where there is nothing to plot: no training here, or free answers.
"""

import argparse
import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lib.core.cli import build_parser, report_progress, run
from lib.core.escaping import escape_formula
from lib.core.files import publish_file, read_json, read_jsonl, write_json
from lib.core.layout import add_results_argument
from lib.evaluation.registry import METRICS, SELECTED_BY

_CURVE = {
    "step": "step",
    "training_loss": "loss",
    "validation_loss": "eval_loss",
    **{name: f"eval_{name}" for name in SELECTED_BY.values()},
}
_QUALITY = [name for name, metric in METRICS.items() if metric.is_selectable]
_VARIANT = {"run": "run", "variant": "variant", "quality": "value"} | {
    name: name for name in ("size_mb", "tokens_per_second", "first_token_ms", "peak_rss_mb")
}


def main(args: argparse.Namespace) -> None:
    summary = read_json(args.summary)
    chosen = summary["selected"]["run"]
    points = read_json(args.results.training(chosen))["curve"] if summary["runs"][chosen]["training"] else []
    write_table(args.learning_curve, _CURVE, ([point.get(key) for key in _CURVE.values()] for point in points))
    rows = (row for row in read_jsonl(args.model_predictions) if "label" in row)
    write_table(args.confusion, ("actual", "predicted"), ([row["label"], row["predicted"]] for row in rows))
    write_table(args.variants, _VARIANT, list_variants(summary))
    write_json(args.metrics, list_metrics(summary))
    report_progress(f"write_plots: {args.metrics} and 3 tables in {args.variants.parent}")


def list_metrics(summary: dict[str, Any]) -> dict[str, Any]:
    """Return the packaged model on test rows and on validation rows, what it must be worth more than, size, speed,
    verdict.
    """
    chosen, model = summary["selected"], summary["model"]
    run_facts = summary["runs"][chosen["run"]]
    validation = run_facts["stages"][f"onnx-{chosen['variant']}"]["validation"]
    rivals = {"base": summary["base"], **summary["baselines"]}
    return {
        "test": {name: model["test"][name] for name in _QUALITY if name in model["test"]},
        "validation": {name: validation[name] for name in _QUALITY if name in validation},
        "rivals": {
            name: {key: rival["test"].get(key) for key in _QUALITY if key in rival["test"]}
            for name, rival in rivals.items()
        },
        "model": {name: model[name] for name in ("size_mb", "tokens_per_second", "first_token_ms", "peak_rss_mb")},
        "training": {name: (run_facts["training"] or {}).get(name) for name in ("best_step", "seconds", "peak_rss_mb")},
        "gate_passed": summary["gate"]["passed"],
    }


def list_variants(summary: dict[str, Any]) -> Iterable[list[Any]]:
    """Yield a line for each variant that was scored, in the order of the summary."""
    for one in summary["selected"]["candidates"]:
        if one["value"] is not None:
            yield [one[key] for key in _VARIANT.values()]


def write_table(path: Path, head: Iterable[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV table; None is an empty cell, and no text is a formula to a spreadsheet."""
    with publish_file(path) as partial, open(partial, "w", encoding="utf-8", newline="") as file:
        file.write(_csv_line(head))
        file.writelines(_csv_line(map(escape_formula, row)) for row in rows)


def _csv_line(cells: Iterable[Any]) -> str:
    line = io.StringIO(newline="")
    csv.writer(line).writerow(cells)  # with "\n" for its line end it would leave carriage returns unquoted
    return line.getvalue().removesuffix("\r\n") + "\n"


if __name__ == "__main__":
    arguments = build_parser(__doc__)
    for name, what in {
        "summary": "summary.json",
        "model-predictions": "predictions of the packaged model on test rows",
        "metrics": "headline numbers to write",
        "learning-curve": "table to write",
        "confusion": "table to write",
        "variants": "table to write",
    }.items():
        arguments.add_argument(f"--{name}", type=Path, required=True, help=what)
    add_results_argument(arguments)
    run(arguments, main)
