"""Collect every number that other tools read into one file, with paired comparisons.

Each stage is compared with the one that it was made from, the packaged model with every baseline and with
the untouched base model: always on the same rows. A run that was not trained here has no training; one that is
only quantized has no stage before its ONNX builds either, which are then compared with the base.
"""

import argparse
from collections.abc import Container, Iterable, Sequence
from pathlib import Path
from typing import Any

from lib.core.cli import build_parser, fail, parse_settings, run
from lib.core.files import hash_file, read_json, read_jsonl, write_json
from lib.core.layout import SPLITS, Layout, add_results_argument
from lib.evaluation.answers import Prediction
from lib.evaluation.comparison import compare_stages_with_intervals
from lib.evaluation.metrics import find_main_baseline, measure_quality
from lib.evaluation.selection import load_selection
from lib.evaluation.temperature import (
    find_sureness,
    list_curve,
    measure_answers,
    measure_probabilities,
    read_scores,
)
from lib.provenance.manifests import build_manifest_path, load_manifest
from lib.report.findings import state_verdict

_TRAINING = (
    "real_tokens",
    "supervised_tokens",
    "tokens_per_second",
    "matmul_peak_share",
    "seconds",
    "peak_rss_mb",
    "best_step",
)
_SPEED = ("size_mb", "load_s", "first_token_ms", "tokens_per_second", "peak_rss_mb")
_SELECTED = ("run", "variant", "reason", "rejected", "compared", "candidates")
_MODEL_SPEED = ("size_mb", "first_token_ms", "tokens_per_second", "peak_rss_mb")


def main(args: argparse.Namespace) -> None:
    selection = load_selection(args.selection)
    base = {"validation": _quality(args.base_validation), "test": _quality(args.base_test)}
    summary = {
        "data": _data(read_json(args.audit), read_json(args.split)),
        "tokenizer": {key: read_json(args.tokenizer)[key] for key in ("rows", "differ", "error", "asked_otherwise")},
        "baselines": {name: splits for name, splits in read_json(args.baselines).items() if name != "extra"},
        "base": base | {"size_mb": _size_mb(args.base)},
        "runs": _runs(args),
        "selected": {key: selection[key] for key in _SELECTED},
        "ranking": selection["ranking"],
        "model": _model(args, read_json(args.results.speed(selection["run"], selection["variant"]))),
        "gate": read_json(args.gate),
    }
    if args.temperature:
        summary["probabilities"] = _probabilities(args)
    if leaking := read_json(args.leakage).get("leaking", {}).get("test"):
        summary["leaks"] = _without_leaks(args, {*leaking})
    text, ship = state_verdict(args.settings["task"], summary)
    write_json(args.output, {"verdict": {"ship": ship, "text": text}, **summary})


def _data(audit: dict[str, Any], split: dict[str, Any]) -> dict[str, int]:
    """Return numbers of rows; `rejected` is the total, its reasons are in the audit."""
    counted = ("exact_duplicates", "near_duplicate_clusters", "label_conflicts")
    return {
        "rows": audit["rows"],
        "kept": audit["kept"],
        "rejected": audit["rows"] - audit["kept"],
        **{key: audit[key] for key in counted},
        **{name: split["counts"][name] for name in SPLITS},
    }


def _runs(args: argparse.Namespace) -> dict[str, Any]:
    """Return training facts, choice of merge and stages of every run; ONNX builds that were not scored have no
    quality.
    """
    base = _predictions(args.base_validation_predictions)
    return {one["name"]: _run(one, args.settings, args.results, base) for one in args.settings["runs"]}


def _run(one: dict[str, Any], settings: dict[str, Any], layout: Layout, base: Sequence[Prediction]) -> dict[str, Any]:
    name, scored = one["name"], settings["scored"]
    compared = _compare_stages(
        [*one["stages"], *(f"onnx-{variant}" for variant in scored)], name, settings, layout, base
    )
    stages = {
        stage: _stage(compared[stage], {"size_mb": _size_mb(layout.folder(name, stage))}) for stage in one["stages"]
    }
    for variant in settings["built"]:
        stage = f"onnx-{variant}"
        manifest, quality = load_manifest(build_manifest_path(layout.folder(name, stage))), compared.get(stage)
        built = {"size_mb": round(manifest["size_bytes"] / 1e6, 1)}
        speed = read_json(layout.speed(name, variant)) if variant in scored else built
        stages[stage] = _stage(quality, speed, verified=manifest["verified"] or quality is not None)
    facts = read_json(layout.training(name)) if one["trained"] else None
    return {
        "training": facts and {key: facts.get(key) for key in _TRAINING},
        "merge": read_json(layout.merge(name)) if "merged-original" in one["stages"] else None,
        "stages": stages,
    }


def _compare_stages(
    stages: Sequence[str], run_name: str, settings: dict[str, Any], layout: Layout, base: Sequence[Prediction]
) -> dict[str, dict[str, Any]]:
    """Return quality of each scored stage of a run, compared with the stage that it was made from."""
    predictions = {stage: _predictions(layout.predictions(run_name, stage)) for stage in stages} | {"base": base}
    result = {}
    for stage in stages:
        before = _before(stage, predictions)
        comparison = _comparison(settings, predictions[before], predictions[stage], before)
        result[stage] = _quality(layout.score(run_name, stage)) | comparison
    return result


def _before(stage: str, scored: Container[str]) -> str:
    """Return the stage that `stage` was made from; the base, where a run has none before it."""
    before = "merged" if stage.startswith("onnx-") else "adapter" if stage.startswith("merged") else "base"
    return before if before in scored else "base"


def _comparison(
    settings: dict[str, Any], before: Sequence[Prediction], after: Sequence[Prediction], name: str
) -> dict[str, Any]:
    """Return `flips`, `kl` and `against` of a stage; `against` has the paired test and the intervals of the
    difference.
    """
    draw = {"seed": settings["seed"], "samples": settings["evaluate"]["bootstrap_samples"]}
    return compare_stages_with_intervals(settings["task"], before, after, name=name, **draw)


def _stage(
    quality: dict[str, Any] | None, speed: dict[str, Any] | None = None, verified: bool | None = None
) -> dict[str, Any]:
    return {"validation": quality, **{key: (speed or {}).get(key) for key in _SPEED}, "verified": verified}


def _size_mb(folder: Path) -> float:
    """Return MB (10^6 bytes) of the files that the folder's manifest names; the folder itself may be gone by now."""
    size_bytes: int = load_manifest(build_manifest_path(folder))["size_bytes"]
    return size_bytes / 1e6


def _model(args: argparse.Namespace, speed: dict[str, Any]) -> dict[str, Any]:
    """Return the packaged model on the test rows, compared with the baseline that it must be worth more than.

    `compared` holds the same comparison with every baseline and with the untouched base model.
    Raises `UserError` when the score is of other bytes than the packaged model's.
    """
    score, settings = read_json(args.model_score), args.settings
    if score["inputs"]["model"] != hash_file(args.model_manifest):
        fail(
            f"this score was computed from a different model than {args.model_manifest}",
            "delete it and run again",
            at=args.model_score,
        )
    rivals: dict[str, list[Prediction]] = {}
    for row in _predictions(args.baseline_predictions):
        if row["split"] == "test":
            rivals.setdefault(row["baseline"], []).append(row)
    rivals["base"] = _predictions(args.base_test_predictions)
    model = _predictions(args.model_predictions)
    compared = {name: _comparison(settings, rows, model, name) for name, rows in rivals.items()}
    return {
        "test": score["quality"] | compared[find_main_baseline(settings["task"], compared)],
        "compared": {name: comparison["against"] for name, comparison in compared.items()},
        **{key: speed[key] for key in _MODEL_SPEED},
    }


def _probabilities(args: argparse.Namespace) -> dict[str, Any]:
    """Return temperature and threshold, and what they are worth on validation rows, which chose them, and on test rows.

    before, after: the quality of the probabilities without and with the temperature. answered: precision and coverage
    of the answers above the threshold. curve: risk by coverage, on the test rows.
    """
    fitted, settings = read_json(args.temperature), args.settings
    scored = read_scores(_predictions(args.model_predictions))
    draw = {"seed": settings["seed"], "samples": settings["evaluate"]["bootstrap_samples"]}
    stages = {"before": 1.0, "after": fitted["temperature"]}
    test = {name: measure_probabilities(scored, value, **draw) for name, value in stages.items()}
    sureness, right = find_sureness(scored, fitted["temperature"])
    if "decision" in fitted:
        test["answered"] = measure_answers(sureness, right, fitted["threshold"], **draw)
    return {**fitted, "test": test, "curve": list_curve(sureness, right)}


def _without_leaks(args: argparse.Namespace, leaking: set[str]) -> dict[str, Any]:
    """Return the quality on the test rows that are like no row of another split: of the model, the base and baselines.

    rows: how many are left out. Null where none is left.
    """
    settings = args.settings
    labels = read_json(args.model_score).get("labels")
    draw = {"seed": settings["seed"], "samples": settings["evaluate"]["bootstrap_samples"]}

    def measure(predictions: Iterable[Prediction]) -> dict[str, Any] | None:
        rows = [row for row in predictions if row["id"] not in leaking]
        return measure_quality(settings["task"], rows, labels, **draw)["quality"] if rows else None

    scored = {"model": _predictions(args.model_predictions), "base": _predictions(args.base_test_predictions)}
    for row in _predictions(args.baseline_predictions):
        if row["split"] == "test":
            scored.setdefault(row["baseline"], []).append(row)
    return {"rows": len(leaking), "without": {name: measure(rows) for name, rows in scored.items()}}


def _quality(score: Path) -> Any:
    return read_json(score)["quality"]


def _predictions(path: Path) -> list[Prediction]:
    return list(read_jsonl(path))


if __name__ == "__main__":
    arguments = build_parser(__doc__)
    arguments.add_argument(
        "--settings",
        type=parse_settings,
        required=True,
        help="task, seed, evaluate; runs: of each its name, its stages as the data goes, and whether it was trained;"
        " built: all variants; scored: those with scores",
    )
    for name, what in {
        "audit": "audit.json",
        "split": "split.json",
        "leakage": "leakage.json",
        "tokenizer": "onnx_tokenizer.json",
        "baselines": "baselines.json",
        "baseline-predictions": "their predictions",
        "base-validation": "score of the untouched base on validation rows",
        "base-validation-predictions": "its predictions",
        "base-test": "score of the untouched base on test rows",
        "base-test-predictions": "its predictions",
        "base": "folder of the untouched base",
        "selection": "selection.json",
        "gate": "gate.json",
        "model-score": "score of the packaged model on test rows",
        "model-predictions": "its predictions",
        "model-manifest": "manifest of the packaged model",
        "output": "summary.json",
    }.items():
        arguments.add_argument(f"--{name}", type=Path, required=True, help=what)
    arguments.add_argument("--temperature", type=Path, help="temperature.json, with task classification")
    add_results_argument(arguments)
    run(arguments, main)
