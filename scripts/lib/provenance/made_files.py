"""Which files of a folder a run of slmflow made, by their names, and which are somebody's own.

What is removed is decided by this table and by manifests; a test holds it against the rules' outputs. No link is
followed, and none counts as made: no rule writes one.
"""

import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from lib.provenance.lineage import NAME as LINEAGE
from lib.provenance.manifests import RUN_CARD, STAMP

_SCRIPTS = Path(__file__).resolve().parents[2]
_FOLDER = (
    r"(?P<folder>tokenizer|checks/trial|base|assembled|selected|model"
    r"|runs/[^/]+/(adapter|merged|merged-original|merged-dequantized|(calibrated|onnx)/[^/]+?))"
)
_FILE = "|".join(
    [
        r"(lineage|selection|summary|metrics|gate|temperature|tracked)\.json|gate\.passed|report\.html",
        r"data/((rows|kept|rejected)\.jsonl|(audit|split)\.json)",
        r"corpus/((train|validation|test)\.jsonl|(template|leakage|onnx_tokenizer)\.json|(build|checked|onnx_tokenizer)\.done)",
        r"checks/(model|build/[^/]+)\.(json|done)",
        r"scores/(baselines|([^/]+/)?[^/]+\.(validation|test))\.(json|predictions\.jsonl)",
        r"speed/[^/]+/[^/]+\.json",
        r"runs/[^/]+/(training|merge)\.json",
        r"plots/(learning_curve|confusion|variants)\.csv",
        r"logs/[a-z_]+/.+\.txt|timings/[a-z_]+/.+\.tsv",
    ]
)
# What a process that was killed leaves of either has its number at the end; of a folder, with all that is in it.
_PARTIAL = r"\.partial\.\d+"
_RESULT = re.compile(
    rf"({_FILE})({_PARTIAL})?|{_FOLDER}(\.manifest\.json({_PARTIAL})?|{_PARTIAL}/.+|/(?P<inside>.+))", re.DOTALL
)
# Below work/: progress of trainings and imported base models by key, and what the control run reads.
_PROGRESS = re.compile(
    r"train/[0-9a-f]{16}/(lock|holder\.json(\.partial\.\d+)?"
    r"|checkpoint-\d+/.+|result(\.partial\.\d+)?/.+)"
    r"|base/[0-9a-f]{16}/(lock|holder\.json(\.partial\.\d+)?"
    r"|(model|tokenizer)\.manifest\.json(\.partial\.\d+)?|(model|tokenizer|package)(\.partial\.\d+)?/[^/]+)"
    r"|control/.+/(rows\.jsonl|config\.yaml)(\.partial\.\d+)?",
    re.DOTALL,
)


class Contents(NamedTuple):
    """Files and links below a folder. made: by a run. others: somebody's own. Names are relative to the folder."""

    made: list[str]
    others: list[str]


def is_results_folder(folder: Path) -> bool:
    """Return whether a run of slmflow wrote to a folder: its lineage, a manifest of the base model, or a rule's log."""
    lineage = folder / LINEAGE
    if _is_file(lineage):
        with open(lineage, "rb") as file:
            if file.read(10) == b'{"jobs": [':
                return True
    if _manifest_files(folder / "tokenizer") or _manifest_files(folder / "base"):
        return True
    rules = (path.stem for path in _SCRIPTS.glob("*.py"))
    return any(_is_file(log) for rule in rules for log in (folder / "logs" / rule).rglob("*.txt"))


def sort_results_contents(folder: Path) -> Contents:
    """Sort the contents of a results folder."""
    found: dict[str, set[str] | None] = {}  # what the manifest of a folder names; None without one

    def is_made(name: str) -> bool:
        match = _RESULT.fullmatch(name)
        if match is None or match["inside"] is None:
            return match is not None
        artifact = match["folder"]
        if artifact not in found:
            found[artifact] = _manifest_files(folder / artifact)
        # One without a manifest was being made when its job was killed.
        named = found[artifact]
        return named is None or match["inside"] in named or match["inside"] in (RUN_CARD, STAMP)

    return _sort_contents(folder, is_made)


def sort_work_contents(folder: Path, work: Path) -> Contents:
    """Sort the contents of `work`, or of a folder below it."""
    below = folder.relative_to(work).as_posix()
    return _sort_contents(
        folder, lambda name: _PROGRESS.fullmatch(name if below == "." else f"{below}/{name}") is not None
    )


def _sort_contents(folder: Path, is_made: Callable[[str], bool]) -> Contents:
    contents = Contents([], [])
    for name, is_regular in _walk(folder):
        (contents.made if is_regular and is_made(name) else contents.others).append(name)
    return contents


def _walk(folder: Path) -> Iterator[tuple[str, bool]]:
    """Name of everything below `folder` that is no folder, and whether it is a regular file."""
    for place, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]
        for name in sorted([*files, *links]):
            path = os.path.join(place, name)
            yield os.path.relpath(path, folder), stat.S_ISREG(os.lstat(path).st_mode)


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _manifest_files(folder: Path) -> set[str] | None:
    """Return the files that the manifest of a folder names, none if it is of another form; None without a manifest."""
    path = folder.with_name(f"{folder.name}.manifest.json")
    if not _is_file(path):
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        return set(manifest["files"]) if isinstance(manifest["settings"], dict) else set()
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return set()
