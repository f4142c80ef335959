"""Tell trackers the results of a run: scores with their intervals, hashes, and the curves of each training.

Each training is one run of a tracker, the packaged model another one above them. What a tracker has already is not sent
twice, and what it missed while trainings went on is sent now. A tracker that cannot be reached fails nothing: the
output says which, and one line how to send them again.
"""

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lib.core.cli import build_parser, parse_settings, report_progress, run
from lib.core.files import hash_file, hash_text, read_json, write_json
from lib.core.layout import Layout, add_results_argument
from lib.provenance.manifests import build_manifest_path, load_manifest
from lib.tracking.delivery import Delivery, Point, TrackedRun, build_tracker
from lib.tracking.facts import build_point, flatten_parameters, keep_numbers, list_scores

_PARENT = "mlflow.parentRunId"


def main(args: argparse.Namespace) -> None:
    summary = read_json(args.summary)
    told = {name: tell_tracker(name, args, summary) for name in args.settings["trackers"]}
    write_json(args.output, told)
    if failed := [name for name, one in told.items() if one["fault"]]:
        report_progress(
            f"track_results: the results are complete, but not in {' and '.join(failed)};"
            ' to send them again: make run ARGS="--forcerun track_results"'
        )


def tell_tracker(name: str, args: argparse.Namespace, summary: dict[str, Any]) -> dict[str, Any]:
    """Send everything to one tracker; return the ids of its runs, where it has such, and what went wrong."""
    tracker = build_tracker(name, args.tracking)
    ids: dict[str, str] = {}
    above: dict[str, str] = {}
    for tracked, points in list_runs(args, summary):
        delivery = Delivery(tracker, tracked._replace(texts={**tracked.texts, **above}), report_fault)
        for point in points:
            delivery.add(point)
        if not delivery.close(is_finished=True):
            return {"runs": ids, "fault": delivery.fault}
        if run_id := getattr(tracker, "run_id", None):
            ids[tracked.name] = run_id
            above = above or {_PARENT: run_id}
    return {"runs": ids, "fault": None}


def report_fault(line: str) -> None:
    report_progress(f"track_results: {line}")


def list_runs(args: argparse.Namespace, summary: dict[str, Any]) -> Iterator[tuple[TrackedRun, list[Point]]]:
    """Yield what a tracker shows as runs: the packaged model first, then each training."""
    name, lineage = args.settings["name"], hash_file(args.model_manifest)
    texts = describe_results(args, summary) | {"slmflow.lineage": lineage}
    chosen = {key: str(summary["selected"][key]) for key in ("run", "variant")}
    yield TrackedRun(lineage[:16], f"{name}/model", chosen, texts), [Point(0, list_model_numbers(summary))]
    for one, facts in summary["runs"].items():
        scores = {
            metric: value
            for stage, measured in facts["stages"].items()
            for metric, value in list_stage_numbers(stage, measured).items()
        }
        hashes = hash_stages(args.results, one, facts["stages"])
        training = args.results.training(one)
        parameters, points = {}, []
        identity = hash_text(f"{lineage} {one}")[:16]
        if facts["training"]:
            adapter = args.results.folder(one, "adapter")
            parameters = flatten_parameters(load_manifest(build_manifest_path(adapter))["settings"])
            progress = find_progress(args.work, training)
            identity = progress.name if progress else hash_text(f"{hash_file(training)} {one}")[:16]
            points = read_curve(progress, training)
            scores |= keep_numbers((f"training/{key}", value) for key, value in facts["training"].items())
        texts = {"slmflow.lineage": lineage, "slmflow.results": name, **hashes}
        yield TrackedRun(identity, f"{name}/{one}", parameters, texts), [*points, Point(0, scores)]


def describe_results(args: argparse.Namespace, summary: Mapping[str, Any]) -> dict[str, str]:
    """Return what a person wants to know beside the numbers: the verdict, where the report lies, hashes."""
    verdict, name = summary["verdict"]["text"], args.settings["name"]
    report = Path(name, "report.html").absolute()
    return {
        "mlflow.note.content": f"{verdict}\n\nReport: {report}",
        "slmflow.results": name,
        "slmflow.verdict": verdict,
        "slmflow.gate_passed": str(summary["gate"]["passed"]).lower(),
        "slmflow.report": str(report),
        "sha256.model.manifest.json": hash_file(args.model_manifest),
        "sha256.summary.json": hash_file(args.summary),
        "sha256.report.html": hash_file(args.report),
    }


def hash_stages(layout: Layout, run_name: str, stages: Mapping[str, Any]) -> dict[str, str]:
    """Return the sha256 of each stage's manifest, which states those of its files; the weights may be gone by now."""
    manifests = {stage: build_manifest_path(layout.folder(run_name, stage)) for stage in stages}
    return {f"sha256.{stage}.manifest.json": hash_file(path) for stage, path in manifests.items() if path.is_file()}


def list_model_numbers(summary: Mapping[str, Any]) -> dict[str, float]:
    """Return the packaged model's scores on test rows, what it is compared with, its size and its speed."""
    model = summary["model"]
    rivals = {"base": summary["base"], **summary["baselines"]}
    found = list_scores("test", model["test"])
    for name, rival in rivals.items():
        found |= list_scores(f"test/{name}", rival["test"])
    return found | keep_numbers((f"model/{name}", value) for name, value in model.items())


def list_stage_numbers(stage: str, measured: Mapping[str, Any]) -> dict[str, float]:
    """Return the scores of a stage on validation rows, its size and its speed."""
    sizes = keep_numbers((f"{stage}/{name}", value) for name, value in measured.items())
    return list_scores(f"validation/{stage}", measured["validation"]) | sizes


def find_progress(work: Path, training: Path) -> Path | None:
    """Return the folder of the training that wrote `training.json`, where its progress still lies on this machine."""
    digest = hash_file(training)
    found = (path.parents[1] for path in sorted(work.glob("*/result/training.json")) if hash_file(path) == digest)
    return next(found, None)


def read_curve(progress: Path | None, training: Path) -> list[Point]:
    """Return the points of a training: all that the Trainer logged, or else those of the learning curve."""
    log = progress / "result" / "log.json" if progress else None
    entries = read_json(log) if log and log.is_file() else read_json(training)["curve"]
    return [point for entry in entries if "step" in entry and (point := build_point(entry))]


if __name__ == "__main__":
    arguments = build_parser(__doc__)
    arguments.add_argument(
        "--settings",
        type=parse_settings,
        required=True,
        help="trackers; name: the results folder as the configuration has it",
    )
    add_results_argument(arguments)
    arguments.add_argument("--summary", type=Path, required=True, help="summary.json")
    arguments.add_argument("--report", type=Path, required=True, help="report.html")
    arguments.add_argument("--model-manifest", type=Path, required=True, help="manifest of the packaged model")
    arguments.add_argument("--work", type=Path, default=Path("work/train"), help="progress of trainings")
    arguments.add_argument("--tracking", type=Path, default=Path("work/tracking"), help="of trackers on this machine")
    arguments.add_argument("--output", type=Path, required=True, help="tracked.json: what was told to whom, to write")
    run(arguments, main)
