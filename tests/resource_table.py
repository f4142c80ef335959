"""What each rule of the demo asks for under each profile, as Snakemake renders it: `python tests/resource_table.py`
writes `golden/resources.json`, which test_profiles.py compares.

Snakemake drops misspelled keys of a profile without a word; here they are missed.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import yaml

from support.paths import GOLDEN
from support.workspaces import copy_project

TABLE = GOLDEN / "resources.json"
PROFILES = {
    "no profile": [],
    "gpu": ["--profile", "profiles/gpu"],
    "slurm": ["--profile", "profiles/slurm"],
    "slurm, second attempt": ["--profile", "profiles/slurm", "--attempt", "2"],
    "azureml": ["--profile", "profiles/azureml-without-azure"],
}
# Kilobytes of files whose size decides, about those of the demo.
SIZES = {"data/rows": 900, "data/kept": 800, "corpus/train": 600, "corpus/validation": 80, "corpus/test": 120}
_OTHERS = [
    "tokenizer.manifest.json",
    "base.manifest.json",
    "data/audit.json",
    "data/split.json",
    "corpus/template.json",
]
_SHOWN = {"threads", "mem_mb", "runtime", "gpu", "gpu_model", "gres", "slurm_partition", "nodes", "tasks", "mpi"}
_SHOWN |= {"azureml_compute", "azureml_conda_file"}
_AZURE = ("executor", "azureml-", "default-storage-", "storage-azure-", "shared-fs-")

Table = dict[str, list[dict[str, Any]]]


def tables() -> dict[str, Table]:
    """By profile and rule: each different set of threads and resources among its jobs."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        copy_project(root)
        for name, kilobytes in SIZES.items():
            file = root / "results" / f"{name}.jsonl"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(bytes(1000 * kilobytes))
        for name in _OTHERS:
            (root / "results" / name).write_text("{}")
        (root / "results/base").mkdir()
        (root / "results/tokenizer").mkdir()
        (root / "data/raw").mkdir()
        (root / "data/raw/tweets.json").write_bytes(bytes(1000 * SIZES["data/rows"]))
        _without_azure(root / "profiles")
        return {profile: _table(root, arguments) for profile, arguments in PROFILES.items()}


def _without_azure(profiles: Path) -> None:
    """The profile for Azure, less what would ask a storage there for files."""
    profile = yaml.safe_load((profiles / "azureml/profile.yaml").read_text())
    (profiles / "azureml-without-azure").mkdir()
    kept = {key: value for key, value in profile.items() if not key.startswith(_AZURE)}
    (profiles / "azureml-without-azure/profile.yaml").write_text(yaml.safe_dump(kept))


def _table(root: Path, arguments: list[str]) -> Table:
    # More cores than any rule wants, so that each gets what it asks for.
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--forceall", "--cores", "64", *arguments]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    table: Table = {}
    for job in re.split(r"^(?=(?:local)?rule \w+:)", done.stdout + done.stderr, flags=re.MULTILINE)[1:]:
        (rule,) = re.findall(r"^(?:local)?rule (\w+):", job, flags=re.MULTILINE)
        (resources,) = re.findall(r"^    resources: (.*)", job, flags=re.MULTILINE)
        threads = re.findall(r"^    threads: (\d+)", job, flags=re.MULTILINE) or ["1"]
        found = {"threads": threads[0]} | dict(sorted(part.split("=", 1) for part in resources.split(", ")))
        asked = {name: int(text) if text.isdigit() else text for name, text in found.items() if name in _SHOWN}
        if asked not in table.setdefault(rule, []):
            table[rule].append(asked)
    return {rule: sorted(table[rule], key=json.dumps) for rule in sorted(table)}


def as_text(found: dict[str, Table]) -> str:
    """One line for each set, so that a change shows as a line."""
    parts = [
        f"  {json.dumps(profile)}: {{\n"
        + ",\n".join(f"    {json.dumps(rule)}: {json.dumps(sets)}" for rule, sets in table.items())
        + "\n  }"
        for profile, table in found.items()
    ]
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text(as_text(tables()))
