"""Conversations on the demo's base model: the English dialogs of the package chatterbot-corpus, from rows to int4.

    python benchmarks/conversations.py --work work/conversations --table benchmarks/conversations.md

Each dialog becomes a row of `messages`: user and assistant take turns, and a last turn of the user is left out. The
tables have the scores of each stage on validation rows, and of what ships on test rows.
"""

import argparse
import json
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import yaml
from bench import SCRIPTS, machine, markdown_table, write_table

sys.path.insert(0, str(SCRIPTS))

from run import main as run_workflow

from lib.core.files import read_json, write_jsonl
from lib.evaluation.registry import METRICS
from lib.report.formatting import format_metric

PACKAGE = {
    "name": "chatterbot-corpus",
    "version": "1.3.3",
    "sha256": "86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154",
}
SHOWN = ("chrf", "token_f1", "exact_match", "perplexity")


def read_dialogs(cache: Path) -> list[list[str]]:
    """Return the turns of each English dialog."""
    from lib.sources.pypi import fetch_package_file

    first = "chatterbot_corpus/data/english/ai.yml"
    with tempfile.TemporaryDirectory() as folder:
        fetch_package_file(**PACKAGE, file=first, into=Path(folder), cache=cache)
    with zipfile.ZipFile(cache / PACKAGE["sha256"][:16] / "package/download") as archive:
        names = sorted(name for name in archive.namelist() if name.startswith(first.removesuffix("ai.yml")))
        files = [yaml.safe_load(archive.read(name)) for name in names if name.endswith(".yml")]
    return [[str(turn) for turn in dialog] for file in files for dialog in file["conversations"]]


def build_row(dialog: list[str]) -> dict[str, Any]:
    turns = dialog[: len(dialog) // 2 * 2]
    return {
        "messages": [{"role": ("user", "assistant")[place % 2], "content": turn} for place, turn in enumerate(turns)]
    }


def build_configuration(work: Path, rows: Path) -> dict[str, Any]:
    demo = yaml.safe_load((SCRIPTS.parent / "config.yaml").read_text())
    return {
        "results": "results-dialogs",
        "task": "generation",
        "data": {"files": [str(rows)], "conversation": "messages"},
        "base_model": demo["base_model"],
        "split": {"validation": 0.1, "test": 0.15},
        "corpus": {"max_length": 256},
        "finetune": {
            "num_train_epochs": 3,
            "learning_rate": 5.0e-4,
            "per_device_train_batch_size": 16,
            "eval_steps": 100,
        },
        "variants": {"int4-k-quant": {"algo_config": "k_quant"}, "int4-calibrated": {"algo_config": "auto_round"}},
        "evaluate": {"greedy_rows": 100, "max_new_tokens": 48},
    }


def format_quality(name: str, quality: dict[str, Any]) -> list[str]:
    return [name, *(format_metric(metric, quality[metric]) for metric in SHOWN)]


def list_scores(summary: dict[str, Any]) -> tuple[list[list[str]], list[list[str]]]:
    """Return the lines of the validation and of the test table."""
    (run,) = summary["runs"].values()
    baselines = summary["baselines"]
    validation = [format_quality(name, splits["validation"]) for name, splits in baselines.items()]
    validation += [format_quality("base model", summary["base"]["validation"])]
    validation += [format_quality(name, stage["validation"]) for name, stage in run["stages"].items()]
    test = [format_quality(name, splits["test"]) for name, splits in baselines.items()]
    test += [format_quality("base model", summary["base"]["test"])]
    return validation, [*test, format_quality(f"packaged ({summary['selected']['variant']})", summary["model"]["test"])]


def main(args: argparse.Namespace) -> None:
    args.work.mkdir(parents=True, exist_ok=True)
    rows, configfile = args.work / "rows.jsonl", args.work / "config.yaml"
    write_jsonl(rows, map(build_row, read_dialogs(Path("work/base"))))
    configfile.write_text(json.dumps(build_configuration(args.work, rows), indent=2))  # JSON is YAML
    if code := run_workflow(["evidence", "--configfile", str(configfile)]):
        sys.exit(code)
    results = Path("results-dialogs")
    summary, audit = read_json(results / "summary.json"), read_json(results / "data/audit.json")
    head = ["", *(METRICS[name].title for name in SHOWN)]
    validation, test = list_scores(summary)
    facts = (
        f"{audit['rows']:,} dialogs, {audit['kept']:,} kept; {summary['data']['train']:,} train,"
        f" {summary['data']['validation']:,} validation, {summary['data']['test']:,} test. Set aside:"
        f" {audit['rejected']}.\n\n{summary['verdict']['text']}"
    )
    command = "    .venv/bin/python benchmarks/conversations.py --work work/conversations"
    parts = [
        f"# Conversations\n\n{command}",
        machine("torch", "transformers", "onnxruntime-genai"),
        f"Data: `{PACKAGE['name']}` {PACKAGE['version']} (PyPI, BSD license), its English dialogs. {facts}",
        "Validation rows; free answers to the first 100, perplexity on all:",
        markdown_table(head, validation),
        "Test rows, scored once:",
        markdown_table(head, test),
    ]
    write_table(args.table, "\n\n".join(parts) + "\n")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--work", type=Path, default=Path("work/conversations"), help="folder for rows and settings")
    arguments.add_argument("--table", type=Path, default=Path("benchmarks/conversations.md"), help="file to write")
    main(arguments.parse_args())
