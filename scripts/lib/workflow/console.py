"""What a person sees of a run: one line for each step, what the scripts say, warnings and errors in full.

It gets what Snakemake logs as events (`lib.workflow.snakemake_events`) and what else is printed as lines.
"""

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lib.core.escaping import escape_controls
from lib.workflow.steps import STEPS, TARGETS, describe_step
from lib.workflow.time_left import TimeLeft, describe_time, describe_time_left

Event = Mapping[str, Any]
_SHORT = 5.0  # seconds: a step that took less is not mentioned again when it is done
_OF_A_SCRIPT = re.compile(rf"(?:{'|'.join(STEPS)}|error): |scored \d+ of |runs on ")
_SAYS_LEFT = re.compile(r"(\w+): .*\babout (\d+) min left$")
_ROUTINE = re.compile(
    r"Exiting because a job execution failed|Shutting down, this might take some time|"
    r"(?:WorkflowError:\s*)?At least one job did not complete successfully"
)
# What Snakemake says without warning, and a person wants to know.
_SHOWN = re.compile(r"Nothing to be done|(?:Creating conda environment|Downloading and installing remote packages)")


def is_routine(text: str) -> bool:
    """Return whether Snakemake says this around every failed step, whatever the reason."""
    return _ROUTINE.match(text.strip()) is not None


@dataclass
class Step:
    """A job that was started: its number, its rule, itself in words, and when it began."""

    number: int
    rule: str
    words: str
    began: float


class Console:
    """Turns events and lines into the lines that are shown."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.is_run = False  # jobs are run: no dry run, no question about the workflow
        self.is_plain = False  # Snakemake's own words are shown: of a dry run
        self.total = 0
        self.steps: dict[int, Step] = {}
        self.running: set[int] = set()
        self.told: dict[int, tuple[float, float]] = {}  # when a script said how many seconds are left
        self.time_left = TimeLeft()
        self._clock, self._began = clock, clock()
        self._before: list[str] = []  # said before it is known whether anything runs
        self._last: int | None = None  # the step whose line stands last

    def show_line(self, line: str) -> str:
        """Return a line that no logger wrote, indented under its step when a script said it."""
        if not (self.is_run and _OF_A_SCRIPT.match(line)):
            return line
        if (found := _SAYS_LEFT.match(line)) and len(jobs := self._jobs_of(found[1])) == 1:
            self.told[jobs[0]] = (self._clock(), 60.0 * int(found[2]))
        return self._indent(line)

    def show_event(self, event: Event) -> list[str]:
        """Return the lines that an event of Snakemake is shown as."""
        self.is_plain = self.is_plain or event["dry_run"]
        if self.is_plain:
            return event["text"].splitlines()
        self._learn(event)
        kind = event["event"]
        if kind == "job_info":
            return self._show_start(event)
        if kind in ("job_finished", "job_error"):
            return self._show_end(event, failed=kind == "job_error")
        if kind in ("run_info", "progress", "job_started", "shellcmd", "workflow_started"):
            return []
        return self._show_text(event)

    def end(self) -> list[str]:
        """Return what was held back, when nothing was run: an answer to a question about the workflow."""
        return [] if self.is_run else self._before

    def _learn(self, event: Event) -> None:
        if event["event"] in ("run_info", "job_started") and not self.is_run:
            self.is_run, self._began = True, self._clock()
        self.total = event["total"] or self.total
        for job, (rule, seconds) in (event.get("work") or {}).items():
            if rule not in TARGETS:
                self.time_left.work[int(job)] = seconds
                self.time_left.rules[int(job)] = rule

    def _show_start(self, event: Event) -> list[str]:
        if event["rule"] in TARGETS:
            return []
        job, again = event["job"], event["job"] in self.steps
        words = describe_step(event["rule"], event["wildcards"])
        number = self.steps[job].number if again else len(self.steps) + 1
        self.steps[job] = Step(number, event["rule"], words, self._clock())
        self.running.add(job)
        self._last = job
        return [f"{self._number(number)} {words}{', once more' if again else ''}"]

    def _show_end(self, event: Event, failed: bool) -> list[str]:
        job = event["job"]
        if job not in self.running:
            return []
        self.running.discard(job)
        self.told.pop(job, None)
        step = self.steps[job]
        seconds = self._clock() - step.began
        if failed:
            about = [*event["reason"].splitlines(), *(f"its log: {file}" for file in event["log"])]
            head = f"{self._number(step.number)} failed after {describe_time(seconds)}: {step.words}"
            return [head, *(self._indent(escape_controls(line)) for line in about)]
        self.time_left.finish(job, seconds)
        if seconds < _SHORT:
            return []
        which = "" if self._last == job and not self.running else f": {step.words}"
        left = f"; {words}" if (words := describe_time_left(self._estimate())) else ""
        return [self._indent(f"done in {describe_time(seconds)}{which}{left}")]

    def _show_text(self, event: Event) -> list[str]:
        lines: list[str] = event["text"].splitlines()
        if event["is_remote"] and not event["is_problem"]:  # numbers and addresses of jobs, cancellations
            return [self._indent(line) for line in lines]
        if event["is_problem"] or _SHOWN.match(event["text"]):
            self._before = []
            return [] if is_routine(event["text"]) else lines
        if not self.is_run:
            self._before += lines
        return []

    def _estimate(self) -> float | None:
        now = self._clock()
        running = {job: now - self.steps[job].began for job in self.running}
        told = {job: max(0.0, seconds - (now - when)) for job, (when, seconds) in self.told.items()}
        return self.time_left.estimate(running, told, now - self._began)

    def _jobs_of(self, rule: str) -> list[int]:
        return [job for job in self.running if self.steps[job].rule == rule]

    def _number(self, number: int) -> str:
        if not self.total:  # `--quiet progress` keeps it secret
            return f"[{number}]"
        return f"[{number:>{len(str(self.total))}} of {max(self.total, number)}]"

    def _indent(self, line: str) -> str:
        return " " * (len(self._number(1)) + 1) + line
