"""Inputs that are no longer what their manifest says: why a library failed in the middle of a file."""

import argparse
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path


def describe_changed_input(args: argparse.Namespace) -> str | None:
    """Return what is wrong when a folder that a script was given is not what the manifest beside it says.

    Reads every file of these folders, so it is for failures only.
    """
    given = [value for value in vars(args).values() if isinstance(value, (Path, list))]
    folders = [value for values in given for value in ([values] if isinstance(values, Path) else values)]
    file = find_changed_input(folder for folder in folders if isinstance(folder, Path))
    if file is None:
        return None
    return f"{file}: it is not the file that was made; delete the folder and its manifest, then run again"


def find_changed_input(folders: Iterable[Path]) -> Path | None:
    """Return the first file of these folders whose hash is not the one in the folder's manifest."""
    for folder in folders:
        for name, sha256 in _read_stated_files(folder).items():
            if _sha256(folder / name) != sha256:
                return folder / name
    return None


def _read_stated_files(folder: Path) -> dict[str, str]:
    try:
        manifest = json.loads(folder.with_name(f"{folder.name}.manifest.json").read_bytes())
    except (OSError, ValueError):
        return {}
    files = manifest.get("files") if isinstance(manifest, dict) else None
    return files if isinstance(files, dict) else {}


def _sha256(path: Path) -> str | None:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None
