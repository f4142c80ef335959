"""What disturbs a rule's script that is run by itself, with the command that Snakemake recorded for it.

A fault is a function that starts the script in the scene, disturbs it and returns how it ended; FAULTS names them all.
When it returns, the fault is over: what it did to the machine or to inputs is undone.
"""

import errno
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from faults import scripts_in_forks as forks
from faults.finished import Job, artifacts, differences, environment, leaks, remove, restored
from faults.in_the_child import (
    drop_privileges,
    jump_clock,
    kill_at_rename,
    limit_memory,
    list_undurable,
)
from faults.scripts_in_forks import Ended
from lib.core.failures import describe_failure, find_failure

CRASHED = re.compile(
    r"error: [\w.]+: unexpected [A-Z]\w*: "
)  # how lib.core.cli tells of an exception that nobody expected
ROOM = 4096  # a page, the least that a file system gives
LIMIT_MB = (2, 300)  # of memory, for a script that needs more
KILLED = (-signal.SIGKILL,)
# Without memory native libraries end the process themselves; the workflow says in one line that a rule was ended so.
STARVED = (-signal.SIGKILL, -signal.SIGABRT, -signal.SIGSEGV, -signal.SIGBUS, -signal.SIGTRAP)


class Outcome(NamedTuple):
    """during: how the disturbed run ended. after: how the next one did. well: as promised."""

    during: str
    after: str
    well: bool


class Scene(NamedTuple):
    """What a fault works on. seconds: that the script takes undisturbed; draw: the seed's."""

    workspace: Path
    job: Job
    draw: random.Random
    seconds: float

    @property
    def words(self) -> list[str]:
        return forks.arguments_of(self.job.command)

    def start(self, prepare: Callable[[], object] | None = None, more: tuple[str, ...] = ()) -> forks.Running:
        return forks.start([*self.words, *more], self.workspace, environment(self.workspace.parent / "tmp"), prepare)

    def run(self, prepare: Callable[[], object] | None = None, more: tuple[str, ...] = ()) -> Ended:
        return forks.wait(self.start(prepare, more))

    def moment(self) -> float:
        return self.draw.uniform(0.02, 0.98) * self.seconds

    def draw_input(self) -> Path | None:
        """Return a file of one of the inputs, or None without any."""
        paths = [self.workspace / path for path in (*self.job.inputs, *self.job.given)]
        files = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
        files = [file for file in files if file.is_file() and file.stat().st_size > 1 and file.suffix != ".py"]
        return self.draw.choice(files) if files else None


class During(NamedTuple):
    """How the disturbed run ended. problems: what was not as it must be."""

    how: str
    problems: list[str]
    said: str


def run_case(job: Job, fault: str, draw: random.Random, seconds: float, place: Path) -> Outcome:
    """Restore, break, mend, run again, compare."""
    small = fault == "disk full in results"
    with restored(job, place, small) as workspace:
        scene = Scene(workspace, job, draw, seconds)
        before = artifacts(workspace)
        clear_outputs(scene)
        if job.rule == "train_adapter" and fault != PROGRESS and draw.random() < 0.7:
            shutil.rmtree(workspace / "work")
        during = ALL[fault](scene)
        clear_outputs(scene)
        again = scene.run()
        problems = [*during.problems, *judge_next(scene, before, again)]
        problems += leaks(place, during.said + again.said)
    return Outcome(during.how, "; ".join(problems) or "same bytes", not problems)


def clear_outputs(scene: Scene) -> None:
    """Do what Snakemake does before a job: old outputs go, their folders are made."""
    for output in scene.job.outputs:
        remove(scene.workspace / output)
        (scene.workspace / output).parent.mkdir(parents=True, exist_ok=True)


def judge_next(scene: Scene, before: dict[str, str], again: Ended) -> list[str]:
    """Return what is wrong after the undisturbed run that follows."""
    if again.hung:
        return ["the next run hangs"]
    if again.code:
        return [f"the next run: exit code {again.code}: {error_line(again.said)}"]
    return [problem for problem in differences(before, artifacts(scene.workspace)) if not touched(scene, problem)]


def touched(scene: Scene, problem: str) -> bool:
    """Whether a missing file is one that Snakemake itself makes, empty, when the job has ended (`touch`)."""
    name, _, what = problem.partition(" ")
    return what == "is missing" and name in scene.job.outputs and name.endswith(".done")


def error_line(said: str) -> str:
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    return lines[-1] if lines else (said.strip().splitlines() or ["nothing"])[-1][:200]


def judge(scene: Scene, ended: Ended, allowed: tuple[int, ...] = ()) -> During:
    """Hold the end of a disturbed run against the promise: all outputs, or one line that says why there are none."""
    problems, how = judge_end(ended, allowed)
    left = [path.name for path in (scene.workspace / "results").rglob("*.partial.*")]
    if left and ended.code >= 0:
        problems.append(f"{left[0]} is left")
    if ended.code == 0 and (missing := [name for name in scene.job.outputs if not (scene.workspace / name).exists()]):
        problems += [f"exit code 0 without {name}" for name in missing if not name.endswith(".done")]
    return During(how, problems, ended.said)


def judge_end(ended: Ended, allowed: tuple[int, ...] = ()) -> tuple[list[str], str]:
    """Return what is wrong with the end of a process, and how it ended."""
    errors = list(dict.fromkeys(line for line in ended.said.splitlines() if line.startswith("error: ")))
    problems = []
    if ended.hung:
        return ["hangs"], "hangs"
    if "Traceback (most recent call last)" in ended.said:
        problems.append("a traceback was shown")
    if ended.code == 1 and len(errors) != 1:
        problems.append(f"{len(errors)} lines say what is wrong: {error_line(ended.said)}")
    if any(CRASHED.match(error) for error in errors):
        problems.append("an exception was shown as it came")
    if ended.code not in (0, 1, *allowed):
        problems.append(f"exit code {ended.code}: {error_line(ended.said)}")
    return problems, (errors[-1][:200] if errors else f"exit code {ended.code}")


# The faults


def kill(scene: Scene) -> During:
    """SIGKILL at any moment."""
    return _signal(scene, signal.SIGKILL, KILLED)


def kill_between(scene: Scene) -> During:
    """SIGKILL just before, or just after, something is renamed into place."""
    number, after = scene.draw.randint(1, 3), scene.draw.random() < 0.5
    ended = scene.run(lambda: kill_at_rename(number, after))
    how = f"killed {'after' if after else 'before'} rename {number}" if ended.code < 0 else "had ended before"
    return judge(scene, ended, KILLED)._replace(how=how)


def end_time(scene: Scene) -> During:
    """The time is up: a limit of its own where the script has one (exit code 75), SIGTERM elsewhere."""
    if "--limit" in Path(scene.workspace / scene.words[0]).read_text(encoding="utf-8"):
        return judge(scene, scene.run(more=("--limit", "0")), (75,))
    return _signal(scene, signal.SIGTERM, (75, -signal.SIGTERM, 128 + signal.SIGTERM))  # the last as shells tell it


def interrupt(scene: Scene) -> During:
    """Ctrl-C."""
    return _signal(scene, signal.SIGINT, (130, -signal.SIGINT))


def _signal(scene: Scene, number: int, allowed: tuple[int, ...]) -> During:
    running = scene.start()
    time.sleep(scene.moment())
    os.kill(running.pid, number)
    return judge(scene, forks.wait(running), allowed)


def forbid(scene: Scene) -> During:
    """The folders that the rule writes to may not be written."""
    folders = sorted({(scene.workspace / path).parent for path in scene.job.outputs})
    for folder in folders:
        folder.chmod(0o555)
    try:
        return judge(scene, scene.run(drop_privileges))
    finally:
        for folder in folders:
            folder.chmod(0o755)


def fill_results(scene: Scene) -> During:
    """The disk has room for a part of the outputs only."""
    filler, free = scene.workspace / "filler", os.statvfs(scene.workspace)
    room = max(1, int(scene.draw.uniform(0, 1) * scene.job.size) // ROOM) * ROOM
    with open(filler, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize - room)
    try:
        return judge(scene, scene.run())
    finally:
        filler.unlink()


def fill_beside(scene: Scene) -> During:
    """The disks of work/ and of temporary files have room for a page or a part of what is written there."""
    (scene.workspace / "work").mkdir(exist_ok=True)
    places = [scene.workspace / "work", scene.workspace.parent / "tmp"]
    size = scene.draw.choice([ROOM, 16 * ROOM, 64 * ROOM, scene.job.size + ROOM])
    with mounted(places, size):
        return judge(scene, scene.run())


@contextmanager
def mounted(places: list[Path], size: int) -> Iterator[None]:
    for place in places:
        shutil.rmtree(place)
        place.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], check=True)
    try:
        yield
    finally:
        for place in places:
            subprocess.run(["umount", "-l", str(place)], check=True)


def starve(scene: Scene) -> During:
    """Memory is short.

    Where it does not suffice to load the libraries, these end the process with words of their own, for which `make run`
    has a line.
    """
    megabytes = LIMIT_MB[0] * (LIMIT_MB[1] / LIMIT_MB[0]) ** scene.draw.random()
    ended = scene.run(lambda: limit_memory(megabytes))
    found = find_failure(Exception(error_line(ended.said)))
    if ended.code == 1 and found and found.errno == errno.ENOMEM:
        ended = ended._replace(said=f"error: {describe_failure(found, 'this machine')}")
    return judge(scene, ended, STARVED)


def cut_input(scene: Scene) -> During:
    """An input is cut to a part of its bytes."""
    return _with_input(scene, lambda whole: whole[: int(scene.draw.random() * len(whole))])


def swap_input(scene: Scene) -> During:
    """An input has the bytes of another one of the same kind."""

    def other(whole: bytes) -> bytes:
        suffix, paths = chosen.suffix if chosen else "", sorted((scene.workspace / "results").rglob("*"))
        found = [path for path in paths if path.suffix == suffix and path.is_file()]
        return next(
            (data for path in scene.draw.sample(found, len(found)) if (data := path.read_bytes()) != whole), b""
        )

    chosen = scene.draw_input()
    return _with_input(scene, other, chosen)


def give_foreign(scene: Scene) -> During:
    """An input has bytes of something else, or is something else: a folder, a pipe, a link that leads nowhere."""
    chosen = scene.draw_input()
    strange = [
        b"",
        b"\0" * 4096,
        b"null",
        b"[]",
        b'{"files": 3}',
        b"PK\x03\x04" + bytes(60),
        b"\xff\xfe\xfd" * 99,
        b"[" * 5000,
    ]
    return _with_input(scene, lambda whole: scene.draw.choice(strange), chosen)


def _with_input(scene: Scene, change: Callable[[bytes], bytes], chosen: Path | None = None) -> During:
    chosen = chosen or scene.draw_input()
    if chosen is None:
        return During("no input", [], "")
    whole, stat = chosen.read_bytes(), chosen.stat()
    chosen.unlink()  # what is linked to it elsewhere stays whole
    chosen.write_bytes(change(whole))
    try:
        during = judge(scene, scene.run())
    finally:
        chosen.unlink()
        chosen.write_bytes(whole)
        os.utime(chosen, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    name = chosen.relative_to(scene.workspace).as_posix()
    return during._replace(how=f"{name}: {'read as it is' if during.how == 'exit code 0' else during.how}")


def move_clock(scene: Scene) -> During:
    """The clock jumps, or inputs and progress are of another century."""
    year = 365 * 86400
    jump, years = scene.draw.choice([-10 * year, -3600, 3600, 10 * year]), scene.draw.choice([0, 60 * year, 150 * year])
    for path in (scene.workspace / "work").rglob("*"):
        os.utime(path, (years, years))
    if scene.job.rule == "train_adapter":
        for folder in (scene.workspace / "work/train").glob("*"):
            (folder / "holder.json").write_text('{"host": "elsewhere", "process": 1, "job": null}')
            os.utime(folder / "holder.json", (time.time() + year, time.time() + year))
    calls = scene.draw.randint(1, 20)
    return judge(scene, scene.run(lambda: jump_clock(calls, jump)))


def change_progress(scene: Scene) -> During:
    """A file of the progress that a finished training left is changed, cut or gone: it is never published."""
    files = [path for path in sorted((scene.workspace / "work").rglob("*")) if path.is_file() and path.stat().st_size]
    chosen = scene.draw.choice(files)
    whole, how = chosen.read_bytes(), scene.draw.choice(["changed", "cut", "gone"])
    chosen.unlink()
    if how != "gone":
        chosen.write_bytes(
            whole[: len(whole) // 2] if how == "cut" else whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:]
        )
    during = judge(scene, scene.run())
    during = during._replace(how=f"{chosen.name} of work/ {how}: {during.how}")
    if during.problems or "exit code 0" not in during.how:
        return during
    adapter = next(scene.workspace / path for path in scene.job.outputs if (scene.workspace / path).is_dir())
    original = Path(scene.job.workspace) / adapter.relative_to(scene.workspace)
    weights = [path for path in sorted(original.iterdir()) if path.suffix == ".safetensors"]
    other = [path.name for path in weights if not same_bytes(path, adapter / path.name)]
    return during._replace(problems=[f"{name} of another training was published" for name in other])


def same_bytes(path: Path, other: Path) -> bool:
    return other.is_file() and path.read_bytes() == other.read_bytes()


def lose_power(scene: Scene) -> During:
    """Power is lost once all is done: what was renamed into place before its bytes were on the disk is lost."""
    note = scene.workspace.parent / "undurable"
    during = judge(scene, scene.run(lambda: list_undurable(note)))
    names = note.read_text(encoding="utf-8").splitlines() if note.exists() else []
    lost = [f"{name} would be empty after a loss of power" for name in names[:1]]
    return during._replace(problems=[*during.problems, *lost])


def take_place(scene: Scene) -> During:
    """Where the rule writes lies something else: a link that leads nowhere or out, a pipe, a folder, a file."""
    output = scene.workspace / scene.draw.choice(scene.job.outputs)
    partial = output.with_name(f"{output.name}.partial.{scene.draw.randint(1, 9)}")
    if scene.draw.random() < 0.5 and output.suffix != ".done":  # which Snakemake touches
        output = partial
    outside = scene.workspace.parent / "outside"
    outside.mkdir()
    (outside / "file").write_text("a person's own")
    what = scene.draw.choice(["dangling link", "link out", "pipe", "folder", "file"])
    makers: dict[str, Callable[[], object]] = {
        "dangling link": lambda: output.symlink_to("nowhere"),
        "link out": lambda: output.symlink_to(outside),
        "pipe": lambda: os.mkfifo(output),
        "folder": lambda: (output / "own").mkdir(parents=True),
        "file": lambda: output.write_text("own"),
    }
    makers[what]()
    during = judge(scene, scene.run())
    problems = (
        [] if (outside / "file").is_file() and len(list(outside.iterdir())) == 1 else ["what lies outside changed"]
    )
    remove(output)
    return during._replace(how=f"{what}: {during.how}", problems=[*during.problems, *problems])


FAULTS: dict[str, Callable[[Scene], During]] = {
    "script killed": kill,
    "killed at a rename": kill_between,
    "time up": end_time,
    "script interrupted": interrupt,
    "no write permission": forbid,
    "disk full in results": fill_results,
    "disk full in work and TMPDIR": fill_beside,
    "memory short": starve,
    "input cut": cut_input,
    "input swapped": swap_input,
    "input foreign": give_foreign,
    "clock jumps": move_clock,
    "power lost": lose_power,
    "output's place taken": take_place,
}
PROGRESS = "progress changed"  # of the one rule that keeps progress
ALL = FAULTS | {PROGRESS: change_progress}
NEED_ROOT = ("disk full in results", "disk full in work and TMPDIR", "no write permission")
