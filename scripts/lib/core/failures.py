"""Failures of the machine and not of the work: a full disk, a quota, missing permission, too many open files.

Libraries report them in forms of their own. Rust's (safetensors, tokenizers) raise an exception with the system's text,
torch says `[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0`, numpy `4096 requested and 0 written`.
So an error is looked through with all that it was raised from, by number, then by text; where neither tells, the room
on the disk does, at the time of the error.
"""

import errno
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

_FULL = 1 << 20  # bytes: with less no library writes a file that matters
_ADVICE = {
    errno.ENOSPC: "the disk is full: free some space there, then start again",
    errno.EDQUOT: "your quota there is used up: remove files or ask for more, then start again",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f), then start again",
    errno.EACCES: "mend the permissions, then start again",
    errno.EPERM: "mend the permissions, then start again",
    errno.EROFS: "nothing can be written there: mount it for writing or use another folder, then start again",
    errno.EMFILE: "raise the limit on open files (ulimit -n 4096), then start again",
    errno.ENFILE: "stop other programs: this machine has no more open files to give",
    errno.EIO: "the disk or its network fails: check it, then start again",
    errno.ESTALE: "its file server was away: start again",
    errno.ENOMEM: "use a smaller batch or a machine with more memory",
}
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_PERMISSION = (errno.EACCES, errno.EPERM)
_TEXT = {
    number: re.compile(rf"{re.escape(os.strerror(number))}|\bos error {number}\b|\berrno {number}\b", re.IGNORECASE)
    for number in _ADVICE
}
# What ends a process for which memory does not even suffice to load its libraries: Python, OpenBLAS, C++.
_NO_MEMORY = re.compile(r"^MemoryError\b|\bMemory allocation still failed\b|\bstd::bad_alloc\b")
# A write that took less than it was given; nothing says why, and it is hardly ever anything else.
_SHORT_WRITE = re.compile(r"inline_container\.cc:\d+\] \. unexpected pos|\b\d+ requested and \d+ written")
# Faults of a program, which no disk explains.
_NOT_OF_THE_DISK = (LookupError, TypeError, AttributeError, NameError, AssertionError)


def describe_failure(error: OSError, name: str, folders: Iterable[Path] = ()) -> str:
    """Return `FILE: what the system says; what to do` for an error that `find_failure` found.

    name: what to name where the error names no file. folders: those that are written to, of which a full one is named.
    """
    assert error.errno is not None
    place = find_place(error)
    if not place and error.errno in NO_ROOM:
        place = next((str(folder) for folder in folders if is_full(folder)), "")
    return f"{place or name}: {os.strerror(error.errno)}; {_ADVICE[error.errno]}"


def find_place(error: OSError) -> str:
    """Return the file that an error is about, by its name in the end; empty where none is named."""
    return re.sub(r"\.partial\.\d+", "", str(error.filename or ""))


def find_failure(error: BaseException, folders: Iterable[Path] = ()) -> OSError | None:
    """Return the failure of the machine that an error came of, or None.

    folders: those that are written to; an unclear error while one of them has no room came of that.
    """
    chain = list(_chain(error))
    for one in chain:
        if (found := _by_number(one) or _by_text(one)) is not None:
            return found
    if isinstance(chain[-1], _NOT_OF_THE_DISK):
        return None
    full = next((folder for folder in folders if is_full(folder)), None)
    return None if full is None else OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(full))


def find_failure_behind(error: BaseException, folders: Iterable[Path] = ()) -> OSError | None:
    """Return the failure of the machine for which a script blamed its input, or None.

    What is said about permissions stays: it names the file better.
    """
    cause = next((one for one in _chain(error) if one is not error), None)
    found = find_failure(cause, folders) if cause is not None else None
    return None if found is None or found.errno in _PERMISSION else found


def is_full(folder: Path) -> bool:
    """Return whether the file system of a folder, or of the nearest one above it that is there, has no room."""
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    try:
        room = os.statvfs(folder)
    except OSError:
        return False
    if room.f_flag & os.ST_RDONLY or not room.f_blocks:  # images of files, and file systems that do not count
        return False
    return room.f_bavail * room.f_frsize < _FULL or (room.f_files > 0 and room.f_favail == 0)


def find_temporary_folder() -> Path:
    """Return where temporary files go, also when nothing can be written there."""
    try:
        return Path(tempfile.gettempdir())
    except OSError:
        return Path(os.environ.get("TMPDIR") or "/tmp")


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, and what it was raised from or while handling."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)


def _by_number(error: BaseException) -> OSError | None:
    return error if isinstance(error, OSError) and error.errno in _ADVICE else None


def _by_text(error: BaseException) -> OSError | None:
    text, number = str(error)[:2000], None
    if text.startswith(f"[Errno {errno.ENOENT}] No usable temporary directory"):  # none that tempfile could write to
        place = find_temporary_folder()
        return OSError(errno.ENOSPC if is_full(place) else errno.EACCES, "", str(place))
    number = next((number for number, pattern in _TEXT.items() if pattern.search(text)), None)
    if number is None and _SHORT_WRITE.search(text):
        number = errno.ENOSPC
    if number is None and _NO_MEMORY.search(text):
        number = errno.ENOMEM
    return None if number is None else OSError(number, os.strerror(number))
