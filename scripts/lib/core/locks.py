"""Lock files in folders that somebody else may have prepared.

A link could lead to a file that is no lock, opening a pipe waits for its other end, and a file that is opened for
writing from its start is emptied: so none of these is done.
"""

import errno
import fcntl
import os
import stat
from pathlib import Path

from lib.cli import fail

WORKSPACE_LOCK = Path(".snakemake/slmflow.lock")  # of the run that goes on in this folder
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def open_lock(path: Path, *, folder: int | None = None, shared: bool = False) -> int:
    """Return a descriptor of the lock file `path`, made if need be and closed when this process becomes another.

    folder: descriptor of the folder that `path` lies in, so that no other can be put in its place.
    shared: users of every name lock it, which takes no more than reading it.
    Raises `UserError` for anything but a regular file, and when it cannot be opened.
    """
    access = os.O_RDONLY if shared else os.O_RDWR  # network file systems lock only what may be written
    flags = access | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    name = path if folder is None else path.name
    try:
        file = _open_or_make(name, flags, folder, shared)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR):
            fail("is not a file of its own", "remove it", at=path)
        fail(error.strerror or str(error), "free some space or mend the permissions, then start again", at=path)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        fail("is not a file of its own", "remove it", at=path)
    return file


def _open_or_make(name: str | Path, flags: int, folder: int | None, shared: bool) -> int:
    """The kernel forbids to open a file of another user with O_CREAT in a folder like /tmp (fs.protected_regular)."""
    try:
        return os.open(name, flags, dir_fd=folder)
    except FileNotFoundError:
        pass
    try:
        file = os.open(name, flags | os.O_CREAT | os.O_EXCL, 0o644 if shared else 0o666, dir_fd=folder)
    except FileExistsError:  # in the meantime
        return os.open(name, flags, dir_fd=folder)
    if shared:
        os.fchmod(file, 0o644)  # whatever the umask
    return file


def try_lock(file: int, path: Path, *, needs_locks: bool = True) -> bool:
    """Lock a file for this process alone; return False when another process holds it.

    needs_locks: where the file system keeps none, a `UserError` is raised; else the file counts as locked.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS and not needs_locks:
            return True
        fail(f"cannot be locked ({error.strerror})", "use a folder on a file system that keeps locks", at=path)
    return True


def is_still_there(path: Path, file: int, *, folder: int | None = None) -> bool:
    """Whether the name of a lock file still stands for the file that was opened, and not for none or a newer one."""
    try:
        now = os.stat(path if folder is None else path.name, dir_fd=folder, follow_symlinks=False)
    except OSError:
        return False
    return os.path.samestat(now, os.fstat(file))
