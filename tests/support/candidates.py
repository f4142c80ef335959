"""Measured variants with planted mistakes, as a selection finds them."""

import math

from lib.core.files import hash_file, write_json, write_jsonl
from lib.core.layout import Layout
from lib.evaluation.metrics import measure_quality
from lib.provenance.manifests import build_manifest_path

LABELS = ["no", "yes"]
SPEED = {"first_token_ms": 50.0, "tokens_per_second": 40.0, "peak_rss_mb": 300.0}


def predictions(wrong: set[int], rows: int = 100) -> list[dict]:
    return [
        {
            "id": f"row{number}",
            "label": LABELS[number % 2],
            "predicted": LABELS[(number + (number in wrong)) % 2],
            "log_probs": {label: math.log(0.5) for label in LABELS},
            "answer": None,
            "stopped": None,
        }
        for number in range(rows)
    ]


def write_candidate(layout: Layout, run_name: str, variant: str, rows: list[dict], speed: dict) -> None:
    stage = f"onnx-{variant}"
    manifest = build_manifest_path(layout.folder(run_name, stage))
    files = [manifest, layout.score(run_name, stage), layout.speed(run_name, variant)]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
    write_json(manifest, {"name": variant})
    measured = measure_quality("classification", rows, LABELS, seed=0, samples=50)
    write_json(layout.score(run_name, stage), {**measured, "inputs": {"model": hash_file(manifest)}})
    write_jsonl(layout.predictions(run_name, stage), rows[::-1])  # order must not matter
    write_json(layout.speed(run_name, variant), SPEED | speed)
