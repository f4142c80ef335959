"""Opening a file where somebody else may have put something else: a link, a pipe, a device."""

import errno
import os
import stat
from pathlib import Path


class NotRegularError(OSError):
    """What is there is no file of its own, but a link, a folder, a pipe, a socket or a device."""


def open_regular(
    path: Path, flags: int = os.O_RDONLY, *, folder: int | None = None, mode: int = 0o666, follow: bool = False
) -> int:
    """Return a descriptor of the regular file `path`; other programs that this process starts do not get it.

    A pipe is not waited for, and nothing is emptied.
    folder: descriptor of the folder that `path` lies in, so that no other can be put in its place.
    mode: of a file that is made. follow: a link may lead to the file.
    Raises `OSError`, of the class `NotRegularError` for anything but a regular file.
    """
    flags |= os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    try:
        file = os.open(path if folder is None else path.name, flags, mode, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.EISDIR, errno.ENXIO) or (error.errno == errno.ELOOP and not follow):
            raise NotRegularError(error.errno, "not a regular file", str(path)) from None
        raise
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise NotRegularError(errno.EINVAL, "not a regular file", str(path))
    return file
