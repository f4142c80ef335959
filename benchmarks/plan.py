"""What `scripts/check.py` says before a run, beside what the run took: time and memory of each rule.

    PYTHONPATH=tests python benchmarks/plan.py

Runs the demo, the tones, the questions and answers, and a random model of Llama-3.2-1B's configuration, each in a fresh
copy of the project, one after the other. Rules are shown that take 30 s or more in all.
"""

import argparse
import csv
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from bench import SCRIPTS, machine, markdown_table, write_table
from first_look import copy_project
from second_base import write_workspace

ROOT = SCRIPTS.parent
RUNS = {
    "demo": "config.yaml",
    "tones": "examples/tones.yaml",
    "faq": "examples/faq.yaml",
    "Llama-3.2-1B, random": "config.yaml",
}
LONG = 30.0  # seconds of a rule


def plan(folder: Path, config: str) -> tuple[dict[str, Any], float]:
    """Return the plan and how long it took to make it, the tokenizer being there."""
    command = [sys.executable, "scripts/check.py", "--json", "--configfile", config]
    subprocess.run(command, cwd=folder, capture_output=True)
    began = time.monotonic()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    return json.loads(done.stdout), time.monotonic() - began


def run(folder: Path, config: str) -> dict[str, tuple[float, float]]:
    """Run to the end and return seconds of all jobs and peak megabytes of the largest, by rule."""
    command = [sys.executable, "-m", "snakemake", "--cores", "all", "--configfile", config, "--", "evidence"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    seconds, peak = defaultdict[str, float](float), defaultdict[str, float](float)
    for file in folder.glob("results*/timings/**/*.tsv"):
        rule = file.relative_to(folder).parts[2]
        with open(file, encoding="utf-8") as content:
            (row,) = csv.DictReader(content, delimiter="\t")
        seconds[rule] += float(row["s"])
        if row["max_rss"] not in ("-", "NA"):
            peak[rule] = max(peak[rule], float(row["max_rss"]) * 1024**2 / 1e6)
    return {rule: (seconds[rule], peak[rule]) for rule in seconds}


def compare(name: str, found: dict[str, Any], taken: dict[str, tuple[float, float]]) -> list[list[str]]:
    """Return a line for each long rule, and one for the whole run."""
    lines = []
    sums = {"expected": 0.0, "taken": 0.0}
    for rule, (seconds, peak) in sorted(taken.items(), key=lambda item: -item[1][0]):
        jobs = [job for job in found["jobs"] if job["rule"] == rule]
        expected, asked = sum(job["seconds"] for job in jobs), max((job["mem_mb"] or 0) for job in jobs)
        sums["expected"], sums["taken"] = sums["expected"] + expected, sums["taken"] + seconds
        if seconds >= LONG or expected >= LONG:
            memory = [f"{asked:,.0f}", f"{peak:,.0f}", f"{asked / peak:.2f}"] if asked and peak else ["", "", ""]
            lines.append([name, rule, f"{expected:.0f}", f"{seconds:.0f}", f"{expected / seconds:.2f}", *memory])
    whole = [f"{sums['expected']:.0f}", f"{sums['taken']:.0f}", f"{sums['expected'] / sums['taken']:.2f}"]
    return [*lines, [name, "all rules", *whole, "", "", ""]]


def main(args: argparse.Namespace) -> None:
    lines, speeds = [], []
    for name in args.runs:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            if name.endswith("random"):
                write_workspace(folder)
            else:
                copy_project(ROOT, folder)
                shutil.copytree(ROOT / "examples", folder / "examples")
            found, seconds = plan(folder, RUNS[name])
            speeds.append(f"{name} {seconds:.1f} s")
            args.keep.mkdir(exist_ok=True)
            (args.keep / f"{name}.json").write_text(json.dumps(found))
            kept = args.keep / f"{name}.taken.json"
            taken = json.loads(kept.read_text()) if args.again else run(folder, RUNS[name])
            kept.write_text(json.dumps(taken))
            lines += compare(name, found, taken)
            print(markdown_table(["", "", "", "", "", "", "", ""], lines), flush=True)
    title = "# Plans beside runs\n\n    PYTHONPATH=tests .venv/bin/python benchmarks/plan.py\n\n"
    head = ["run", "rule", "planned, s", "taken, s", "ratio", "planned, MB", "peak, MB", "ratio"]
    note = (
        f"{machine('torch', 'transformers', 'onnxruntime-genai', 'snakemake')}\n\nMaking a plan: {', '.join(speeds)}."
    )
    write_table(args.table, f"{title}{note}\n\n{markdown_table(head, lines)}\n")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("runs", nargs="*", default=list(RUNS), help=", ".join(RUNS))
    arguments.add_argument(
        "--keep", type=Path, default=Path(tempfile.gettempdir()) / "plans", help="folder for numbers"
    )
    arguments.add_argument("--again", action="store_true", help="plan again; what runs took is in --keep")
    arguments.add_argument("--table", type=Path, default=Path("benchmarks/plan.md"), help="file to write")
    main(arguments.parse_args())
