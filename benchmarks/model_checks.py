"""Seconds and memory of trying a small model of the base model's kind: `check_training` and `check_build`.

    PYTHONPATH=tests python benchmarks/model_checks.py

The configurations have the true sizes of the models that they are named after; each script is a process of its own.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench import SCRIPTS, machine, markdown_table, write_table
from check_training import count_parameters
from models.families import FAMILIES, write_description

from lib.config.variants import Variant

TRIED = ("smollm2", "llama32", "qwen3", "gemma3", "phi35_128k", "qwen35", "lfm2")
METHOD = {"method": "lora", "target_modules": "all-linear", "dtype": "float32", "gradient_checkpointing": False}


def run_script(name: str, *words: object) -> tuple[float, float]:
    """Return seconds and peak megabytes of one script; what it refuses takes its time too."""
    command = [sys.executable, str(SCRIPTS / f"{name}.py"), *map(str, words)]
    begun = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status and b"error: variants." not in said:
        raise SystemExit(said.decode())
    return time.monotonic() - begun, usage.ru_maxrss / 1000


def measure(name: str, folder: Path) -> list[str]:
    """Return a line of the table."""
    (family,) = (one for one in FAMILIES if one.name == name)
    source = write_description(family, folder / "source")
    (source / "model.safetensors").touch()  # named, and not read
    tokenizer, trial, model = folder / "tokenizer", folder / "trial", {"model": family.model, "versions": {}}
    settings = json.dumps({"source": {"path": str(source)}, "versions": {}})
    run_script("fetch_tokenizer", "--settings", settings, "--path", source, "--output", tokenizer)
    places = ("--tokenizer", tokenizer, "--trial", trial)
    count = count_parameters(tokenizer)
    training = json.dumps({**model, "parameters": count, "methods": [METHOD]})
    found = [run_script("check_training", "--settings", training, *places)]
    calibration = {"algo_config": "auto_round"}
    for variant, options in (("int4", {}), ("calibrated", calibration)):  # refused where layers differ in kind
        values = Variant.model_validate(options).model_dump(mode="json", exclude_none=True)
        text = json.dumps({**model, "variant": values, "seed": 0})
        words = ("--variant", variant, "--output", folder / f"{variant}.json")
        found.append(run_script("check_build", "--settings", text, *words, *places))
    return [family.model, *(f"{seconds:.1f}" for seconds, _ in found), f"{max(peak for _, peak in found):,.0f}"]


def main(args: argparse.Namespace) -> None:
    rows = []
    for name in TRIED:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(name, Path(folder)))
            print(*rows[-1], flush=True)
    title = "# What it takes to try a small model of the base model's kind\n\n"
    command = "    PYTHONPATH=tests .venv/bin/python benchmarks/model_checks.py\n"
    note = machine("torch", "transformers", "onnxruntime-genai", "auto-round")
    head = ["base model", "check_training, s", "check_build int4, s", "check_build auto_round, s", "peak, MB"]
    write_table(args.table, f"{title}{command}\n{note}\n\n{markdown_table(head, rows)}\n")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--table", type=Path, default=Path("benchmarks/model_checks.md"), help="file to write")
    main(arguments.parse_args())
