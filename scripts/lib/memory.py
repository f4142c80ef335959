"""Memory of this process."""

import resource
import sys
from pathlib import Path


def peak_rss_mb() -> float:
    """Highest resident set of this process, in MB.

    Not getrusage on Linux: there a process starts with the peak of the one that forked it.
    """
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
