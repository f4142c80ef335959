"""Scratch copies of the project with tiny configurations, and real Snakemake runs in them."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from support.paths import ROOT

PROJECT = ["Snakefile", "rules", "config.yaml", "scripts", "envs", "examples", "profiles", "requirements.lock", "data"]

# As a shell, a glob, a regular expression and a URL would like it least. Braces are refused in a clone's folder.
HOSTILE = """it's "ü" $(touch OWNED) `touch OWNED`;touch OWNED&|>OWNED *?[1]::<B>~#%20\\1!"""

# Rows and base model of the finished workspace; the rules put ./ before what begins with a dash.
ROWS, BASE = f"-{HOSTILE}{{v-2}} rows.json", f"-{HOSTILE}{{v-2}} base"


class Workspace:
    """A copy of the project with a configuration, in a folder of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.results = root / "results"

    @property
    def rows(self) -> Path:
        """The first file of raw rows."""
        return self.root / yaml.safe_load((self.root / "config.yaml").read_text())["data"]["files"][0]

    def snakemake(self, *args: str, cwd: Path | None = None) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "snakemake", "--cores", "2", *args]
        return subprocess.run(command, cwd=cwd or self.root, capture_output=True, text=True)

    def run(self, *args: str) -> subprocess.CompletedProcess:
        done = self.snakemake(*args)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
        return done

    def planned(self, *args: str, cwd: Path | None = None) -> set[str]:
        """Names of the rules that a dry run would execute."""
        done = self.snakemake("-n", *args, cwd=cwd)
        assert done.returncode == 0, done.stderr[-4000:]
        return set(re.findall(r"^(?:local)?rule (\w+):", done.stdout + done.stderr, flags=re.MULTILINE))

    def configure(self, change) -> None:
        path = self.root / "config.yaml"
        values = yaml.safe_load(path.read_text())
        change(values)
        path.write_text(yaml.safe_dump(values, sort_keys=False))

    def edit(self, name: str, old: str, new: str) -> None:
        path = self.root / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))


def tiny_config(base: Path) -> dict:
    return {
        "results": "results",
        "task": "classification",
        "data": {"files": ["rows.json"], "target": "tone", "min_rows_per_class": 5},
        "base_model": {"path": str(base), "parameters": 137_792},
        "split": {"validation": 0.2, "test": 0.2},
        "corpus": {"template": "chat", "user": "Tone? {phrase}", "max_length": 200},
        "finetune": {
            "r": 4,
            "lora_alpha": 8,
            "num_train_epochs": 1,
            "learning_rate": 0.01,
            "per_device_train_batch_size": 4,
            "eval_steps": 5,
        },
        "variants": {"int4": {}, "int4-cuda": {"execution_provider": "cuda"}},
        "evaluate": {"greedy_rows": 5, "bootstrap_samples": 200},
        "benchmark": {"prompts": 3, "new_tokens": 8},
    }


def parameters_of(base: Path) -> int:
    from safetensors import safe_open

    with safe_open(base / "model.safetensors", framework="np") as file:
        return sum(file.get_tensor(name).size for name in file.keys())  # noqa: SIM118


def copy_project(root: Path) -> None:
    for name in PROJECT:
        source, target = ROOT / name, root / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "raw"))
        else:
            shutil.copy2(source, target)


def write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


def tiny_workspace(root: Path, base: Path) -> Workspace:
    """Raw rows and a configuration; nothing has run yet."""
    copy_project(root)
    rows = json.loads((ROOT / "data" / "tones.json").read_text())[:120]
    write_rows(root / "rows.json", rows)
    config = tiny_config(base)
    config["base_model"]["parameters"] = parameters_of(base)
    (root / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return Workspace(root)


def make_workspace(root: Path, base: Path, **sections) -> Workspace:
    """Raw rows and a configuration with one variant and these sections; nothing has run yet."""
    root.mkdir(exist_ok=True)
    copy_project(root)
    rows = json.loads((ROOT / "data" / "tones.json").read_text())[:120]
    write_rows(root / "rows.json", rows)
    config = tiny_config(base) | {"variants": {"int4": {}}} | sections
    config["base_model"]["parameters"] = parameters_of(base)
    (root / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return Workspace(root)


def finished_workspace(root: Path, base: Path) -> Path:
    """A tiny workspace with a base model of its own, whose files have the worst of names, run from raw rows to the report."""
    workspace = tiny_workspace(root, base)
    shutil.copytree(base, root / BASE)
    workspace.rows.rename(root / ROWS)
    workspace.configure(lambda config: (config["data"].update(files=[ROWS]), config["base_model"].update(path=BASE)))
    workspace.run()
    return root


def restored(finished: Path, root: Path) -> Workspace:
    """A copy with bytes, time stamps and Snakemake's own record."""
    shutil.copytree(finished, root, symlinks=True)
    return Workspace(root)


def predict(root: Path, *words: str) -> dict:
    """What the packaged model answers."""
    command = [sys.executable, "scripts/predict.py", "--model", "results/model", "--json", *words]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
