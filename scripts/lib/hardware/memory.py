"""Memory: what this process took, and what it may still take."""

import ctypes
import math
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

from lib.core.cli import fail

LIBRARIES_MB = 350.0
"""What interpreter, torch and transformers take at least, pages of files not counted (benchmarks/memory.md)."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # mallopt(3)


def measure_peak_rss_mb() -> float:
    """Return highest resident set of this process, in MB.

    Not getrusage on Linux: there a process starts with the peak of the one that forked it.
    """
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def require_memory(needed_mb: float, rule: str, hint: str = "stop other programs or take a larger machine") -> None:
    """Stop before the start what could not end. Raises `UserError` when less than `needed_mb` MB are free.

    needed_mb: no more than what is certainly needed, or it stops what would have worked.
    """
    free = measure_available_mb()
    if free < needed_mb:
        fail(f"needs about {needed_mb / 1000:.1f} GB of memory, {free / 1000:.1f} GB are free", hint, at=rule)


def measure_available_mb(root: Path = Path("/")) -> float:
    """Return MB that this process can still get: of the machine, and of the limits of its control groups.

    Pages of files count as free, since the kernel drops them; so does swap. Infinite where the system
    does not tell. root: the tree that holds `proc` and `sys`.
    """
    try:
        lines = (root / "proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return math.inf
    kilobytes = {name: int(value.split()[0]) for name, value in (line.split(":") for line in lines)}
    memory = min([kilobytes["MemAvailable"] * 1024, *_left_in_groups(root)])
    return (memory + kilobytes["SwapFree"] * 1024) / 1e6


def _left_in_groups(root: Path) -> Iterator[int]:
    """Yield bytes left below the limit of each control group that this process is in, of version 1 or 2.

    Inside a container the path in /proc may be that of the host; its own group is then the mount itself.
    """
    for line in (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount, names, prefix = root / "sys/fs/cgroup", ("memory.max", "memory.current"), ""
        elif "memory" in controllers.split(","):
            mount = root / "sys/fs/cgroup/memory"
            names, prefix = ("memory.limit_in_bytes", "memory.usage_in_bytes"), "total_"
        else:
            continue
        group = mount / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(mount) and (folder / names[0]).is_file():
                limit, used = ((folder / name).read_text(encoding="ascii").strip() for name in names)
                if limit != "max":
                    yield int(limit) - int(used) + _file_pages(folder / "memory.stat", prefix)


def _file_pages(stat: Path, prefix: str) -> int:
    """Return bytes of a group that hold pages of files."""
    values = dict(line.split() for line in stat.read_text(encoding="ascii").splitlines())
    return sum(int(values.get(f"{prefix}{name}", 0)) for name in ("active_file", "inactive_file"))


def return_freed_memory() -> None:
    """Let the C library give each freed block of 256 KB or more back to the system at once (glibc).

    It otherwise keeps blocks of up to 32 MB for later, in pieces: with a matrix after the other in memory,
    that is the memory of many matrices.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(_M_MMAP_THRESHOLD, 256 * 1024)


def trim_memory() -> None:
    """Give freed memory back to the system now (glibc)."""
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


def keep_freed_memory() -> None:
    """Let the C library keep freed blocks for the next ones (glibc).

    It otherwise gives large ones back, and each training step gets its activations again, page by page.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(_M_MMAP_THRESHOLD, 2**30)
        library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
