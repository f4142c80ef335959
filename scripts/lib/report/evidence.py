"""All that the report reads."""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.core.cli import fail
from lib.core.files import read_json, read_jsonl
from lib.core.layout import Layout
from lib.data.template_inversion import extract_input
from lib.evaluation.registry import MAIN_METRIC, find_metrics
from lib.provenance.manifests import build_manifest_path
from lib.provenance.run_card import run_card
from lib.report import formatting
from lib.report.timings import Job, read_jobs

MANY = 6  # runs: with more of them all but the chosen one are folded
SHOWN = 12  # runs, dots and rows that are shown of many


@dataclass(frozen=True)
class Evidence:
    """metric: what selection went by. examples: test row, its input text and its prediction. card: of this report."""

    settings: dict[str, Any]
    summary: dict[str, Any]
    metric: str
    audit: dict[str, Any]
    split: dict[str, Any]
    leakage: dict[str, Any]
    baselines: dict[str, Any]
    training: dict[str, dict[str, Any]]
    score: dict[str, Any]
    examples: list[tuple[dict[str, Any], str, dict[str, Any]]]
    jobs: list[Job]
    manifests: list[Path]
    card: dict[str, Any]

    @property
    def task(self) -> str:
        return self.settings["task"]

    @property
    def main(self) -> str:
        """The metric that is compared with baselines and between stages."""
        return MAIN_METRIC[self.task]

    @property
    def columns(self) -> list[str]:
        """The metrics that tables show: those that the rows define, since most data have no calls of tools."""
        quality = self.score["quality"]
        return [name for name in find_metrics(self.task) if quality[name] is not None]

    @property
    def chosen(self) -> str:
        """The stage of the chosen variant."""
        return f"onnx-{self.summary['selected']['variant']}"

    @property
    def many(self) -> bool:
        """Whether there are too many runs to show each of them openly."""
        return len(self.summary["runs"]) > MANY

    @property
    def shown_runs(self) -> dict[str, dict[str, Any]]:
        """All runs; of many the chosen one and then the best, by their best variant, up to `SHOWN`."""
        runs: dict[str, dict[str, Any]] = self.summary["runs"]
        if not self.many:
            return runs
        best = {
            name: max((one["value"] or 0.0 for one in self.candidates if one["run"] == name), default=0.0)
            for name in runs
        }
        order = sorted(runs, key=lambda name: (name != self.summary["selected"]["run"], -best[name]))
        return {name: runs[name] for name in order[:SHOWN]}

    def is_folded(self, run_name: str) -> bool:
        """Return whether a run is folded: of many, only the chosen one is open."""
        return self.many and run_name != self.summary["selected"]["run"]

    @property
    def candidates(self) -> list[dict[str, Any]]:
        """Every variant of every run, those without a score too."""
        found: list[dict[str, Any]] = self.summary["selected"]["candidates"]
        return found

    def rows_measured(self, split: str) -> int:
        """Return rows that the main metric rests on: generation is measured where answers were free."""
        n: int = self.summary["data"][split]
        return n if self.task == "classification" else min(n, self.settings["evaluate"]["greedy_rows"])

    def measured_on(self, split: str) -> str:
        """Return `630 test rows`, or `the first 100 of 630 test rows (perplexity on all of them)`."""
        n, measured = self.summary["data"][split], self.rows_measured(split)
        if self.task == "classification":
            return f"{n:,} {split} rows"
        return f"the first {measured:,} of {n:,} {split} rows (perplexity on all of them)"


def read_evidence(args: argparse.Namespace) -> Evidence:
    """Raise `UserError` when rows and predictions are of different corpora."""
    template = read_json(args.template)
    predictions = {row["id"]: row for row in read_jsonl(args.model_predictions)}
    rows = list(read_jsonl(args.rows))
    if {row["id"] for row in rows} != predictions.keys():
        fail(f"these are not the rows of {args.model_predictions}", "make the scores again", at=args.rows)
    summary = read_json(args.summary)
    trained = [name for name, run in summary["runs"].items() if run["training"]]
    manifests = list(_manifests(args.results, summary["runs"], args.calibrated))
    return Evidence(
        settings=args.settings,
        summary=summary,
        metric=read_json(args.selection)["metric"],
        audit=read_json(args.audit),
        split=read_json(args.split),
        leakage=read_json(args.leakage),
        baselines=read_json(args.baselines),
        training={name: read_json(args.results.training(name)) for name in trained},
        score=read_json(args.model_score),
        examples=[(row, extract_input(template, row["prompt"]), predictions[row["id"]]) for row in rows],
        jobs=read_jobs(args.timings, args.logs),
        manifests=manifests,
        card=run_card({}, {path.as_posix(): path for path in manifests}, {}),
    )


def _manifests(layout: Layout, runs: dict[str, dict[str, Any]], calibrated: Sequence[str]) -> Iterator[Path]:
    """Yield manifests in the order of the table: as the data goes, the packaged model last."""
    stages = [(name, stage) for name, run in runs.items() for stage in run["stages"]]
    yield build_manifest_path(layout.base)
    yield from (build_manifest_path(layout.folder(*one)) for one in stages if not one[1].startswith("onnx-"))
    yield from (build_manifest_path(layout.calibrated(name, variant)) for name in runs for variant in calibrated)
    yield from (build_manifest_path(layout.folder(*one)) for one in stages if one[1].startswith("onnx-"))
    yield build_manifest_path(layout.assembled)
    yield build_manifest_path(layout.model)


def format_measured(name: str, quality: dict[str, Any]) -> dict[str, str]:
    """Return a cell with the interval below the value."""
    return {"text": formatting.format_metric(name, quality[name]), "note": formatting.format_interval(name, quality)}
