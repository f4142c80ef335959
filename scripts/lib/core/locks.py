"""Lock files in folders that somebody else may have prepared. What holds a folder of progress: `progress_lock`."""

import errno
import fcntl
import os
from pathlib import Path

from lib.core.cli import fail
from lib.core.regular_files import NotRegularError, open_regular

WORKSPACE_LOCK = Path(".snakemake/slmflow.lock")  # of the run that goes on in this folder
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def open_lock(path: Path, *, folder: int | None = None, shared: bool = False) -> int:
    """Return a descriptor of the lock file `path`, made if need be and closed when this process becomes another.

    folder: descriptor of the folder that `path` lies in, so that no other can be put in its place.
    shared: users of every name lock it, which takes no more than reading it.
    Raises `UserError` for anything but a regular file, and when it cannot be opened.
    """
    access = os.O_RDONLY if shared else os.O_RDWR  # network file systems lock only what may be written
    try:
        return _open_or_make(path, access, folder, shared)
    except NotRegularError:
        fail("is not a file of its own", "remove it", at=path)
    except OSError as error:
        fail(error.strerror or str(error), "free some space or mend the permissions, then start again", at=path)


def _open_or_make(path: Path, access: int, folder: int | None, shared: bool) -> int:
    """Open a lock file, or make it.

    The kernel forbids to open a file of another user with O_CREAT in a folder like /tmp (fs.protected_regular).
    """
    try:
        return open_regular(path, access, folder=folder)
    except FileNotFoundError:
        pass
    try:
        file = open_regular(path, access | os.O_CREAT | os.O_EXCL, folder=folder, mode=0o644 if shared else 0o666)
    except FileExistsError:  # in the meantime
        return open_regular(path, access, folder=folder)
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
    """Return whether the name of a lock file still stands for the opened file, and not for none or a newer one."""
    try:
        now = os.stat(path if folder is None else path.name, dir_fd=folder, follow_symlinks=False)
    except OSError:
        return False
    return os.path.samestat(now, os.fstat(file))
