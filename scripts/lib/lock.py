"""A folder of progress belongs to one process at a time, on one machine or on several that share the file system."""

import errno
import fcntl
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from lib.cli import Stopped, UserError, progress
from lib.files import read_json, write_json

_BEAT = 15.0  # seconds between two signs of life
_DEAD = 90.0  # without one for so long, a holder on another machine is gone
_POLL = 1.0
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def held(folder: Path, deadline: float | None = None) -> Iterator[None]:
    """Hold `folder`; wait while another process does, and take it over from one that died.

    Two signs tell of a holder: the kernel's lock on `lock`, exact within a machine and mostly between machines, and
    `holder.json` with machine, process and job, which a holder touches all the time: some network file systems keep
    locks within each machine, or have none.
    deadline: Unix time from which on waiting is in vain. Raises `Stopped` then.
    """
    said = False
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "lock", "a") as lock:
            free = _lock(lock) and not held_elsewhere(folder)
            if free and _is_there(folder / "lock", lock):  # `make clean-work` may have removed it in the meantime
                with _signs_of_life(folder):
                    yield
                return
        if not free and not said:
            progress(f"another process holds this adapter's progress; waiting for it: {_holder(folder)} ({folder})")
            said = True
        if deadline is not None and time.time() > deadline:
            raise Stopped("another process still holds this adapter's progress, and the time is up")
        time.sleep(0 if free else _POLL)


def _lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True


def _is_there(path: Path, file: IO[str]) -> bool:
    return path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno()))


def held_elsewhere(folder: Path) -> bool:
    """Whether a process of another machine gave a sign of life a short while ago."""
    path = folder / "holder.json"
    try:
        if _holder(folder).get("host") in (None, socket.gethostname()):
            return False
        os.utime(folder / "lock")  # now, by the clock of the file system, which may be another machine's
        return (folder / "lock").stat().st_mtime - path.stat().st_mtime < _DEAD
    except FileNotFoundError:
        return False


def _holder(folder: Path) -> dict[str, Any]:
    try:
        return read_json(folder / "holder.json")
    except UserError:  # none, or one that was cut
        return {}


@contextmanager
def _signs_of_life(folder: Path) -> Iterator[None]:
    path = folder / "holder.json"
    job = os.environ.get("SLURM_JOB_ID")
    write_json(path, {"host": socket.gethostname(), "process": os.getpid(), "job": job})

    def beat() -> None:
        with suppress(OSError):  # a server that is away for a moment
            os.utime(path)

    try:
        with meanwhile(beat, _BEAT):
            yield
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def meanwhile(action: Callable[[], object], seconds: float) -> Iterator[None]:
    """Call `action` again and again, with so many seconds between two calls."""
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(seconds):
            action()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
