"""The one door for names that come out of files: an index, a manifest, a listing, an archive, a lineage.

Whoever made the file chose the name. A name that is admitted stays below the folder it belongs to, on every
operating system that slmflow runs on, and is printable on one line.
"""

import os
import stat
import unicodedata
from pathlib import Path
from typing import Any

from lib.core.cli import fail

_LONGEST_PART = 255  # bytes of a file name, on every common file system
_LONGEST_NAME = 1024


def check_name(name: Any, *, at: str | Path, line: int | None = None) -> str:
    """Return `name`, a file's name relative to its folder, if it can only lie below that folder.

    at, line: the file that states the name, for the message.
    Raises `UserError` for anything but text, for an absolute name, `.`, `..` and empty parts, backslashes, control and
    unpaired surrogate characters, and for names that no file system takes.
    """
    if (fault := find_fault(name)) is None:
        return name
    shown = name if isinstance(name, str) else repr(name)
    fail(f"names the file {shown[:80]!a}, {fault}", "take the file from where it was made", at=at, line=line)


def check_bare_name(name: Any, *, at: str | Path, line: int | None = None) -> str:
    """Return `name` if it is a file's name without a folder, as `check_name` does. Raises `UserError` otherwise."""
    check_name(name, at=at, line=line)
    if "/" in name:
        fail(f"names the file {name[:80]!a}, in a folder", "only a file beside it can be named", at=at, line=line)
    return name


def check_source_path(path: Any, *, at: str | Path, line: int | None = None) -> str:
    """Return `path`, which may lie anywhere, if it is one line of text: it is only compared, and read by who asks.

    Raises `UserError` otherwise.
    """
    if (fault := _find_text_fault(path)) is not None:
        fail(f"names the file {ascii(path)[:80]}, {fault}", "take the file from where it was made", at=at, line=line)
    return path


def find_fault(name: Any) -> str | None:
    """Return what keeps a name from being admitted, as the end of a sentence, or None."""
    if (fault := _find_text_fault(name)) is not None:
        return fault
    if "\\" in name:
        return "with a backslash"
    if name.startswith("/"):
        return "which is absolute"
    parts = name.split("/")
    if ".." in parts or "." in parts or "" in parts:
        return "which does not lie below its folder"
    if any(len(part.encode("utf-8")) > _LONGEST_PART for part in parts):
        return "which is too long"
    return None


def _find_text_fault(name: Any) -> str | None:
    if not isinstance(name, str):
        return "which is not text"
    if not name or len(name) > _LONGEST_NAME:
        return "which is empty" if not name else "which is too long"
    # Cc: control characters; Cs: unpaired surrogates; Zl, Zp: line and paragraph separators.
    # Printable names, which are nearly all, have none of these; a plan looks at a hundred thousand.
    if not name.isprintable() and any(unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp") for sign in name):
        return "with control characters"
    return None


def resolve_below(folder: Path, name: Any, *, at: str | Path, line: int | None = None) -> Path:
    """Return `folder / name`, to read or to write, for a name out of the file `at`.

    The folder itself may be a link, because a person named it; below it no part of the path may be one.
    Raises `UserError` as `check_name` does, and for a link.
    """
    path = folder
    for part in check_name(name, at=at, line=line).split("/"):
        path = path / part
        if path.is_symlink():
            fail(f"{name} is a link", "replace the link by the file itself", at=folder)
    return path


def check_plain_files(folder: Path) -> None:
    """Raise `UserError` when anything below `folder` is neither a regular file nor a folder: links, pipes, devices.

    For packaged and pulled results, where a link may lead out of the folder and a pipe hangs its reader.
    """
    for entry in _walk(folder):
        _check_entry(entry, folder)


def check_model_folder(folder: Path) -> None:
    """Check a model folder as `check_plain_files` does, but allow links within one repository of the hub's cache.

    In the hub's cache `snapshots/REVISION/FILE` is a link to `blobs/HASH` of the same repository (huggingface_hub,
    "Manage your cache"); any other link may lead to a file that was never part of the model. The folder itself may be a
    link, and hidden entries do not count: nobody reads `.git` or `.cache` of a model, where git keeps a socket.
    """
    folder = folder.resolve()
    for entry in _walk(folder, hidden=False):
        if not (entry.is_symlink() and is_link_to_hub_blob(Path(entry.path))):
            _check_entry(entry, folder)


def is_link_to_hub_blob(link: Path) -> bool:
    """Return whether a link of `REPOSITORY/snapshots/…` leads to a regular file in `REPOSITORY/blobs`."""
    parents = Path(os.path.abspath(link)).parents
    repository = next((folder.parent for folder in parents if folder.name == "snapshots"), None)
    if repository is None:
        return False
    target = link.resolve()
    return target.is_file() and target.parent == repository.resolve() / "blobs"  # no link itself


def _walk(folder: Path, *, hidden: bool = True) -> list["os.DirEntry[str]"]:
    """Return every entry below `folder`, without following links."""
    found, waiting = [], [str(folder)]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.name.startswith(".") and not hidden:
                    continue
                found.append(entry)
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
    return sorted(found, key=lambda entry: entry.path)


def _check_entry(entry: "os.DirEntry[str]", folder: Path) -> None:
    mode = entry.stat(follow_symlinks=False).st_mode
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return
    name = ascii(os.path.relpath(entry.path, folder))
    if stat.S_ISLNK(mode):
        fail(f"{name} is a link", "replace the link by the file itself", at=folder)
    fail(f"{name} is neither a file nor a folder", "remove it", at=folder)
