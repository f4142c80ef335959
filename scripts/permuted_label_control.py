"""Permuted-label control: a model that is trained on shuffled labels must score as one that knows nothing.

    make control ARGS="--configfile examples/tones.yaml"

Some of the rows get each other's labels and go the same way as ever, through the same workflow, up to the
adapter's score on validation rows. No text tells such a label, so a score above the rate of the commonest
one comes by a way that should not be: validation rows that were trained on, an answer that stands in its
prompt. That so short a training learns anything at all is shown by a second run on the same rows with
their own labels. Exit code 1 when the control fails, or shows nothing.
"""

import argparse
import copy
import random
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from run import main as run_workflow

from lib.config.loader import check_yaml, load_config
from lib.config.schema import Config
from lib.config.sources import Data
from lib.core.cli import call_or_exit, fail
from lib.core.files import read_json, read_jsonl, write_json, write_jsonl
from lib.data.rows import get_column

# Few rows to train on and many to be sure by: with 360 of them the interval is about 5 points to either side.
_ROWS = 800
_SPLIT = {"validation": 0.45, "test": 0.05}
_TRAINING = {
    "per_device_train_batch_size": 4,  # of few rows, many small steps teach more than few large ones
    "gradient_accumulation_steps": 1,
    "max_steps": None,
    "eval_steps": 10**9,  # the last checkpoint is kept: choosing one on validation rows would hide what was memorized
    "early_stopping_patience": None,
    "metric_for_best_model": "loss",
}

Row = dict[str, Any]


class Measured(NamedTuple):
    """Accuracy of an adapter on n validation rows with its 95 % interval, and the rate of the commonest label."""

    n: int
    accuracy: float
    interval: tuple[float, float]
    majority: float

    @property
    def better(self) -> bool:
        return self.interval[0] > self.majority

    def __str__(self) -> str:
        low, high = self.interval
        return f"accuracy {self.accuracy:.3f} [{low:.3f}, {high:.3f}], the commonest label {self.majority:.3f}"


def main(configfile: Path) -> str:
    """Run the control of a configuration; returns the line that says how it went.

    Raises `UserError` when labels reach the model by another way than the text, when the control shows
    nothing, or when the configuration has no labels.
    """
    check_yaml(configfile)
    config = load_config(yaml.safe_load(configfile.read_text(encoding="utf-8")), [configfile])
    if config.task != "classification":
        fail("a control shuffles labels, and task generation has none", "use it with classification", at=configfile)
    if not any(run.trained for run in config.runs.values()):
        fail("a control trains on shuffled labels, and this configuration trains nothing", "", at=configfile)
    follow(f"{config.results}/data/kept.jsonl", f"{config.results}/base.manifest.json", configfile=configfile)
    rows = sample_rows(list(read_jsonl(Path(config.results) / "data/kept.jsonl")), config)
    if config.data.conversation:
        rows = add_sources(rows, Path(config.results) / "data/rows.jsonl")

    permuted = measure(config, "permuted", replace_labels(rows, shuffle_labels(rows, config.seed)))
    if permuted.better:
        what = f"with shuffled labels it reaches {permuted} on {permuted.n} validation rows"
        fail(what, "something besides the text tells it the label: look at prompts and splits", at=configfile)
    own = measure(config, "own", replace_labels(rows, [row["target"] for row in rows]))
    if not own.better:
        what = f"the control shows nothing: with their own labels {len(rows)} rows teach no more than {own}"
        fail(what, "raise finetune.num_train_epochs or finetune.learning_rate", at=configfile)
    return f"control passed on {own.n} validation rows: shuffled labels {permuted}; own labels {own}"


def sample_rows(rows: Sequence[Row], config: Config) -> list[Row]:
    """Return at most about `_ROWS` of the kept rows, each label in its share but never below what the audit asks."""
    order = random.Random(config.seed).sample(rows, len(rows))
    share = min(1.0, _ROWS / len(rows))
    counts = Counter(row["target"] for row in rows)
    left = {label: max(config.data.min_rows_per_class, round(share * count)) for label, count in counts.items()}
    chosen = []
    for row in order:
        if left[row["target"]] > 0:
            left[row["target"]] -= 1
            chosen.append(row)
    return chosen


def shuffle_labels(rows: Sequence[Row], seed: int) -> list[str]:
    """Return the labels of the rows in another order."""
    return random.Random(seed + 1).sample([row["target"] for row in rows], len(rows))


def replace_labels(rows: Sequence[Row], labels: Sequence[str]) -> list[Row]:
    return [{**row, "target": label} for row, label in zip(rows, labels, strict=True)]


def add_sources(rows: Sequence[Row], file: Path) -> list[Row]:
    """Add the `source` of each kept row: what its file has of it."""
    kept = {(row["file"], row["number"]): row for row in rows}
    found = ((kept.get((read["file"], read["number"])), read.get("row")) for read in read_jsonl(file))
    return [{**row, "source": source} for row, source in found if row is not None]


def build_raw_row(row: Row, data: Data) -> dict[str, Any]:
    """Return a kept row as a file has it, with the label that it has now: a column, or a conversation's last turn."""
    if not data.conversation:
        return {**row["values"], data.target: row["target"]}
    source = copy.deepcopy(row["source"])
    turns = get_column(source, data.conversation)
    key = "content" if "content" in turns[-1] else "value"
    turns[-1] = {**turns[-1], key: row["target"]}
    return source


def measure(config: Config, name: str, rows: Sequence[Row]) -> Measured:
    """Train on `rows` in a results folder of its own, and measure the adapter."""
    results, work = f"{config.results}-control/{name}", Path(f"work/control/{config.results}/{name}")
    write_jsonl(work / "rows.jsonl", [build_raw_row(row, config.data) for row in rows])
    configfile = work / "config.yaml"  # JSON is YAML
    write_json(configfile, derive_configuration(config, results, work / "rows.jsonl"))
    run_name = config.finetune.method
    files = f"{results}/scores/{run_name}/adapter.validation.json", f"{results}/scores/baselines.json"
    follow(*files, configfile=configfile)
    found, baselines = (read_json(Path(file)) for file in files)
    low, high = found["quality"]["accuracy_ci95"]
    majority = baselines["majority"]["validation"]["accuracy"]
    return Measured(found["quality"]["n"], found["quality"]["accuracy"], (low, high), majority)


def derive_configuration(config: Config, results: str, rows: Path) -> dict[str, Any]:
    """Return the configuration with other rows, the base model that is there already, and no choice of a checkpoint."""
    values = config.model_dump(mode="json")
    source = dict.fromkeys(("hub", "package", "source", "sha256"))
    return values | {
        "results": results,
        "data": values["data"] | source | {"files": [str(rows)]},
        "base_model": values["base_model"] | source | {"asset_type": None, "path": f"{config.results}/base"},
        "split": _SPLIT,
        "finetune": values["finetune"] | _TRAINING,
        "sweep": {},
        "evaluate": values["evaluate"] | {"greedy_rows": 0},
        "gate": {},
    }


def follow(*targets: str, configfile: Path) -> None:
    """Make files with the workflow; its own error lines were shown when this program ends here."""
    if code := run_workflow([*targets, "--configfile", str(configfile)]):
        sys.exit(code)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--configfile", type=Path, default=Path("config.yaml"), help="default: config.yaml")
    print(call_or_exit(main, arguments.parse_args().configfile))
