"""What disturbs a run of the whole workflow: signals, a second run, inputs replaced by older ones, strangers in results.

A finished workspace is restored, the outputs of one rule are removed, and `scripts/run.py` makes them again while a fault
strikes. Then the fault is over and the workflow is started once more. FAULTS names them all; what strikes a script by
itself is in script_faults.py.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from faults.finished import CORES, Job, artifacts, differences, environment, leaks, remove, restored
from faults.script_faults import CRASHED, During, Outcome, error_line

AT_MOST = 300  # seconds for one run of the workflow on a tiny workspace
START = 2.0  # seconds of a script that are spent on its libraries


class Scene(NamedTuple):
    """What a fault works on. seconds: that the rule's script works."""

    workspace: Path
    job: Job
    draw: random.Random
    seconds: float

    def start(self) -> subprocess.Popen:
        """Start the workflow for the outputs of the rule, in a process group of its own."""
        command = [sys.executable, "scripts/run.py", "--cores", CORES, "--", *self.job.outputs]
        return subprocess.Popen(
            command,
            cwd=self.workspace,
            env=os.environ | environment(self.workspace.parent / "tmp"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )

    def run(self) -> tuple[int, str]:
        process = self.start()
        said = output_of(process)
        return process.returncode, said

    def wait_for_script(self, process: subprocess.Popen) -> bool:
        """Wait until the rule's script is there, and then for a moment of its time."""
        while process.poll() is None:
            if any(f"scripts/{self.job.rule}.py" in " ".join(_command(pid)[:3]) for pid in _descendants(process.pid)):
                time.sleep(self.draw.random() * (START + self.seconds))
                return True
            time.sleep(0.02)
        return False


def run_case(job: Job, fault: str, draw: random.Random, seconds: float, place: Path) -> Outcome:
    """Restore, break, mend, run again, compare."""
    with restored(job, place) as workspace:
        before = artifacts(workspace)
        scene = Scene(workspace, job, draw, seconds)
        if fault not in KEEP_OUTPUTS:
            for output in job.outputs:
                remove(workspace / output)
            if job.rule == "train_adapter":
                shutil.rmtree(workspace / "work")
        during = FAULTS[fault](scene)
        code, said = scene.run()
        problems = list(during.problems)
        problems += [f"the next run: exit code {code}: {error_line(said)}"] if code else []
        problems += differences(before, artifacts(workspace)) + leaks(place, during.said + said)
        if "Traceback (most recent call last)" in during.said + said:
            problems.append("a traceback was shown")
    return Outcome(during.how, "; ".join(problems) or "same bytes", not problems)


def output_of(process: subprocess.Popen) -> str:
    try:
        return process.communicate(timeout=AT_MOST)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return f"{process.communicate()[0]}\nerror: it hangs"


def kill_all(scene: Scene) -> During:
    """SIGKILL for the workflow and everything it started, as when a machine goes down."""
    return _signal(scene, signal.SIGKILL)


def interrupt(scene: Scene) -> During:
    """Ctrl-C: a signal to the whole group."""
    return _signal(scene, signal.SIGINT)


def kill_script(scene: Scene) -> During:
    """SIGKILL for the script alone, as by the kernel when memory is short: the workflow says so and fails."""
    process = scene.start()
    scene.wait_for_script(process)
    name = f"scripts/{scene.job.rule}.py"
    for pid in _descendants(process.pid):
        if name in " ".join(_command(pid)[:3]):
            os.kill(pid, signal.SIGKILL)
    said = output_of(process)
    return _judge(process.returncode, said)


def _signal(scene: Scene, number: int) -> During:
    process = scene.start()
    scene.wait_for_script(process)
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return During("had ended before", [], output_of(process))
    said = output_of(process)
    how = "killed" if process.returncode == -signal.SIGKILL else f"exit code {process.returncode}"
    return During(how, [] if process.returncode in (0, 130, -signal.SIGKILL) else [f"{how}: {error_line(said)}"], said)


def _judge(code: int, said: str) -> During:
    """A run that could not do its work: exit code 1 and one line that says what and why."""
    errors = sorted({line for line in said.splitlines() if line.startswith("error: ")})
    how = "; ".join(errors)[:200] or f"exit code {code}"
    well = code == 0 or (code == 1 and len(errors) == 1 and not CRASHED.match(how))
    return During(how, [] if well else [f"exit code {code} with {len(errors)} lines: {error_line(said)}"], said)


def run_twice(scene: Scene) -> During:
    """A second run beside the first is refused in one line, and the first goes on."""
    first = scene.start()
    scene.wait_for_script(first)
    over = first.poll() is not None
    code, said = scene.run()
    refused = code == 1 and error_line(said).startswith("error: another run")
    whole = output_of(first)
    problems = [] if refused or over or first.returncode == 0 == code else [f"the second: {error_line(said)}"]
    problems += [f"the first: {error_line(whole)}"] if first.returncode else []
    return During("the second was refused" if refused else "the first had ended", problems, said + whole)


def replace_by_older(scene: Scene) -> During:
    """An input is replaced by other bytes of an older time (`mv`, `cp -p`, `tar x`): they are never built upon.

    What a job made is made again. What a person gave is read: the outputs follow it, and again when it comes back.
    """
    chosen = _draw_file(scene)
    if chosen is None:
        return During("no input", [], "")
    whole, stat = chosen.read_bytes(), chosen.stat()
    outputs = [path for name in scene.job.outputs for path in _files(scene.workspace / name)]
    before = {path: path.read_bytes() for path in outputs}
    _replace(chosen, _other_bytes(chosen, whole, scene.draw), stat.st_mtime - 86400)
    code, said = scene.run()
    name, given = chosen.relative_to(scene.workspace).as_posix(), not chosen.is_relative_to(scene.workspace / "results")
    during = _judge(code, said)
    if code == 0 and given and all(path.is_file() and path.read_bytes() == data for path, data in before.items()):
        during = during._replace(problems=[*during.problems, f"{name} was not read"])
    if given:
        _replace(chosen, whole, stat.st_mtime)
    made = "was read" if given else "was made again"
    return during._replace(how=f"{name} {made}" if code == 0 else f"{name}: {during.how}")


def _draw_file(scene: Scene) -> Path | None:
    """Return a file of an input; rows, weights and manifests more often than their number."""
    paths = [scene.workspace / path for path in scene.job.given or scene.job.inputs if not path.endswith(".j2")]
    groups = [files for path in paths if (files := [file for file in _files(path) if file.stat().st_size > 64])]
    return scene.draw.choice(scene.draw.choice(groups)) if groups else None


def _files(path: Path) -> list[Path]:
    found = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [file for file in found if file.is_file() and file.name != ".snakemake_timestamp"]


def _other_bytes(path: Path, whole: bytes, draw: random.Random) -> bytes:
    """Return bytes that are as long, and of the same kind where that takes one digit or the last byte of a number."""
    if path.suffix == ".safetensors":
        return whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:]
    digits = [place for place, byte in enumerate(whole) if 0x31 <= byte <= 0x38]
    place = draw.choice(digits or range(len(whole)))
    return whole[:place] + bytes([whole[place] ^ 1 if not digits else whole[place] + 1]) + whole[place + 1 :]


def _replace(path: Path, data: bytes, changed: float) -> None:
    beside = path.parent.parent / "brought"
    beside.write_bytes(data)
    os.utime(beside, (changed, changed))
    folder = path.parent.stat()
    os.replace(beside, path)
    os.utime(path.parent, (folder.st_atime, folder.st_mtime))


def leave_strangers(scene: Scene) -> During:
    """In results and beside them lie things that no job made: a pipe, links that lead nowhere and around, odd names."""
    places = [
        scene.workspace / "results",
        scene.workspace / "results/data",
        (scene.workspace / scene.job.outputs[0]).parent,
    ]
    made = []
    for number, place in enumerate(places):
        place.mkdir(parents=True, exist_ok=True)
        path = place / f"stranger {number} $(touch OWNED)\n{{x}}"
        what = scene.draw.choice(["pipe", "nowhere", "around", "not UTF-8"])
        if what == "pipe":
            os.mkfifo(path)
        elif what == "not UTF-8":
            path = Path(os.fsdecode(os.fsencode(place) + b"/stranger \xff"))
            path.write_text("own")
        else:
            path.symlink_to("nowhere" if what == "nowhere" else scene.workspace)
        made.append(path)
    code, said = scene.run()
    for path in made:
        path.unlink(missing_ok=True)
    return _judge(code, said)


FAULTS: dict[str, Callable[[Scene], During]] = {
    "workflow killed": kill_all,
    "workflow: script killed": kill_script,
    "workflow interrupted": interrupt,
    "two runs at once": run_twice,
    "input replaced by older": replace_by_older,
    "strangers in results": leave_strangers,
}
KEEP_OUTPUTS = ("input replaced by older",)


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
