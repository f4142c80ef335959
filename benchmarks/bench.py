"""What the benchmarks share: where the scripts are, the machine in a line, tables."""

import os
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
sys.path.insert(0, str(SCRIPTS))

import lib.core.cli  # noqa: E402, F401 (turns telemetry off before the libraries that would report are imported)


def machine(*packages: str, threads: int | None = None) -> str:
    """Processor, cores, memory, system and the versions of `packages`, in one line."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    cpu = next((line.partition(":")[2].strip() for line in lines if "model name" in line), platform.machine())
    gigabytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    parts = [f"{cpu}, {os.cpu_count()} cores, {gigabytes:.0f} GB", f"Linux, Python {platform.python_version()}"]
    parts += [f"{name} {version(name)}" for name in packages]
    parts += [f"{threads} threads"] if threads else []
    return "Machine: " + "; ".join(parts) + "."


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_table(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    print(text)
