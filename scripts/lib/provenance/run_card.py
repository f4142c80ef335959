"""The run card: by what, where and when an artifact was made; what a person asks who finds it in two years.

Gathered while a rule runs and never part of its parameters: a commit alone makes nothing again. Manifests do not name
it, since two runs with equal bytes differ in it.
"""

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from lib.core.files import hash_file

CODE = "SLMFLOW_CODE"  # the variable by which a job elsewhere, which has no checkout, is told what it runs
_PROJECT = Path(__file__).resolve().parents[3]
_MANY = 20  # changed files that are named


def run_card(settings: dict[str, Any], manifests: dict[str, Path], seconds: dict[str, float]) -> dict[str, Any]:
    """Describe a run. settings: the parts of the configuration that made it, with seeds. manifests: by name.

    seconds: that the jobs of each rule took so far.
    """
    return {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "configuration": settings,
        "code": describe_code(),
        "lock_sha256": _sha256(_PROJECT / "requirements.lock"),
        "versions": {"python": platform.python_version(), **_versions()},
        "machine": _machine(),
        "seconds": seconds,
        "manifests": {name: _sha256(path) for name, path in manifests.items()},
    }


def describe_code() -> dict[str, Any]:
    """Return git's commit, and whether the working tree was as committed; null where the project is no git checkout."""
    if CODE in os.environ:
        return json.loads(os.environ[CODE])
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return {"commit": None, "clean": None, "changed": []}
    changed = [line[3:] for line in (_git("status", "--porcelain") or "").splitlines()]
    return {"commit": commit.strip(), "clean": not changed, "changed": changed[:_MANY]}


def _git(*words: str) -> str | None:
    command = ["git", "-C", str(_PROJECT), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _sha256(path: Path) -> str | None:
    return hash_file(path) if path.is_file() else None


def _versions() -> dict[str, str]:
    """Return every installed distribution, by its normalized name."""
    found = {one.metadata["Name"].lower().replace("_", "-"): one.version for one in distributions()}
    return dict(sorted(found.items()))


def _machine() -> dict[str, Any]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    pairs = (line.partition(":")[::2] for line in reversed(lines))  # so that the first processor is taken
    facts = {key.strip(): value.strip() for key, value in pairs}
    return {
        "system": platform.platform(),
        "processor": facts.get("model name", platform.machine()),
        "bfloat16_units": bool({"avx512_bf16", "amx_bf16"} & set(facts.get("flags", "").split())),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        "gpus": _gpus(),
    }


def _gpus() -> list[str]:
    """Return names of NVIDIA's GPUs and their driver, by its own tool."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []
