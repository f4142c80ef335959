"""Run the workflow as `make run` does: one run at a time, one line for each step, the outcome as the last lines.

Arguments go to Snakemake as they are. A run that was killed left a lock behind: it is removed, since
this program's own lock tells that no other run is alive. When a rule fails, the error line of its
script comes last. All that Snakemake and the scripts say is in the log that the last line names.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from lib.core.cli import UserError, fail, format_error
from lib.core.escaping import escape_controls
from lib.core.failures import describe_failure, find_failure
from lib.core.locks import WORKSPACE_LOCK, is_still_there, open_lock, try_lock
from lib.core.yaml_files import check_yaml_text, read_text
from lib.workflow.console import Console, is_routine

_MOMENT = 3.0  # seconds in which Snakemake says that it was interrupted
_TRACEBACK = ("Traceback (most recent call last)", "Exception ignored in")
_IN_TRACEBACK = (" ", "\n", "^", "~", "During handling of", "The above exception", "KeyboardInterrupt")
_PATIENCE = 10.0  # seconds that an error line is held back: of a run that ends with it, it is the last line
SNAKEMAKE = [sys.executable, str(Path(__file__).resolve().parent / "lib/workflow/snakemake_events.py")]
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
        print(format_error(error), file=sys.stderr)
        return 1
    options = [*_cores(arguments), *arguments]
    if any(Path(".snakemake/locks").glob("*")):  # first: behind `--` it would be a target
        subprocess.run([*SNAKEMAKE, "--unlock", *options], stderr=subprocess.DEVNULL)
    run = Run()
    code = follow([*SNAKEMAKE, *options], run)
    os.close(lock)
    run.end(code)
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
        fail("another run is in progress in this folder; wait for it to end")
    return lock


def _cores(arguments: list[str]) -> list[str]:
    """Return all of this machine's, where no profile says how many: on a cluster they would limit what a job may ask
    for.
    """
    return [] if any(word.split("=")[0] == "--profile" for word in arguments) else ["--cores", "all"]


def _reason(lines: list[str]) -> str:
    """Return why Snakemake stopped, where no script says it."""
    known = [f"error: {advice}" for text, advice in STOPPED.items() if any(text in line for line in lines)]
    failures = filter(None, (find_failure(Exception(line)) for line in reversed(lines)))
    known += [format_error(describe_failure(failure, "this machine")) for failure in failures]
    said = (line.strip() for line in reversed(lines) if line.strip() and not line.startswith('  File "'))
    last = next(said, "it said nothing")
    return next(iter(known), format_error(f"the workflow stopped: {last}; see above"))


class Run:
    """What a run said: shown as it comes, kept whole in a log."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._console = Console()
        self._log: IO[str] | None = None
        self._errors: list[str] = []  # not shown yet
        self._reasons: list[str] = []  # lines that may say why the run stopped

    def take_line(self, line: str) -> None:
        """Show a line that a script or Snakemake printed."""
        self._keep(line)
        self._reasons.append(line)
        if line.startswith("error: "):
            self._errors.append(self._console.show_line(line))
        else:
            self._show([self._console.show_line(line)])

    def take_event(self, event: dict[str, Any]) -> None:
        """Show what Snakemake logged."""
        lines = self._console.show_event(event)
        if self._console.is_run and self._log is None:
            self._open_log()
        said = event["text"].splitlines()
        for line in said:
            self._keep(line)
        if event["is_problem"] and not is_routine(event["text"]):
            self._reasons += [*said, *(lines[:1] if event["event"] == "job_error" else [])]
        if event["event"] == "job_error":  # its text holds the log, where jobs run elsewhere
            _print(lines)
            known = [line.strip() for line in self._errors]
            self._errors += [line for line in said if line.startswith("error: ") and line not in known]
        elif not (event["text"].startswith("RuleException:") and self._errors):  # the script has told it better
            self._show(lines)

    def show_errors(self) -> None:
        """Show the error lines that were held back."""
        _print(dict.fromkeys(self._errors))
        self._errors = []

    def end(self, code: int) -> None:
        """Show what went wrong, once more where other lines came in between, and where everything is written."""
        if code in (0, 130):  # 130: Ctrl-C
            self.show_errors()
            _print(self._console.end() if code == 0 else [])
        else:
            errors = [line for line in self.lines if line.startswith("error: ")] or [_reason(self._reasons)]
            print("", *dict.fromkeys(errors), sep="\n", file=sys.stderr, flush=True)
        if self._log:
            _print(["", f"complete log: {self._log.name}"])
            self._log.close()

    def _show(self, lines: list[str]) -> None:
        if lines:
            self.show_errors()
        if self._console.is_run:
            lines = [escape_controls(line) for line in lines]
        _print(lines)

    def _keep(self, line: str) -> None:
        self.lines.append(line)
        if self._log:
            with suppress(OSError):  # a full disk ends the run by itself
                print(line, file=self._log, flush=True)

    def _open_log(self) -> None:
        path = Path(".snakemake/log", f"{datetime.now():%Y-%m-%dT%H%M%S.%f}.run.log")
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._log = open(path, "w", encoding="utf-8", errors="replace")  # noqa: SIM115 (`end` closes it)
            print(*self.lines, sep="\n", file=self._log, flush=True)


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        print(line, flush=True)


def follow(command: list[str], run: Run) -> int:
    """Run `command`, hand its output and its events over as they come, and return the exit code."""
    reading, writing = os.pipe()
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        pass_fds=[writing],
        env={**os.environ, "SLMFLOW_EVENTS": str(writing)},
    )
    os.close(writing)
    assert process.stdout is not None
    interrupted = threading.Event()

    def on_interrupt(*_: object) -> None:  # what is cancelled, and what may be left, is told by the lines that follow
        interrupted.set()
        timer = threading.Timer(_MOMENT, _pass_on, (process, run.lines))
        timer.daemon = True
        timer.start()

    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # an exception would lose what is being read
        signal.signal(signal.SIGINT, on_interrupt)
    with open(reading, encoding="utf-8", errors="replace") as events:
        for source, line in merge(output=drop_interrupts(process.stdout, interrupted), events=events):
            if source == "events":
                run.take_event(json.loads(line))
            elif source == "output":
                run.take_line(line.rstrip("\n"))
            else:
                run.show_errors()
    code = process.wait()
    return 130 if interrupted.is_set() else code


def merge(**sources: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield the lines of all sources as they come, with the name of their source; an empty name after a silence."""
    arrived: queue.Queue[tuple[str, str | None]] = queue.Queue()

    def read(name: str, lines: Iterable[str]) -> None:
        for line in lines:
            arrived.put((name, line))
        arrived.put((name, None))

    for source in sources.items():
        threading.Thread(target=read, args=source, daemon=True).start()
    left = len(sources)
    while left:
        try:
            name, line = arrived.get(timeout=_PATIENCE)
        except queue.Empty:
            name, line = "", ""
        if line is None:
            left -= 1
        else:
            yield name, line


def drop_interrupts(lines: Iterable[str], interrupted: threading.Event) -> Iterator[str]:
    """Yield the lines, after a Ctrl-C without Python's tracebacks: of what starts or ends, and mixed with other lines.

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
