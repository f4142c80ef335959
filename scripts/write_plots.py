"""Write the points of the plots as CSV tables, for `dvc plots` and for any spreadsheet.

The learning curve of the selected run, actual and predicted label of each test row, and every variant's quality, size
and speed. A table has its head only where there is nothing to plot: no training here, or free answers.
"""

import argparse
import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lib.cli import parser, progress, run
from lib.files import published, read_json, read_jsonl

_CURVE = {
    "step": "step",
    "training_loss": "loss",
    "validation_loss": "eval_loss",
    "macro_f1": "eval_macro_f1",
    "chrf": "eval_chrf",
}
_VARIANT = {"run": "run", "variant": "variant", "quality": "value"} | {
    name: name for name in ("size_mb", "tokens_per_second", "first_token_ms", "peak_rss_mb")
}


def main(args: argparse.Namespace) -> None:
    summary = read_json(args.summary)
    trainings = {name: Path(file) for name, file in args.training}
    chosen = trainings.get(summary["selected"]["run"])
    points = read_json(chosen)["curve"] if chosen else []
    write_table(args.learning_curve, _CURVE, ([point.get(key) for key in _CURVE.values()] for point in points))
    rows = (row for row in read_jsonl(args.model_predictions) if "label" in row)
    write_table(args.confusion, ("actual", "predicted"), ([row["label"], row["predicted"]] for row in rows))
    write_table(args.variants, _VARIANT, variants(summary))
    progress(f"write_plots: 3 tables in {args.variants.parent}")


def variants(summary: dict[str, Any]) -> Iterable[list[Any]]:
    """A line for each variant that was scored, in the order of the summary."""
    for one in summary["selected"]["candidates"]:
        if one["value"] is not None:
            yield [one[key] for key in _VARIANT.values()]


def write_table(path: Path, head: Iterable[str], rows: Iterable[Sequence[Any]]) -> None:
    """A CSV table; None is an empty cell."""
    with published(path) as partial, open(partial, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        writer.writerows(rows)


if __name__ == "__main__":
    arguments = parser(__doc__)
    for name, what in {
        "summary": "summary.json",
        "model-predictions": "predictions of the packaged model on test rows",
        "learning-curve": "table to write",
        "confusion": "table to write",
        "variants": "table to write",
    }.items():
        arguments.add_argument(f"--{name}", type=Path, required=True, help=what)
    arguments.add_argument("--training", nargs=2, action="append", default=[], metavar=("RUN", "TRAINING"))
    run(arguments, main)
