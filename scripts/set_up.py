"""Install what requirements.lock names into the Python that runs this; each file is held against its hash.

torch comes first: which build of it, for CUDA or for the CPU, follows from where pip is set to look. A build whose hash
is in no lock is refused, unless it is installed already. What PyPI's build for CUDA needs comes from
envs/cuda/torch.lock. Packages without a wheel are built with the setuptools of the lock.

With `--without-torch`, torch and what needs it are left out: for tests under a Python for which no torch can be had.
"""

import argparse
import importlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from lib.core.cli import call_or_exit, fail
from lib.core.escaping import escape_controls
from lib.sources.lock_file import Entry, format_lock, read_lock

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--without-torch", action="store_true", help="leave out torch and what needs it")
    args = arguments.parse_args()
    _, entries = read_lock((ROOT / "requirements.lock").read_text(encoding="utf-8"), "requirements.lock")
    lock = {entry.name: entry for entry in entries}
    install_entry(lock["setuptools"], lock["setuptools"].hashes)
    if args.without_torch:
        install_without_torch(entries)
    else:
        install_all(lock)
    run_pip("--no-deps", "--no-index", "--no-build-isolation", "--editable", str(ROOT / "src"))


def install_all(lock: Mapping[str, Entry]) -> None:
    """Install every package of the lock, torch first."""
    if find_installed_version("torch").partition("+")[0] != lock["torch"].pin.lstrip("="):
        install_torch(lock["torch"])
    locks = ["requirements.lock", *(["envs/cuda/torch.lock"] if needs_cuda_libraries() else [])]
    run_pip("--require-hashes", "--no-build-isolation", *(word for name in locks for word in ("-r", str(ROOT / name))))


def install_without_torch(entries: Sequence[Entry]) -> None:
    """Install every package of the lock but torch and what needs it, by what the packages state."""
    others = [entry for entry in entries if entry.name != "torch"]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        install_entries(others, "--dry-run", "--ignore-installed", "--report", str(report))
        chosen = json.loads(report.read_text(encoding="utf-8"))["install"]
    needs = {one["metadata"]["name"]: one["metadata"].get("requires_dist", []) for one in chosen}
    left_out = find_dependents("torch", needs)
    print(escape_controls(f"without torch, and what needs it: {' '.join(sorted(left_out))}"))
    install_entries([entry for entry in others if normalize_name(entry.name) not in left_out])


def find_dependents(name: str, needs: Mapping[str, Sequence[str]]) -> set[str]:
    """Return the packages that cannot do without one, directly or through others; what only extras need is no need.

    needs: the requirements of each package, as its metadata state them (`Requires-Dist`).
    """
    needed = {
        normalize_name(package): {
            normalize_name(re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0])
            for line in lines
            if not re.search(r"\bextra\b", line.partition(";")[2])
        }
        for package, lines in needs.items()
    }
    found = {name}
    while more := {package for package, names in needed.items() if names & found} - found:
        found |= more
    return found - {name}


def normalize_name(name: str) -> str:
    """Return the one form of a package's name that indexes compare."""
    return re.sub(r"[-_.]+", "-", name).lower()


def install_torch(entry: Entry) -> None:
    """Install the build of torch that pip chooses by its settings. Raises `UserError` if its hash is not locked."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        run_pip(
            "--dry-run", "--ignore-installed", "--no-deps", "--only-binary=:all:", "--report", str(report), entry.line
        )
        chosen = json.loads(report.read_text(encoding="utf-8"))["install"][0]
    offered, sha256 = chosen["metadata"]["version"], chosen["download_info"]["archive_info"]["hashes"]["sha256"]
    if sha256 not in entry.hashes:
        fail(
            f"where pip is set to look, torch {offered} has sha256 {sha256}, which is not in requirements.lock",
            f"if you trust it, install it first: {sys.executable} -m pip install torch=={offered}",
        )
    install_entry(entry._replace(line=f"torch==={offered}"), [sha256])


def install_entry(entry: Entry, hashes: list[str]) -> None:
    """Install one package, nothing that it needs, from a wheel with one of these hashes."""
    install_entries([entry._replace(hashes=hashes)], "--only-binary=:all:")


def install_entries(entries: Sequence[Entry], *words: str) -> None:
    """Run `pip install` on packages, each with one of its hashes, and on nothing that they need."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(format_lock([], list(entries), [entry.hashes for entry in entries]))
        file.flush()
        run_pip("--require-hashes", "--no-deps", "--no-build-isolation", *words, "-r", file.name)


def find_installed_version(name: str) -> str:
    """Return the version of a package that is installed, or nothing."""
    importlib.invalidate_caches()
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def needs_cuda_libraries() -> bool:
    """Return whether the installed torch is the CUDA build of PyPI, whose libraries are packages of their own."""
    return sys.platform == "linux" and any(line.startswith("nvidia-") for line in requires("torch") or [])


def run_pip(*words: str) -> None:
    """Run `pip install`; it says itself what is wrong. Raises `SystemExit` when it fails."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *words]
    if (code := subprocess.run(command).returncode) != 0:
        sys.exit(code)


if __name__ == "__main__":
    call_or_exit(main)
