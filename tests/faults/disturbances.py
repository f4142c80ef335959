"""What disturbs a rule: signals, a full disk, missing permission, cut inputs, a second run; and how that run ended."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from workspaces import Workspace

from lib.lineage import Job

AT_MOST = 600  # seconds for one run of a rule on a tiny workspace


class Case(NamedTuple):
    """moment: of the rule's own time, from 0 to 1, or of the bytes that it writes or reads."""

    workspace: str
    rule: str
    output: str
    fault: str
    moment: float


class Disturbed(NamedTuple):
    """What a fault works on: the restored workspace and the job whose outputs are made again.

    seconds: that the job takes; size: bytes that it writes.
    """

    workspace: Workspace
    job: Job
    case: Case
    seconds: float
    size: int

    def start(self, *wrapped: str) -> subprocess.Popen:
        """Start the workflow for the removed outputs, in a process group of its own."""
        command = [*wrapped, sys.executable, "scripts/run.py", "--", *sorted(self.job["outputs"])]
        return subprocess.Popen(
            command,
            cwd=self.workspace.root,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )

    def script(self, process: subprocess.Popen) -> int | None:
        """Process id of the rule's script, once it is there; None when the workflow ends before."""
        name = f"scripts/{self.case.rule}.py"
        while process.poll() is None:
            for pid in _descendants(process.pid):
                words = _command(pid)
                if len(words) > 1 and words[1].endswith(name) and "python" in words[0]:
                    return pid
            time.sleep(0.01)
        return None


class During(NamedTuple):
    """How the disturbed run ended. well: as it must. said: what it printed."""

    how: str
    well: bool
    said: str = ""


def error_line(said: str) -> str:
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    return lines[-1] if lines else (said.strip().splitlines() or ["nothing"])[-1][:200]


def killed_with_all(disturbed: Disturbed) -> During:
    """SIGKILL for the workflow and everything it started, as when a machine goes down."""
    return _signalled(disturbed, signal.SIGKILL)


def killed_alone(disturbed: Disturbed) -> During:
    """SIGKILL for the script, as by the kernel when memory is short: the workflow must say so and fail."""
    process = disturbed.start()
    pid = disturbed.script(process)
    if pid is None:
        return _ended(process)
    time.sleep(disturbed.case.moment * disturbed.seconds)
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        said, _ = process.communicate(timeout=AT_MOST)
        return During("had ended before", process.returncode == 0, said)
    said, _ = process.communicate(timeout=AT_MOST)
    if process.returncode == 0:  # a process that has ended takes signals until its parent looks after it
        return During("had ended before", True, said)
    return During(f"exit code {process.returncode}", True, said)


def interrupted(disturbed: Disturbed) -> During:
    """Ctrl-C: a signal to the whole group."""
    return _signalled(disturbed, signal.SIGINT)


def _signalled(disturbed: Disturbed, number: int) -> During:
    process = disturbed.start()
    if disturbed.script(process) is None:
        return _ended(process)
    time.sleep(disturbed.case.moment * disturbed.seconds)
    try:
        os.killpg(process.pid, number)
        how = "exit code {}"
    except ProcessLookupError:
        how = "had ended before"
    said, _ = process.communicate(timeout=AT_MOST)
    killed = process.returncode == -signal.SIGKILL
    return During("killed" if killed else how.format(process.returncode), True, said)


def no_permission(disturbed: Disturbed) -> During:
    """The folders that the rule writes to may not be written; root has no privilege to do so all the same."""
    folders = sorted({(disturbed.workspace.root / path).parent for path in disturbed.job["outputs"]})
    for folder in folders:
        folder.chmod(0o555)
    try:
        process = disturbed.start(*_without_privileges())
        said, _ = process.communicate(timeout=AT_MOST)
    finally:
        for folder in filter(Path.is_dir, folders):  # Snakemake removes empty ones
            folder.chmod(0o755)
    return _refused(process.returncode, said)


def disk_full(disturbed: Disturbed) -> During:
    """The rule's outputs go to a disk that has room for a part of them only."""
    case, root = disturbed.case, disturbed.workspace.root
    room = max(1, int(case.moment * disturbed.size) // 4096) * 4096
    filler = root / "filler"
    with small_disk(root, room, filler):
        process = disturbed.start()
        said, _ = process.communicate(timeout=AT_MOST)
        filler.unlink()
        during = _refused(process.returncode, said)
        if process.returncode == 0:
            during = During("there was room", True, said)
        again = disturbed.start()
        said, _ = again.communicate(timeout=AT_MOST)
    well = during.well and again.returncode == 0
    return During(during.how if well else f"{during.how}; then {error_line(said)}", well, during.said + said)


def input_cut(disturbed: Disturbed) -> During:
    """One of the rule's inputs is cut to a part of its bytes."""
    root, draw = disturbed.workspace.root, random.Random(str(disturbed.case))
    inputs = [root / path for path in disturbed.job["record"]["input"] if path.startswith("results/")]
    files = [file for path in inputs for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    files = [file for file in files if file.is_file() and file.stat().st_size > 1]
    if not files:
        return During("no input to cut", True)
    chosen = draw.choice(files)
    whole = chosen.read_bytes()
    chosen.unlink()  # what is linked to it elsewhere stays whole
    chosen.write_bytes(whole[: max(1, int(disturbed.case.moment * len(whole)))])
    process = disturbed.start()
    said, _ = process.communicate(timeout=AT_MOST)
    name = chosen.relative_to(root).as_posix()
    if process.returncode:
        return _refused(process.returncode, said)
    return During(f"{name} was made again", True, said)


def two_at_once(disturbed: Disturbed) -> During:
    """A second run beside the first is refused in one line, and the first goes on."""
    first = disturbed.start()
    disturbed.script(first)
    second = disturbed.start()
    said, _ = second.communicate(timeout=AT_MOST)
    refused = second.returncode == 1 and error_line(said).startswith("error: another run")
    whole, _ = first.communicate(timeout=AT_MOST)
    return During(
        "the second was refused" if refused else error_line(said), refused and first.returncode == 0, said + whole
    )


FAULTS: dict[str, Callable[[Disturbed], During]] = {
    "killed, all of it": killed_with_all,
    "killed, the script": killed_alone,
    "Ctrl-C": interrupted,
    "no write permission": no_permission,
    "disk full": disk_full,
    "input cut": input_cut,
    "two runs at once": two_at_once,
}


def _ended(process: subprocess.Popen) -> During:
    said, _ = process.communicate(timeout=AT_MOST)
    return During(f"ended before the fault: {error_line(said)}", False, said)


def _refused(code: int, said: str) -> During:
    """A run that could not do its work: exit code 1 and one line that says what and why."""
    errors = {line for line in said.splitlines() if line.startswith("error: ")}
    return During("; ".join(sorted(errors))[:160] or f"exit code {code}", code == 1 and len(errors) == 1, said)


def _without_privileges() -> list[str]:
    if os.geteuid() != 0:
        return []
    dropped = "-dac_override,-dac_read_search,-fowner"
    return ["setpriv", f"--inh-caps={dropped}", f"--bounding-set={dropped}"]


@contextmanager
def small_disk(root: Path, room: int, filler: Path) -> Iterator[None]:
    """The workspace on a file system of its own, with `room` bytes left beside `filler`."""
    moved = root.with_name(f"{root.name}-whole")
    root.rename(moved)
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", str(root)], check=True)
    try:
        shutil.copytree(moved, root, symlinks=True, dirs_exist_ok=True)
        free = os.statvfs(root)
        with open(filler, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize - room)
        yield
        shutil.rmtree(moved)
        shutil.copytree(root, moved, symlinks=True)
    finally:
        subprocess.run(["umount", "-l", str(root)], check=True)
        root.rmdir()
        moved.rename(root)


def _descendants(pid: int) -> Iterator[int]:
    """Processes that any thread of `pid` started, and theirs."""
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:  # it has ended
        return
    for thread in threads:
        try:
            children = [int(child) for child in (thread / "children").read_text().split()]
        except OSError:
            continue
        for child in children:
            yield child
            yield from _descendants(child)


def _command(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return []
