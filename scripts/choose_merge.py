"""Keep the better of the two merges of an adapter that was trained on a 4-bit base (QLoRA).

`dequantized` is what the adapter was trained on, `original` has weights that were never rounded; which one answers
better is not known before. Validation rows decide, and the choice says what it was worth.
"""

import argparse
from pathlib import Path
from typing import Any

from lib.core.cli import build_parser, fail, parse_settings, report_progress, run
from lib.core.files import hash_file, publish_directory, read_json, read_jsonl, write_json
from lib.evaluation.bootstrap import bootstrap_interval, compute_point_estimate
from lib.evaluation.metrics import build_statistics
from lib.evaluation.registry import SELECTED_BY
from lib.provenance.manifests import build_manifest_path, link_files, read_manifest, write_manifest
from lib.report.formatting import format_term

KINDS = ("dequantized", "original")  # of equals the first is kept: the adapter was trained on it


def main(args: argparse.Namespace) -> None:
    folders = {"original": args.original, "dequantized": args.dequantized}
    manifests = {kind: read_manifest(folder) for kind, folder in folders.items()}
    choice = choose(args.scores, folders, args.settings)
    chosen = choice["chosen"]
    with publish_directory(args.merged) as folder:
        link_files(folders[chosen], manifests[chosen]["files"], folder)
    write_json(args.choice, choice)
    write_manifest(
        args.merged,
        inputs={kind: build_manifest_path(folder) for kind, folder in folders.items()},
        settings=args.settings,
        extra={"into": chosen, "dtype": manifests[chosen]["dtype"]},
    )
    values = ", ".join(f"{kind} {value:.3f}" for kind, value in choice["values"].items())
    report_progress(f"choose_merge: merged into the {chosen} weights; {format_term(choice['metric'])}: {values}")


def choose(scores: Path, folders: dict[str, Path], settings: dict[str, Any]) -> dict[str, Any]:
    """Return which merge has the higher metric on the same rows, with the 95 % bootstrap interval of the difference.

    Raises `UserError` when a score is of other bytes than the merge's, or the metric is undefined.
    """
    metric = settings.get("metric") or SELECTED_BY[settings["task"]]
    found = {}
    for kind in KINDS:
        file = scores / f"merged-{kind}.validation.json"
        score = read_json(file)
        if score["inputs"]["model"] != hash_file(build_manifest_path(folders[kind])):
            fail("this score was computed from a different model", "delete it and run again", at=file)
        predictions = list(read_jsonl(file.with_name(f"merged-{kind}.validation.predictions.jsonl")))
        found[kind] = build_statistics(settings["task"], predictions, score.get("labels"))[metric]
    values = {kind: compute_point_estimate(statistic) for kind, statistic in found.items()}
    if None in values.values():
        fail(f"no {format_term(metric)}: no row has a free answer", "raise evaluate.greedy_rows", at=scores)
    chosen = max(KINDS, key=lambda kind: values[kind] or 0.0)
    other = next(kind for kind in KINDS if kind != chosen)
    samples = settings["evaluate"]["bootstrap_samples"]
    ends = bootstrap_interval(found[chosen], seed=settings["seed"], samples=samples, minus=found[other])
    assert ends is not None
    return {
        "chosen": chosen,
        "metric": metric,
        "values": values,
        "difference": (values[chosen] or 0.0) - (values[other] or 0.0),
        "difference_ci95": ends,
        "is_significant": not ends[0] <= 0 <= ends[1],
    }


if __name__ == "__main__":
    arguments = build_parser(__doc__)
    arguments.add_argument("--settings", type=parse_settings, required=True, help="task, seed, metric, evaluate")
    arguments.add_argument("--original", type=Path, required=True, help="folder merged into the original weights")
    arguments.add_argument("--dequantized", type=Path, required=True, help="folder merged into the 4-bit weights")
    arguments.add_argument("--scores", type=Path, required=True, help="folder of their scores on validation rows")
    arguments.add_argument(
        "--merged", type=Path, required=True, help="folder to write; its manifest is written last, beside it"
    )
    arguments.add_argument("--choice", type=Path, required=True, help="merge.json, to write")
    run(arguments, main)
