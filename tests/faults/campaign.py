"""Break every rule in every way, and give every parser hostile files; see that nothing half-done is ever believed.

    make test-faults                     all cases; writes tests/faults/table.md, goes on where it was cut
    make test-faults ARGS="--sample 60"  a few of each kind, drawn by the seed
    make test-faults ARGS="--only 'templates'"   only cases whose line has this text

A rule's case restores a finished tiny workspace, has a rule disturbed while it makes its outputs again, and then run
undisturbed: in the end there are the bytes of an undisturbed run, or one line that says what is wrong. A parser's case
changes a valid file and gives it to the script that reads it. To add a fault, write its function in disturbances.py
(a run of the whole workflow) or script_faults.py (a rule's script); to add a parser, its entry in parsers.py.
"""

import argparse
import fcntl
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [path for path in (str(TESTS), str(TESTS.parent / "scripts")) if path not in sys.path]
os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

from faults import disturbances, finished, parsers, script_faults  # noqa: E402
from faults import scripts_in_forks as forks  # noqa: E402
from faults.finished import Job, environment, find_jobs, prepare, restored, tree_sha256  # noqa: E402
from faults.planted import PLANTS, plant  # noqa: E402
from faults.script_faults import Outcome  # noqa: E402
from faults.table import Done, Journal, write_table  # noqa: E402
from lib.core.cli import die_with_parent  # noqa: E402
from support.workspaces import HOSTILE  # noqa: E402

SEED = 20261129
FEW = 10  # cases, for which loading every library takes longer than it spares
DRAWS = 2  # cases of each fault of a rule's script, which take a second; those of the whole workflow take ten
JOURNAL = TESTS.parent / ".faults" / "journal.jsonl"
ROOM_NEEDED = 3e9  # bytes that the workspaces and their copies need at most


class Case(NamedTuple):
    """kind: of fault, or of parser. subject: the rule that is disturbed; of a parser, the number of the change."""

    kind: str
    subject: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.kind} | {self.subject} | {self.seed}"


def plan_cases(jobs: Mapping[str, Job], seed: int) -> list[Case]:
    """Return every rule with every fault, and the changed files of every parser, with a seed of its own for each."""
    faults = [fault for fault in script_faults.FAULTS if os.geteuid() == 0 or fault not in script_faults.NEED_ROOT]
    found = [
        (fault, rule)
        for fault in (*faults * DRAWS, *[script_faults.PROGRESS] * 8, *disturbances.FAULTS)
        for rule in jobs
    ]
    found = [(fault, rule) for fault, rule in found if strikes(fault, jobs[rule])]
    kinds = [kind for kind in parsers.KINDS if set(kind.rules) <= jobs.keys()]
    found += [(kind.name, f"change {number:02}") for kind in kinds for number in range(kind.count)]
    seeds = [f"{seed} {names} {found[:number].count(names)}" for number, names in enumerate(found)]
    return [Case(*names, random.Random(own).getrandbits(32)) for names, own in zip(found, seeds, strict=True)]


def strikes(fault: str, job: Job) -> bool:
    """Whether a fault can hurt a rule: one of inputs needs inputs, one of progress the rule that keeps some."""
    if fault == script_faults.PROGRESS:
        return job.rule == "train_adapter"
    return not fault.startswith("input") or bool(job.inputs + job.given)


def choose_cases(cases: list[Case], only: str, sample: int, seed: int) -> list[Case]:
    """Return those that have the text; of a sample, about as many of each kind."""
    chosen = [case for case in cases if only in case.name]
    if not sample:
        return chosen
    draw, by_kind = random.Random(seed), {}  # type: ignore[var-annotated]
    for case in draw.sample(chosen, len(chosen)):
        by_kind.setdefault(case.kind, []).append(case)
    turns = [case for turn in zip(*map(_padded, by_kind.values()), strict=True) for case in turn if case]
    return sorted(turns[:sample])


def _padded(cases: list[Case]) -> list[Case | None]:
    return [*cases, *[None] * (1000 - len(cases))]


# Workers: forks of this process, which has loaded the libraries

_PLACE: dict[str, Any] = {}


def run_case(case: Case) -> Done:
    """Run one case in this process's own place."""
    began, jobs = time.time(), _PLACE["jobs"]
    place, draw = _PLACE["cases"] / f"case-{os.getpid()}", random.Random(case.seed)
    shutil.rmtree(place, ignore_errors=True)
    try:
        if case.kind in _parsers():
            outcome = parsers.run_case(jobs, _parsers()[case.kind], int(case.subject.split()[1]), draw, place)
        else:
            job, seconds = jobs[case.subject], _PLACE["seconds"][case.subject]
            module = script_faults if case.kind in script_faults.ALL else disturbances
            outcome = module.run_case(job, case.kind, draw, seconds, place)
    except Exception as error:  # of the campaign itself: the other cases go on
        outcome = Outcome(f"the campaign itself failed: {type(error).__name__}: {error}", "nothing", False)
    during, after = (_told(text, place) for text in (outcome.during, outcome.after))
    return Done(case.kind, case.subject, case.seed, during, after, outcome.well, round(time.time() - began, 1))


def _told(text: str, place: Path) -> str:
    """Return the text on one line, without the folders of this machine."""
    line = text.replace(f"{place}/", "").replace(str(TESTS.parent), ".").replace(HOSTILE, "…")
    return "".join(sign if sign.isprintable() else "?" for sign in line)[:300]


def _parsers() -> dict[str, parsers.Kind]:
    return {kind.name: kind for kind in parsers.KINDS}


def measure_job(rule: str) -> tuple[str, float, str]:
    """Run a rule's script undisturbed: how long it takes, and what is wrong already."""
    job, place = _PLACE["jobs"][rule], _PLACE["cases"] / f"case-{os.getpid()}"
    shutil.rmtree(place, ignore_errors=True)
    with restored(job, place) as workspace:
        scene = script_faults.Scene(workspace, job, random.Random(0), 0)
        before = script_faults.artifacts(workspace)
        script_faults.clear_outputs(scene)
        if rule == "train_adapter":
            shutil.rmtree(workspace / "work")
        ended = scene.run()
        return rule, ended.seconds, "; ".join(script_faults.judge_next(scene, before, ended))


def run_cases(cases: list[Case], workers: int, deadline: float) -> Iterator[Done]:
    """Run them on several forks of this process, in a random order: what is there when it is cut has some of each kind."""
    waiting = iter(random.Random(len(cases)).sample(cases, len(cases)))
    pool = start_workers(workers)
    try:
        running = {pool.submit(run_case, case) for case in islice(waiting, 2 * workers)}
        while running:
            ended, running = wait(running, return_when=FIRST_COMPLETED)
            if time.time() < deadline:
                running |= {pool.submit(run_case, case) for case in islice(waiting, len(ended))}
            yield from (found.result() for found in ended)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def start_workers(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=get_context("fork"), initializer=_begin)


def _begin() -> None:
    die_with_parent()
    os.environ.update(environment())


def prepare_place(place: Path, finished: Path | None) -> None:
    """Clear what a killed campaign left and make the workspaces."""
    began = time.time()
    place.mkdir(parents=True, exist_ok=True)
    hold_place(place)
    for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines():
        mounted = line.split()[1].encode().decode("unicode_escape").encode("latin-1").decode()
        if mounted.startswith(f"{place}/"):
            subprocess.run(["umount", "-l", mounted], check=True)
    for left in place.glob("case-*"):
        shutil.rmtree(left, ignore_errors=True)
    jobs = find_jobs([finished]) if finished else prepare(place / "finished")
    _PLACE.update(cases=place, jobs=jobs)
    print(f"{len(jobs)} rules are ready after {time.time() - began:.0f} seconds", flush=True)


def hold_place(place: Path) -> None:
    """Keep the place for this process as long as it lives."""
    lock = open(place / "lock", "w")  # noqa: SIM115 (open until the end)
    _PLACE["lock"] = lock
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f"error: {place}: another campaign runs there; wait for it, or name another --place")


def measure_jobs(cases: list[Case], workers: int) -> None:
    """Run the rules that are disturbed undisturbed, for the time that each takes."""
    rules = sorted({case.subject for case in cases} & _PLACE["jobs"].keys())
    with start_workers(workers) as pool:
        measured = list(pool.map(measure_job, rules))
    _PLACE["seconds"] = {rule: seconds for rule, seconds, _ in measured}
    if wrong := [f"{rule}: {what}" for rule, _, what in measured if what]:
        sys.exit("error: undisturbed, these make other bytes:\n" + "\n".join(wrong))


def choose_place(given: Path | None) -> Path:
    """Return a folder in memory where that has room, since every case copies a workspace."""
    memory = Path("/dev/shm")
    if (
        given is None
        and memory.is_dir()
        and os.access(memory, os.W_OK)
        and shutil.disk_usage(memory).free > ROOM_NEEDED
    ):
        given = memory
    return (given or Path(tempfile.gettempdir())) / f"slmflow-faults-{os.getuid()}"


def main(args: argparse.Namespace) -> int:
    began, tree, place = time.time(), tree_sha256(), choose_place(args.place)
    deadline = began + 60 * args.minutes
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    prepare_place(place, args.finished)
    if args.plant:
        finished.after_restoring.append(partial(plant, args.plant))
    every = plan_cases(_PLACE["jobs"], args.seed)
    chosen = choose_cases(every, args.only, args.sample, args.seed)
    journal = Journal(args.journal, tree, args.seed, args.go_on)
    done = {case: journal.found[case.name] for case in chosen if case.name in journal.found}
    waiting = [case for case in chosen if case not in done]
    print(f"{len(chosen)} cases, {len(done)} of them done before", flush=True)
    if len(waiting) > FEW:
        forks.load_libraries()
    measure_jobs(waiting, args.workers)
    try:
        for number, found in enumerate(run_cases(waiting, args.workers, deadline), start=1):
            journal.add(found, time.time() - began)
            began = time.time()
            done[Case(*found[:3])] = found
            print(f"{number}/{len(waiting)} {found.told()}", flush=True)
    finally:
        outcomes = [done[case] for case in chosen if case in done]
        if args.output:
            write_table(args.output, outcomes, len(chosen), journal)
    return finish(outcomes) or int(len(outcomes) < len(chosen))


def finish(outcomes: Iterable[Done]) -> int:
    """Say what is not as promised, and return the exit code."""
    bad = [found for found in outcomes if not found.well]
    for found in bad:
        print(f"NOT AS PROMISED: {found.told()}", file=sys.stderr)
    return 1 if bad else 0


def parse_arguments() -> argparse.Namespace:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--sample", type=int, default=0, help="only so many cases, about as many of each kind")
    arguments.add_argument("--seed", type=int, default=SEED)
    arguments.add_argument("--only", default="", help="only cases with this text in `kind | subject | seed`")
    arguments.add_argument("--workers", type=int, default=2, help="cases at once")
    arguments.add_argument("--minutes", type=float, default=150, help="after so many no further case is begun")
    arguments.add_argument("--output", type=Path, help="table to write")
    arguments.add_argument("--journal", type=Path, default=JOURNAL, help="ended cases, which are not run again")
    arguments.add_argument(
        "--place", type=Path, help="folder for the workspaces; default: in memory, where there is room"
    )
    arguments.add_argument("--finished", type=Path, help="a workspace that was run to its end, instead of making some")
    arguments.add_argument("--plant", choices=PLANTS, help="a fault in the code, which the cases should find")
    arguments.add_argument(
        "--go-on", action="store_true", help="keep what ended as promised before the code was changed"
    )
    return arguments.parse_args()


def exit_at_once(ended: int | str | None) -> NoReturn:
    """End this process without waiting for cases that still run; their workers end with it."""
    if isinstance(ended, str):
        print(ended, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1 if isinstance(ended, str) else ended or 0)


if __name__ == "__main__":
    try:
        exit_at_once(main(parse_arguments()))
    except SystemExit as ended:
        exit_at_once(ended.code)
    except KeyboardInterrupt:
        exit_at_once(130)
