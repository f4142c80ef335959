"""Break every rule in every way at random moments, and see what the next run makes of it.

    make test-faults                     all cases; writes tests/faults/table.md
    python tests/faults/campaign.py --sample 10

A finished tiny workspace is restored for each case, the outputs of one rule are removed, and the workflow makes them
again while a fault strikes. Then the fault is over and the workflow is started once more. A case is well when this run
ends with the bytes of the undisturbed one, or when it stops with one clear line and does so after the cause is mended;
when no other artefact has changed and nothing half-written is left; and when no traceback was shown.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent / "scripts")]

from tiny_models import make_tiny_llama  # noqa: E402
from workspaces import Workspace, copy_project, parameters_of, tiny_config, write_rows  # noqa: E402

from lib.files import sha256_file  # noqa: E402
from lib.lineage import Job, read_lineage  # noqa: E402

SEED = 20261127
# What two undisturbed runs do not have in common: times, speed and memory, and what quotes them.
VARYING = ("training.json", "run_card.json", "report.html", "/speed/", "lineage.json")
# What has such numbers in it: when an input has to be made again, so is everything after it, and speed is measured anew.
QUOTING = ("selection.json", "summary.json", "model.manifest.json", "selected.manifest.json", "model/README.md")
QUOTING += ("scores/model.test.json", "plots/variants.csv")
AT_MOST = 600  # seconds for one run of a rule on a tiny workspace


class Case(NamedTuple):
    """moment: of the rule's own time, from 0 to 1, or of the bytes that it writes or reads."""

    workspace: str
    rule: str
    output: str
    fault: str
    moment: float


class Outcome(NamedTuple):
    """during: how the disturbed run ended. after: how the next one did. well: as promised."""

    during: str
    after: str
    well: bool


# Workspaces


def make_workspaces(root: Path) -> dict[str, Workspace]:
    """Finished ones that have every rule between them: a 4-bit base, fetched rows, a given adapter, a given merged model."""
    base = make_tiny_llama(root / "base")
    calibrated = {"algo_config": "auto_round", "calibration": {"rows": 8, "length": 32, "iterations": 1}}
    finetune = tiny_config(base)["finetune"] | {"method": "qlora", "dtype": "float32"}
    trained = _make(root / "trained", base, finetune=finetune, variants={"int4": {}, "int4-calibrated": calibrated})
    runs = trained.results / "runs"
    given = {name: str(next(runs.glob(f"*/{name}"))) for name in ("adapter", "merged")}
    return {"trained": trained, "tweets": _make_tweets(root / "tweets")} | {
        name: _make(root / name, base, finetune={name: path}, variants={"int4": {}}) for name, path in given.items()
    }


def _make_tweets(root: Path) -> Workspace:
    """The demo up to its rows, which come from a package."""
    root.mkdir()
    copy_project(root)
    workspace = Workspace(root)
    workspace.run("--", "results/data/rows.jsonl")
    return workspace


def _make(root: Path, base: Path, **sections: Any) -> Workspace:
    root.mkdir()
    copy_project(root)
    rows = json.loads((TESTS.parent / "data/tones.json").read_text())[:120]
    write_rows(root / "rows.json", rows)
    values = tiny_config(base) | sections
    values["base_model"]["parameters"] = parameters_of(base)
    (root / "config.yaml").write_text(json.dumps(values, indent=1))  # JSON is YAML
    workspace = Workspace(root)
    workspace.run()
    return workspace


def cases(workspaces: dict[str, Workspace], seed: int = SEED) -> list[Case]:
    """Every rule once with each fault, at a moment that the seed draws."""
    draw = random.Random(seed)
    rules: dict[str, tuple[str, str]] = {}
    for name, workspace in workspaces.items():
        lineage = read_lineage_of(workspace)
        for path, job in sorted(lineage.items()):
            rules.setdefault(job["rule"], (name, path))
    found = []
    for rule, (name, path) in sorted(rules.items()):
        found += [Case(name, rule, path, fault, round(draw.uniform(0.05, 0.95), 2)) for fault in FAULTS]
    return found


def read_lineage_of(workspace: Workspace) -> dict[str, Job]:
    with working_directory(workspace.root):
        return read_lineage(Path("results")).by_output


@contextmanager
def working_directory(path: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(path)
    try:
        yield
    finally:
        os.chdir(before)


# One case


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


def run_case(case: Case, workspaces: dict[str, Workspace], place: Path) -> Outcome:
    """Restore, break, mend, run again, compare."""
    original = workspaces[case.workspace]
    shutil.copytree(original.root, place, symlinks=True)
    workspace = Workspace(place)
    job = read_lineage_of(workspace)[case.output]
    before = artefacts(workspace)
    size = sum(remove(place / path) for path in job["outputs"])
    if case.rule == "train_adapter":
        shutil.rmtree(place / "work")
    disturbed = Disturbed(workspace, job, case, seconds_of(workspace, case.rule), size)
    during = FAULTS[case.fault](disturbed)
    again = disturbed.start()
    said, _ = again.communicate(timeout=AT_MOST)
    problems = problems_after(workspace, job, before, again.returncode, said)
    if "Traceback" in during.said + said:
        problems.append("a traceback was shown")
    return Outcome(during.how, "; ".join(problems) or "same bytes", during.well and not problems)


def problems_after(workspace: Workspace, job: Job, before: dict[str, str], code: int, said: str) -> list[str]:
    """What is not as it was before the fault."""
    if code:
        return [f"exit code {code}: {error_line(said)}"]
    after = artefacts(workspace)
    measured_again = any("/speed/" in path and after.get(path) != sha256 for path, sha256 in before.items())
    varying = VARYING + QUOTING if measured_again else VARYING
    found = [f"{path} is missing" for path in before.keys() - after.keys()]
    found += [f"{path} is left" for path in after.keys() - before.keys()]
    found += [
        f"{path} differs"
        for path in before.keys() & after.keys()
        if before[path] != after[path] and not any(part in path for part in varying)
    ]
    return sorted(found)


def artefacts(workspace: Workspace) -> dict[str, str]:
    """sha256 of every file of the results, by path; logs and timings tell of the run and are left out."""
    files = (path for path in sorted(workspace.results.rglob("*")) if path.is_file())
    names = {path.relative_to(workspace.root).as_posix(): path for path in files}
    beside = ("results/logs/", "results/timings/")
    return {
        name: sha256_file(path)
        for name, path in names.items()
        if not name.startswith(beside) and path.name != ".snakemake_timestamp"
    }


def remove(path: Path) -> int:
    """Remove a file or folder; returns how many bytes it had."""
    if not path.is_dir():
        size = path.stat().st_size
        path.unlink()
        return size
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    shutil.rmtree(path)
    return size


def seconds_of(workspace: Workspace, rule: str) -> float:
    """How long the rule's longest job took in the undisturbed run."""
    logs = (workspace.results / "logs" / rule).rglob("*.txt")
    times = [line.split() for log in logs for line in log.read_text().splitlines() if line.startswith("time: ")]
    return max((float(words[4]) + float(words[6]) for words in times), default=0.3)


def _descendants(pid: int) -> Iterator[int]:
    """Processes that any thread of `pid` started, and theirs."""
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(child) for child in listed.read_text().split()]
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


# Faults


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
    process = disturbed.start()
    if disturbed.script(process) is None:
        return _ended(process)
    time.sleep(disturbed.case.moment * disturbed.seconds)
    sent = _signal(process, signal.SIGKILL)
    said, _ = process.communicate()
    return During("killed" if sent else "had ended before", True, said)


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
    process = disturbed.start()
    if disturbed.script(process) is None:
        return _ended(process)
    time.sleep(disturbed.case.moment * disturbed.seconds)
    sent = _signal(process, signal.SIGINT)
    said, _ = process.communicate(timeout=AT_MOST)
    return During(f"exit code {process.returncode}" if sent else "had ended before", True, said)


def _signal(process: subprocess.Popen, number: int) -> bool:
    """Send a signal to the whole group; False when it had ended."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return False
    return True


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


# The table


def table(outcomes: list[tuple[Case, Outcome]], total: int, seconds: float) -> str:
    well = sum(outcome.well for _, outcome in outcomes)
    lines = [
        "# Faults: what happens when a rule is disturbed",
        "",
        f"Made by `make test-faults` in {seconds / 60:.0f} minutes: {len(outcomes)} of {total} cases, {well} as promised."
        " The moment is a share of the rule's own time, or of the bytes that it writes (disk full) or reads (input cut).",
        "",
        "| rule | fault | moment | the disturbed run | the next run | as promised |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for case, outcome in outcomes:
        cells = (case.rule, case.fault, f"{case.moment:.2f}", outcome.during, outcome.after)
        lines.append(
            f"| {' | '.join(cell.replace('|', '/') for cell in cells)} | {'yes' if outcome.well else '**no**'} |"
        )
    return "\n".join([*lines, ""])


def main(args: argparse.Namespace) -> int:
    began, outcomes = time.time(), []
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        root = Path(folder)
        workspaces = make_workspaces(root)
        every = cases(workspaces, args.seed)
        chosen = [case for case in every if args.only in f"{case.rule} {case.fault}"]
        if args.sample:
            chosen = sorted(random.Random(args.seed).sample(chosen, min(args.sample, len(chosen))))
        for number, case in enumerate(chosen, start=1):
            outcome = run_case(case, workspaces, root / "case")
            shutil.rmtree(root / "case")
            outcomes.append((case, outcome))
            told = f"{case.rule}, {case.fault}, {case.moment}: {outcome.during}; {outcome.after}"
            print(f"{number}/{len(chosen)} {told}: {'ok' if outcome.well else 'NOT AS PROMISED'}", flush=True)
            if args.output:  # after each, so that a campaign that is stopped leaves what it found
                args.output.write_text(table(outcomes, len(every), time.time() - began), encoding="utf-8")
    return 0 if all(outcome.well for _, outcome in outcomes) else 1


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--sample", type=int, default=0, help="only so many cases, drawn by the seed")
    arguments.add_argument("--seed", type=int, default=SEED)
    arguments.add_argument("--only", default="", help="only cases whose rule and fault have this text")
    arguments.add_argument("--output", type=Path, help="table to write")
    sys.exit(main(arguments.parse_args()))
