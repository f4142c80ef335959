"""Checksums of progress: a folder is believed when it holds exactly the bytes that it was left with.

`complete.json` in the folder has size and sha256 of each other file and is written last, after the files have reached
the disk: a folder without it was cut short. It guards against disks, copies and accidents. Whoever can change a file
can change its checksum as well, so it is no signature.
"""

import os
import shutil
from pathlib import Path
from typing import Any

from lib.core.cli import UserError
from lib.core.files import hash_file, read_json, sync, write_json

COMPLETE = "complete.json"


def write_checksums(folder: Path) -> None:
    """Write the checksums of all files below a folder, which makes it whole."""
    (folder / COMPLETE).unlink(missing_ok=True)
    sync(folder)
    write_json(folder / COMPLETE, {"files": {name: _describe(folder / name) for name in _list_names(folder)}})


def is_finished(folder: Path) -> bool:
    """Return whether a folder was written to its end; its bytes are not looked at."""
    return (folder / COMPLETE).is_file()


def find_fault(folder: Path) -> str | None:
    """Return what differs from the folder as it was left, in a few words, or None when nothing does."""
    if not is_finished(folder):
        return "it was cut short"
    try:
        stated = read_json(folder / COMPLETE)["files"]
        expected = {name: (facts["size"], facts["sha256"]) for name, facts in stated.items()}
    except (UserError, TypeError, KeyError, AttributeError):
        return f"{COMPLETE} cannot be read"
    found = set(_list_names(folder))
    if missing := expected.keys() - found:
        return f"{min(missing)} is missing"
    if foreign := found - expected.keys():
        return f"{min(foreign)} does not belong to it"
    for name, (size, _) in expected.items():  # sizes of all first: they cost nothing
        if (folder / name).is_symlink() or not (folder / name).is_file():
            return f"{name} is not a regular file"
        if (folder / name).stat().st_size != size:
            return f"{name} has {(folder / name).stat().st_size} bytes, not {size}"
    changed = (name for name, (_, sha256) in expected.items() if hash_file(folder / name) != sha256)
    return next((f"{name} has other bytes than when it was written" for name in changed), None)


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _list_names(folder: Path) -> list[str]:
    """Return everything below a folder but folders and its checksums: files, links, and whatever else there is."""
    names = []
    for place, folders, files in os.walk(folder):
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        names += [(Path(place) / name).relative_to(folder).as_posix() for name in (*files, *links)]
    return sorted(name for name in names if name != COMPLETE)


def _describe(file: Path) -> dict[str, Any]:
    return {"size": file.stat().st_size, "sha256": hash_file(file)}
