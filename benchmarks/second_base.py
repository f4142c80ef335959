"""A second base beside the demo's: a random model of Llama-3.2-1B's true configuration, from rows to the report.

    PYTHONPATH=tests python benchmarks/second_base.py

For time and memory alone: its weights are random, so its scores mean nothing. Seconds and peak memory of each rule are
Snakemake's, beside what the rule asked for.
"""

import argparse
import csv
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench import SCRIPTS, machine, markdown_table, write_table
from first_look import copy_project
from models.families import FAMILIES, write_description

ROOT = SCRIPTS.parent
FAMILY, ROWS, STEPS = "llama32", 100, 8


def write_model(folder: Path) -> int:
    """Write the model in bfloat16, its weights drawn at random, and return its number of parameters."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    (family,) = (one for one in FAMILIES if one.name == FAMILY)
    write_description(family, folder)
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(folder)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    return int(model.num_parameters())


def write_workspace(folder: Path) -> None:
    """Write project, model, rows and configuration."""
    copy_project(ROOT, folder)
    parameters = write_model(folder / "base")
    rows = json.loads((ROOT / "data/tones.json").read_text())[:ROWS]
    (folder / "rows.json").write_text(json.dumps(rows))
    config: dict[str, Any] = {"results": "results", "task": "classification"}
    config |= {"data": {"files": ["rows.json"], "target": "tone", "min_rows_per_class": 5}}
    config |= {"base_model": {"path": "base", "parameters": parameters}}
    config |= {"corpus": {"template": "chat", "user": "Tone? {phrase}"}}
    config |= {"finetune": {"max_steps": STEPS, "eval_steps": STEPS, "metric_for_best_model": "loss"}}
    config |= {"variants": {"int4": {}}, "evaluate": {"greedy_rows": 5}, "benchmark": {"prompts": 3, "new_tokens": 8}}
    (folder / "config.yaml").write_text(json.dumps(config))


def read_timings(folder: Path, said: str) -> list[list[str]]:
    """Return a line for each job that took five seconds or more, in the order of their names."""
    asked = {}
    for job in re.split(r"^(?=(?:local)?rule \w+:)", said, flags=re.MULTILINE)[1:]:
        found = re.search(r"mem_mb=(\d+)", job)
        name = re.match(r"(?:local)?rule (\w+):", job)
        if found and name:
            asked[name[1]] = int(found[1])
    lines = []
    for file in sorted((folder / "results/timings").rglob("*.tsv")):
        with open(file, encoding="utf-8") as content:
            (row,) = csv.DictReader(content, delimiter="\t")
        rule, job = file.relative_to(folder / "results/timings").parts[0], file.stem
        if float(row["s"]) >= 5:
            what = rule if job in ("log", "time") else f"{rule} ({job})"
            lines.append([what, f"{float(row['s']):.0f}", f"{float(row['max_rss']):,.0f}", f"{asked.get(rule, 0):,}"])
    return lines


def main(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_workspace(folder)
        command = [sys.executable, "-m", "snakemake", "--cores", "all", "--", "evidence"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr[-3000:])
        rows = read_timings(folder, done.stdout + done.stderr)
        training = json.loads((folder / "results/runs/lora/training.json").read_text())
        speed = json.loads((folder / "results/speed/lora/int4.json").read_text())
    title = "# A second base: random weights in Llama-3.2-1B's configuration\n\n"
    command_line = "    PYTHONPATH=tests .venv/bin/python benchmarks/second_base.py\n"
    note = f"{machine('torch', 'transformers', 'onnxruntime-genai')}\n\n{ROWS} rows, {STEPS} steps, one variant."
    facts = (
        f"Training: {training['tokens_per_second']:.0f} tokens/s in {training['dtype']},"
        f" {100 * training['matmul_peak_share']:.0f} % of the matmul peak. int4: {speed['size_mb']:.0f} MB,"
        f" {speed['tokens_per_second']:.1f} tokens/s, {speed['first_token_ms']:.0f} ms to the first token,"
        f" {speed['peak_rss_mb']:,.0f} MB."
    )
    table = markdown_table(["rule", "s", "peak, MB", "asked for, MB"], rows)
    write_table(args.table, f"{title}{command_line}\n{note}\n\n{table}\n\n{facts}\n")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--table", type=Path, default=Path("benchmarks/second_base.md"), help="file to write")
    main(arguments.parse_args())
