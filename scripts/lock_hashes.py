"""Write the hashes of all packages into the lock files; their versions stay as they stand there.

For each package: the sha256 of its wheels for CPython 3.11 to 3.13 on Linux (x86_64, aarch64) and macOS, as the indexes
state them that pip is set to use; of a package without such a wheel, that of its sdist. Hashes of a build that only
another index has (`2.13.0+cpu`, from PyTorch's own page) stay, and those that are found come to them.
"""

import argparse
import re
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.utils import parse_wheel_filename

from lib.core.cli import call_or_exit, fail
from lib.core.escaping import escape_controls
from lib.sources.lock_file import LOCKS, TORCH_CPU, Entry, format_lock, read_lock
from lib.sources.package_index import REMEDY, PackageFile, PackageIndex

ROOT = Path(__file__).resolve().parent.parent
_MINORS = (11, 12, 13)
_PLATFORM = re.compile(r"any|(linux|manylinux\w*)_(x86_64|aarch64)|macosx_\w*_(arm64|x86_64|universal2)")


def main() -> int:
    argparse.ArgumentParser(description=__doc__).parse_args()
    index = PackageIndex()
    cpu_builds: dict[str, list[str]] = {}
    for lock in LOCKS:
        path = ROOT / lock
        comments, entries = read_lock(path.read_text(encoding="utf-8"), lock)
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda entry: find_hashes(index, entry), entries))
        if lock == TORCH_CPU:
            cpu_builds = {entry.name: hashes for entry, hashes in zip(entries, found, strict=True)}
        if lock == "requirements.lock":
            found = [hashes + cpu_builds.get(entry.name, []) for entry, hashes in zip(entries, found, strict=True)]
        path.write_text(format_lock(comments, entries, found), encoding="utf-8")
    return 0


def find_hashes(index: PackageIndex, entry: Entry) -> list[str]:
    """Return the sha256 of each file of a package that counts. Raises `UserError` when there is none."""
    files, problems = index.list_files(entry.name)
    if problems:
        fail(f"{entry.name}{entry.pin}: a package index is out of reach ({problems[0]})", REMEDY)
    pinned = SpecifierSet(entry.pin)
    wanted = choose_files([file for file in files if pinned.contains(file.version, prereleases=True)])
    known = entry.hashes if "+" in entry.pin else []
    if not wanted and not known:
        fail(f"{entry.name}{entry.pin} has no file for CPython 3.11 to 3.13 on Linux or macOS", "take another version")
    if any(not file.name.endswith(".whl") for file in wanted):
        print(escape_controls(f"{entry.name}{entry.pin} has no wheel: its sdist is built"), file=sys.stderr)
    check_agreement(wanted)
    return [*known, *(_state_hash(index, file) for file in wanted)]


def choose_files(files: list[PackageFile]) -> list[PackageFile]:
    """Return the wheels that one of the Pythons and platforms can take; if there are none, the sdists."""
    wheels = [file for file in files if file.name.endswith(".whl") and _suits(file.name)]
    return wheels or [file for file in files if not file.name.endswith(".whl")]


def _suits(wheel: str) -> bool:
    for tag in parse_wheel_filename(wheel)[3]:
        python = re.fullmatch(r"(cp|py)3(\d*)", tag.interpreter)
        if python is None or not _PLATFORM.fullmatch(tag.platform):
            continue
        minor = int(python[2] or 0)
        oldest = python[1] == "py" or tag.abi == "abi3"  # from this version on; else this one alone
        if tag.abi in ("none", "abi3", tag.interpreter) and (minor <= _MINORS[-1] if oldest else minor in _MINORS):
            return True
    return False


def check_agreement(files: list[PackageFile]) -> None:
    """Raise `UserError` when two indexes offer different files of one name."""
    stated: dict[str, str | None] = {}
    for file in files:
        if stated.setdefault(file.name, file.sha256) != file.sha256:
            fail(f"{file.name}: two indexes offer different files of this name", "ask PyPI's page which is meant")


def _state_hash(index: PackageIndex, file: PackageFile) -> str:
    if file.sha256:
        return file.sha256
    with tempfile.TemporaryDirectory() as folder:
        return index.download(file, Path(folder))[1]


if __name__ == "__main__":
    sys.exit(call_or_exit(main))
