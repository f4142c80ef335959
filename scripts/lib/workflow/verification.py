"""What `trace_lineage.py --verify` checks beside the links of the lineage: the lineage itself, and other files.

Each job in `lineage.json` is stated with its sha256, and the parameters of a job are held against those in the
manifests that it wrote. Both find an edit, not a forger: who changes the lineage and its hashes, the manifests and the
hashes of these, is found by a signature alone, and slmflow makes none. Keep `lineage.json` in git or DVC, or note its
sha256 elsewhere, where that matters.
"""

import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lib.core.files import hash_text, read_json
from lib.provenance.lineage import NAME, Broken, Lineage, format_job, read_settings
from lib.provenance.manifests import STAMP
from lib.workflow.steps import find_own_name

_RECORD = Path(".snakemake")
UNTIMED = frozenset({"enforce_gate"})
"""Rules that write no timing file."""

# What the workflow and the programs around it leave beside artifacts: DVC, Finder, NFS.
_BESIDE = re.compile(r"\.gitignore|.+\.dvc|.+\.partial\.\d+|\.DS_Store|\._.+|\.nfs[0-9a-f]+|\.snakemake_timestamp")
_INSIDE = re.compile(r"\.DS_Store|\._.+|\.nfs[0-9a-f]+")
_MOVE = "move it out of the results"


def is_sealed(results: Path) -> bool:
    """Return whether the lineage states hashes of its jobs; older versions of slmflow wrote none."""
    return "sha256" in read_json(results / NAME)


def find_edited_jobs(results: Path) -> Iterator[Broken]:
    """Yield the jobs in `lineage.json` that are not as they were written."""
    value, file = read_json(results / NAME), str(results / NAME)
    jobs, stated = value["jobs"], value.get("sha256")
    if stated is None:
        return
    hint = "bring it back from where it was made"
    if not isinstance(stated, list) or len(stated) != len(jobs):
        yield Broken(file, "has not as many jobs as hashes of jobs: it was edited", hint)
        return
    for job, sha256 in zip(jobs, stated, strict=True):
        if hash_text(format_job(job)) != sha256:
            yield Broken(file, f"what it says of {job['rule']} ({min(job['outputs'])}) was edited", hint)


def find_other_settings(lineage: Lineage) -> Iterator[Broken]:
    """Yield the manifests that were written with other parameters than the lineage says."""
    for path, job in sorted(lineage.by_output.items()):
        if not path.endswith(".manifest.json") or not Path(path).is_file():
            continue
        if (differs := _difference(read_json(Path(path))["settings"], read_settings(job))) is not None:
            name, wrote, says = differs
            what = f"{job['rule']} wrote it with {name} {wrote}, and {NAME} says {says}"
            yield Broken(path, what, "bring back the lineage, or run the workflow again")


def find_other_folder(lineage: Lineage, results: Path) -> Iterator[Broken]:
    """Yield the lineage itself where its jobs wrote to another folder: their bytes would be checked, and not these."""
    if lineage.by_output and not any(Path(path).is_relative_to(results) for path in lineage.by_output):
        wrote = Path(max(lineage.by_output)).parts[0]
        hint = f"give the folder the name that it had, and start where {wrote} lies"
        yield Broken(str(results / NAME), f"its jobs wrote to {wrote}, and not here", hint)


def _difference(wrote: Any, says: Any, name: str = "") -> tuple[str, str, str] | None:
    """Return the first value that two settings have in common and disagree on, by its name."""
    if isinstance(wrote, dict) and isinstance(says, dict):
        below = (_difference(wrote[key], says[key], f"{name}.{key}".lstrip(".")) for key in sorted(wrote.keys() & says))
        return next((found for found in below if found), None)
    return None if wrote == says else (name, json.dumps(wrote)[:80], json.dumps(says)[:80])


def find_missing_logs(lineage: Lineage, results: Path) -> Iterator[Broken]:
    """Yield the rules of which no log, or no timing, is there."""
    rules = {
        find_own_name(job["rule"])
        for job in lineage.jobs()
        if any(Path(path).is_relative_to(results) for path in job["outputs"])
    }
    for kind, expected in (("logs", rules), ("timings", rules - UNTIMED)):
        for rule in sorted(expected):
            folder = results / kind / rule
            if not any(path.is_file() for path in folder.rglob("*")):
                hint = "bring the results as a whole, or make what it made again"
                yield Broken(str(folder), f"no {kind} of {rule} are there", hint)


def find_foreign_entries(lineage: Lineage, results: Path) -> Iterator[Broken]:
    """Yield what lies in a results folder and no job wrote.

    While a run writes to it, or where one was killed, only what lies inside of artifacts counts.
    """
    for path in sorted(lineage.by_output):
        if Path(path).is_dir():
            yield from _inside(Path(path), top=True)
    if not any((_RECORD / "locks").glob("*")):
        lying = [path for path in _beside(results, lineage) if path.relative_to(results).parts[0] not in _NOT_MADE]
        unknown = {path.as_posix() for path in lying}
        for name in sorted(unknown - _find_recorded() if unknown else ()):
            yield Broken(name, "no job wrote it", _MOVE)


_NOT_MADE = {"logs", "timings", NAME}


def _inside(folder: Path, *, top: bool = False) -> Iterator[Broken]:
    """Yield what the hash of an artifact says nothing of: links to folders, empty folders, hidden and special files."""
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    if not entries and not top:
        yield Broken(str(folder), "no job wrote this empty folder", "remove it")
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _inside(Path(entry.path))
        elif (what := _fault_of(entry, top)) is not None:
            yield Broken(entry.path, what, _MOVE)


def _fault_of(entry: "os.DirEntry[str]", top: bool) -> str | None:
    """Return what is wrong with a file inside of an artifact, if the artifact's hash does not tell."""
    if entry.name == STAMP and top:
        status = entry.stat(follow_symlinks=False)
        empty = stat.S_ISREG(status.st_mode) and status.st_size == 0
        return None if empty else "Snakemake leaves this file empty, and it is not"
    if entry.is_symlink() and entry.is_dir():
        return "no job wrote this link to a folder"
    if not entry.is_file():
        return "no job wrote it: it is not a regular file"
    hidden = entry.name.startswith(".") and not _INSIDE.fullmatch(entry.name)
    return "no job wrote this hidden file" if hidden else None


def _beside(folder: Path, lineage: Lineage) -> Iterator[Path]:
    """Yield files and links of a results folder that are not, and are not in, what the lineage knows."""
    for path in sorted(folder.iterdir()):
        if path.as_posix() in lineage.by_output or _BESIDE.fullmatch(path.name):
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _beside(path, lineage)
        else:
            yield path


def _find_recorded() -> set[str]:
    """Return outputs that Snakemake has a record of: of a killed run's, the lineage learns when the next one starts."""
    if not _RECORD.is_dir():
        return set()
    from lib.workflow.metadata_overlay import find_recorded_outputs  # imports Snakemake, which takes a second

    return set(find_recorded_outputs())
