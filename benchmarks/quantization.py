"""Every way to int4 for one fine-tuned model: size, quality, flips, KL, first token, tokens/s, memory.

Runs the workflow with all routes as variants of one run, in a results folder of its own, and writes the table from
its summary. `--configfile` names any other configuration, such as examples/phi3-mini.yaml on a bigger machine.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import SCRIPTS, machine, markdown_table, write_table

ROOT = SCRIPTS.parent
MIXED = "last_matmul:int8,mixed_layers:int8"
ROUTES: dict[str, dict[str, Any]] = {
    "fp32": {"precision": "fp32"},
    "int8": {"precision": "int8"},
    "int4": {},
    "int4-rtn": {"algo_config": "rtn"},
    "int4-k-quant": {"algo_config": "k_quant"},
    "int4-mixed": {"algo_config": "k_quant", "matmul_mixed_precision": MIXED},
    "int4-head-int8": {"matmul_mixed_precision": "last_matmul:int8"},
    "int4-head-whole": {"nodes_to_exclude": ["/lm_head/MatMul"]},
    "int4-asymmetric": {"is_symmetric": False},
    "int4-block-16": {"block_size": 16},
    "int4-block-64": {"block_size": 64},
    "int4-accuracy-1": {"accuracy_level": 1},
    "int4-gptq": {"algo_config": "gptq"},
    "int4-gptq-asymmetric": {"algo_config": "gptq", "is_symmetric": False},
    "int4-gptq-64": {"algo_config": "gptq", "block_size": 64},
    "int4-gptq-64-asymmetric": {"algo_config": "gptq", "block_size": 64, "is_symmetric": False},
    "int4-gptq-64-512-rows": {"algo_config": "gptq", "block_size": 64, "calibration": {"rows": 512}},
    "int4-calibrated": {"algo_config": "auto_round"},
    "int4-calibrated-head-int8": {"algo_config": "auto_round", "matmul_mixed_precision": "last_matmul:int8"},
    "int4-calibrated-accuracy-1": {"algo_config": "auto_round", "accuracy_level": 1},
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--configfile", type=Path, default=ROOT / "config.yaml", help="default: config.yaml")
    arguments.add_argument("--routes", nargs="+", choices=ROUTES, default=list(ROUTES), metavar="ROUTE")
    arguments.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "quantization.md")
    args = arguments.parse_args()
    results = f"results-quantization-{args.configfile.stem}"
    configfile = derive_config(args.configfile, results, args.routes)
    command = [sys.executable, "-m", "snakemake", "--cores", "all", "--configfile", str(configfile)]
    if code := subprocess.run(command, cwd=ROOT).returncode:
        sys.exit(code)
    summary = json.loads((ROOT / results / "summary.json").read_text(encoding="utf-8"))
    write_table(args.output, text(summary, args.configfile.name, ROOT / results))


def derive_config(configfile: Path, results: str, routes: Sequence[str]) -> Path:
    """Return the configuration with these routes as variants, and without constraints, sweep and gate."""
    import yaml

    values = yaml.safe_load(configfile.read_text(encoding="utf-8"))
    for section in ("sweep", "selection", "gate"):
        values.pop(section, None)
    values |= {"results": results, "variants": {name: ROUTES[name] for name in routes}}
    path = ROOT / "work" / "quantization.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return path


def text(summary: dict[str, Any], name: str, results: Path) -> str:
    ((run_name, run),) = summary["runs"].items()
    rows = [
        row(stage, facts, time_route(results, run_name, stage))
        for stage, facts in run["stages"].items()
        if facts["validation"]
    ]
    chosen = summary["selected"]
    head = (
        "stage",
        "MB",
        "accuracy, 95 % interval",
        "macro-F1",
        "flips",
        "KL to merged",
        "first token ms",
        "tokens/s",
        "peak RSS MB",
        "seconds to make",
    )
    return "\n".join(
        [
            "# Quantization: all routes for one model on one task",
            "",
            f"`python benchmarks/quantization.py` ({name}, run {run_name}; quality on"
            f" {summary['data']['validation']:,} validation rows, the same for all; speed with batch 1 on validation"
            " prompts, each build in a process of its own, one after the other)",
            "",
            machine("onnxruntime", "onnxruntime-genai", "torch", "auto-round"),
            "",
            markdown_table(head, rows),
            "",
            f"Chosen: {chosen['variant']}, {chosen['reason']}.",
            "",
            "Flips: rows whose label differs from the merged model. KL: mean divergence of the label probabilities"
            " from it, in nats. The adapter is compared with the untouched base, merged with the adapter.",
            "Seconds to make: of rounding by rows, where a route does it, and of the build.",
            "",
        ]
    )


def time_route(results: Path, run: str, stage: str) -> float | None:
    """Return the seconds of the jobs that made a build."""
    variant = stage.removeprefix("onnx-")
    files = [results / f"timings/{rule}/{run}.{variant}.tsv" for rule in ("calibrate_weights", "build_onnx")]
    found = [float(file.read_text().splitlines()[1].split("\t")[0]) for file in files if file.is_file()]
    return sum(found) if found else None


def row(stage: str, facts: dict[str, Any], seconds: float | None) -> list[str]:
    quality = facts["validation"]
    low, high = quality["accuracy_ci95"]
    return [
        stage.removeprefix("onnx-"),
        number(facts["size_mb"], 1),
        f"{quality['accuracy']:.3f} [{low:.3f}, {high:.3f}]",
        f"{quality['macro_f1']:.3f}",
        str(quality["flips"]),
        number(quality["kl"], 4),
        number(facts["first_token_ms"], 1),
        number(facts["tokens_per_second"], 1),
        number(facts["peak_rss_mb"], 0),
        number(seconds, 0),
    ]


def number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


if __name__ == "__main__":
    main()
