"""Paths of the artifacts in a results folder, such as those of each run, stage and variant.

The rules say themselves where they write. Who reads what a whole sweep has written, rule or script, finds it by this:
named one by one, the files of 200 runs would not fit into a command. A rule that wrote elsewhere would be found when
Snakemake plans, since the rules' inputs come from here.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

from lib.core.paths import check_bare_name

SPLITS = ("train", "validation", "test")
SCORED_SPLITS = SPLITS[1:]  # training sees no test rows, and scoring no training rows


@dataclass(frozen=True)
class Layout:
    """Paths in a results folder. A stage is a PyTorch stage of a run or `onnx-<variant>`.

    Names of runs, stages and variants also come out of results, which may be somebody else's: none leads elsewhere.
    """

    results: Path

    @property
    def base(self) -> Path:
        return self.results / "base"

    @property
    def model(self) -> Path:
        return self.results / "model"

    @property
    def assembled(self) -> Path:
        """The selected model as the test rows score it, without its model card."""
        return self.results / "assembled"

    def folder(self, run: str, stage: str) -> Path:
        """Return weights of a stage; their manifest stands beside them."""
        return self._run(run) / self._check_part(stage).replace("onnx-", "onnx/", 1)

    def calibrated(self, run: str, variant: str) -> Path:
        return self._run(run) / "calibrated" / self._check_part(variant)

    def training(self, run: str) -> Path:
        return self._run(run) / "training.json"

    def merge(self, run: str) -> Path:
        """Return which of two merges was better."""
        return self._run(run) / "merge.json"

    def score(self, run: str, stage: str) -> Path:
        """Score on validation rows."""
        return self.results / "scores" / self._check_part(run) / f"{self._check_part(stage)}.validation.json"

    def predictions(self, run: str, stage: str) -> Path:
        """Return the file of the predictions of the same rows."""
        return self.score(run, stage).with_suffix(".predictions.jsonl")

    def speed(self, run: str, variant: str) -> Path:
        return self.results / "speed" / self._check_part(run) / f"{self._check_part(variant)}.json"

    def _run(self, run: str) -> Path:
        return self.results / "runs" / self._check_part(run)

    def _check_part(self, name: str) -> str:
        return check_bare_name(name, at=self.results)


def add_results_argument(arguments: argparse.ArgumentParser) -> None:
    """Add `--results FOLDER`, the layout of what a script reads."""
    arguments.add_argument(
        "--results",
        type=lambda folder: Layout(Path(folder)),
        required=True,
        metavar="FOLDER",
        help="results folder, with runs/, scores/ and speed/",
    )
