"""Install what requirements.lock names into the Python that runs this; each file is held against its hash.

torch comes first: which build of it, for CUDA or for the CPU, follows from where pip is set to look. A build whose hash
is in no lock is refused, unless it is installed already. What PyPI's build for CUDA needs comes from
envs/cuda/torch.lock. Packages without a wheel are built with the setuptools of the lock.
"""

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from lib.core.cli import fail, or_exit
from lib.sources.lock_file import Entry, read_lock

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    _, entries = read_lock((ROOT / "requirements.lock").read_text(encoding="utf-8"), "requirements.lock")
    lock = {entry.name: entry for entry in entries}
    install_entry(lock["setuptools"], lock["setuptools"].hashes)
    if installed_version("torch").partition("+")[0] != lock["torch"].pin.lstrip("="):
        install_torch(lock["torch"])
    locks = ["requirements.lock", *(["envs/cuda/torch.lock"] if needs_cuda_libraries() else [])]
    pip("--require-hashes", "--no-build-isolation", *(word for name in locks for word in ("-r", str(ROOT / name))))
    pip("--no-deps", "--no-index", "--no-build-isolation", "--editable", str(ROOT / "src"))


def install_torch(entry: Entry) -> None:
    """Install the build of torch that pip chooses by its settings. Raises `UserError` if its hash is not locked."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        pip("--dry-run", "--ignore-installed", "--no-deps", "--only-binary=:all:", "--report", str(report), entry.line)
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
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(" ".join([entry.line, *(f"--hash=sha256:{one}" for one in hashes)]) + "\n")
        file.flush()
        pip("--require-hashes", "--no-deps", "--only-binary=:all:", "-r", file.name)


def installed_version(name: str) -> str:
    """Return the version of a package that is installed, or nothing."""
    importlib.invalidate_caches()
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def needs_cuda_libraries() -> bool:
    """Return whether the installed torch is the CUDA build of PyPI, whose libraries are packages of their own."""
    return sys.platform == "linux" and any(line.startswith("nvidia-") for line in requires("torch") or [])


def pip(*words: str) -> None:
    """Run `pip install`; it says itself what is wrong. Raises `SystemExit` when it fails."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *words]
    if (code := subprocess.run(command).returncode) != 0:
        sys.exit(code)


if __name__ == "__main__":
    or_exit(main)
