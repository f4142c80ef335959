"""A folder of progress belongs to one process at a time, on one machine or on several that share the file system."""

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from lib.core.cli import Stopped, fail, report_progress
from lib.core.files import write_json
from lib.core.locks import is_still_there, open_lock, try_lock
from lib.core.regular_files import open_regular

_BEAT = 15.0  # seconds between two signs of life
_DEAD = 90.0  # seconds without one after which a holder on another machine is gone
_POLL = 1.0
_LONGEST = 4096  # bytes of a holder's file


@contextmanager
def hold_progress(folder: Path, deadline: float | None = None) -> Iterator[None]:
    """Hold `folder`; wait while another process does, and take it over from one that died.

    Two signs tell of a holder: the kernel's lock on `lock`, exact within a machine and mostly between machines, and
    `holder.json` with machine, process and job, which a holder touches all the time: some network file systems keep
    locks within each machine, or have none.
    deadline: time of the monotonic clock from which on waiting is in vain. Raises `Stopped` then.
    """
    said = False
    others = _Watch()
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open_lock(folder / "lock")
        try:
            free = try_lock(lock, folder / "lock", needs_locks=False) and not others.sees_life(folder)
            if free and is_still_there(folder / "lock", lock):  # `make clean-work` may have removed it in the meantime
                with _signs_of_life(folder):
                    yield
                return
        finally:
            os.close(lock)
        if not free and not said:
            holder = _read_holder(folder) or "unknown"
            report_progress(f"another process holds {folder}; waiting for it: {holder}")
            said = True
        if deadline is not None and time.monotonic() > deadline:
            raise Stopped(f"another process still holds {folder}, and the time is up")
        time.sleep(0 if free else _POLL)


class _Beat(NamedTuple):
    """A sign of life of a holder. touched: time of its file in nanoseconds, by whatever clock."""

    host: str
    process: int | None
    job: str | None
    touched: int

    def __str__(self) -> str:
        job = f", job {self.job}" if self.job else ""
        return f"process {self.process} on {self.host}{job}"


class _Watch:
    """Tells which holders on other machines live: those that give signs of life while this process watches.

    Clocks of machines and file servers differ and jump, so that a sign is not old or new by its time: it is another
    one than before, or the same, and how long it is the same is told by this process's monotonic clock.
    """

    def __init__(self) -> None:
        self._last: dict[Path, tuple[_Beat, float]] = {}  # each with when it was first seen

    def sees_life(self, folder: Path) -> bool:
        """Return whether a process of another machine holds `folder`, as far as is known by now."""
        beat = _read_holder(folder)
        if beat is None or beat.host == socket.gethostname():
            return False
        now = time.monotonic()
        last, since = self._last.get(folder, (None, now))
        if beat != last:
            self._last[folder] = (beat, now)
            return True
        # One that is old by the file system's own clock, too, need not be watched for so long.
        return now - since < (2 * _BEAT if _age(folder, beat) > _DEAD else _DEAD)


def find_living(folders: Iterable[Path]) -> set[Path]:
    """Return the folders that processes of other machines hold, after a look at all together that may take `_DEAD`."""
    watch, left, seen = _Watch(), set(folders), set[Path]()
    first = {folder: _read_holder(folder) for folder in left}
    while left := {folder for folder in left if watch.sees_life(folder)}:
        changed = {folder for folder in left if _read_holder(folder) != first[folder]}
        seen |= changed
        left -= changed
        time.sleep(_POLL if left else 0)
    return seen


def _age(folder: Path, beat: _Beat) -> float:
    """Return the seconds since a sign of life by the clock of the file system, which may be another machine's."""
    try:
        os.utime(folder / "lock")
        return ((folder / "lock").stat().st_mtime_ns - beat.touched) / 1e9
    except OSError:
        return 0.0


def _read_holder(folder: Path) -> _Beat | None:
    """Return the newest sign of life of a holder; None where there is none, or what no holder writes."""
    try:
        # Opened, and not only asked for its times, which network file systems remember for a while.
        file = open_regular(folder / "holder.json")
    except OSError:
        return None
    try:
        found = os.fstat(file)
        said = json.loads(os.read(file, _LONGEST))
    except (OSError, ValueError, RecursionError):
        return None
    finally:
        os.close(file)
    if not isinstance(said, dict) or not isinstance(said.get("host"), str):
        return None
    process, job = said.get("process"), said.get("job")
    return _Beat(
        ascii(said["host"])[1:-1],
        process if isinstance(process, int) else None,
        ascii(job)[1:-1] if isinstance(job, str) else None,
        found.st_mtime_ns,
    )


@contextmanager
def _signs_of_life(folder: Path) -> Iterator[None]:
    path = folder / "holder.json"
    if path.is_dir() and not path.is_symlink():  # nothing can be renamed to its place
        fail("is not a file of its own", "remove it", at=path)
    job = os.environ.get("SLURM_JOB_ID")
    write_json(path, {"host": socket.gethostname(), "process": os.getpid(), "job": job})

    def beat() -> None:
        with suppress(OSError):  # a server that is away for a moment
            os.utime(path)

    try:
        with repeat_meanwhile(beat, _BEAT):
            yield
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def repeat_meanwhile(action: Callable[[], object], seconds: float) -> Iterator[None]:
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
