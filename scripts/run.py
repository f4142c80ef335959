"""Run the workflow as `make run` does: one run at a time, the outcome as the last lines.

Arguments go to Snakemake as they are. A run that was killed left a lock behind: it is removed, since
this program's own lock tells that no other run is alive. When a rule fails, the error line of its
script is repeated last.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from lib.core.cli import UserError, error_line, fail
from lib.core.failures import describe_failure, find_failure
from lib.core.locks import WORKSPACE_LOCK, is_still_there, open_lock, try_lock
from lib.core.yaml_files import check_yaml_text, read_text

_MOMENT = 3.0  # seconds in which Snakemake says that it was interrupted
_TRACEBACK = ("Traceback (most recent call last)", "Exception ignored in")
_IN_TRACEBACK = (" ", "\n", "^", "~", "During handling of", "The above exception", "KeyboardInterrupt")
SNAKEMAKE = [sys.executable, "-m", "snakemake"]
# What stops Snakemake itself, and what to do; a script that meets it says so in a line of its own.
STOPPED = {
    "No space left on device": "the disk is full; free some space, then start again",
    "Permission denied": "files here may not be written; mend the permissions, then start again",
    "Directory cannot be locked": "another Snakemake runs in this folder; wait for it to end",
}


def main(arguments: list[str]) -> int:
    try:
        check_configuration(arguments)
        lock = hold_workspace()
    except UserError as error:
        print(error_line(error), file=sys.stderr)
        return 1
    options = [*_cores(arguments), *arguments]
    if any(Path(".snakemake/locks").glob("*")):  # first: behind `--` it would be a target
        subprocess.run([*SNAKEMAKE, "--unlock", *options], stderr=subprocess.DEVNULL)
    code, lines = follow([*SNAKEMAKE, *options])
    os.close(lock)
    if code not in (0, 130):  # 130: Ctrl-C
        errors = [line for line in lines if line.startswith("error: ")] or [_reason(lines)]
        print("", *dict.fromkeys(errors), sep="\n", file=sys.stderr)
    return code


def check_configuration(arguments: list[str]) -> None:
    """Raise `UserError` for a configuration that Snakemake, which reads it first, would die of or run code of."""
    option = ""
    for argument in arguments:
        if argument.startswith("-"):
            option, _, argument = argument.partition("=")
        if argument and option in ("--configfile", "--configfiles"):
            check_yaml_text(read_text(Path(argument)), argument)


def hold_workspace() -> int:
    """Lock this folder for one run until the descriptor is closed. Raises `UserError` when another run has it."""
    try:
        WORKSPACE_LOCK.parent.mkdir(exist_ok=True)
    except OSError as error:
        fail(str(error.strerror), "mend the permissions, then start again", at=WORKSPACE_LOCK.parent)
    lock = open_lock(WORKSPACE_LOCK)
    if not (try_lock(lock, WORKSPACE_LOCK) and is_still_there(WORKSPACE_LOCK, lock)):  # `make clean` removes it
        os.close(lock)
        fail("another run is going on in this folder; wait for it to end")
    return lock


def _cores(arguments: list[str]) -> list[str]:
    """All of this machine's, where no profile says how many: on a cluster they would limit what a job may ask for."""
    return [] if any(word.split("=")[0] == "--profile" for word in arguments) else ["--cores", "all"]


def _reason(lines: list[str]) -> str:
    """Why Snakemake stopped, where no script says it."""
    known = [f"error: {advice}" for text, advice in STOPPED.items() if any(text in line for line in lines)]
    failures = filter(None, (find_failure(Exception(line)) for line in reversed(lines)))
    known += [error_line(describe_failure(failure, "this machine")) for failure in failures]
    said = (line.strip() for line in reversed(lines) if line.strip() and not line.startswith('  File "'))
    last = next(said, "it said nothing")
    return next(iter(known), error_line(f"the workflow stopped: {last}; see above"))


def follow(command: list[str]) -> tuple[int, list[str]]:
    """Run `command`, show its output as it comes, and return exit code and lines."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    assert process.stdout is not None
    lines: list[str] = []
    interrupted = threading.Event()

    def on_interrupt(*_: object) -> None:  # what is cancelled, and what may be left, is told by the lines that follow
        interrupted.set()
        timer = threading.Timer(_MOMENT, _pass_on, (process, lines))
        timer.daemon = True
        timer.start()

    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # an exception would lose what is being read
        signal.signal(signal.SIGINT, on_interrupt)
    for line in without_interrupts(process.stdout, interrupted):
        print(line, end="", flush=True)
        lines.append(line.rstrip("\n"))
    code = process.wait()
    return (130 if interrupted.is_set() else code), lines


def without_interrupts(lines: Iterable[str], interrupted: threading.Event) -> Iterator[str]:
    """The lines, after a Ctrl-C without Python's tracebacks: of what starts or ends, and mixed with other lines.

    What such a traceback names besides the interrupt itself stays.
    """
    inside = False
    for line in lines:
        inside = inside or (interrupted.is_set() and line.startswith(_TRACEBACK))
        if not (inside and line.startswith((*_TRACEBACK, *_IN_TRACEBACK))):
            yield line
        inside = inside and not line.startswith("KeyboardInterrupt")


def _pass_on(process: subprocess.Popen, lines: list[str]) -> None:
    """Interrupt Snakemake, unless the terminal did so too: a second Ctrl-C would end its cancelling."""
    if process.poll() is None and not any("Terminating processes on user request" in line for line in lines):
        process.send_signal(signal.SIGINT)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
