"""Where the minutes of a run went, from Snakemake's benchmark files and the last line of each log."""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_NOT_THERE_YET = "write_report"  # an old run of it may have left files
_TIME_LINE = re.compile(r"^time: started (\d+(?:\.\d+)?) start_up (\d+(?:\.\d+)?) work (\d+(?:\.\d+)?)$")
_MEASURED = 1.0  # seconds: of shorter jobs Snakemake samples the memory of the shell, before the script is there
ANOTHER_SESSION = 300  # seconds without a job between two jobs of one run: nobody waits that long


@dataclass(frozen=True)
class Job:
    """One job. seconds: as Snakemake measured it. peak_mb: None for jobs too short to be measured.

    started (Unix time), start_up and work (seconds) come from its log, None where that does not say.
    """

    rule: str
    seconds: float
    peak_mb: float | None
    started: float | None = None
    start_up: float | None = None
    work: float | None = None


@dataclass(frozen=True)
class RuleTime:
    """The jobs of a rule together, in seconds. own: what Snakemake and the shell took around the script.

    start_up, work and own are None when the log of one of the jobs does not say.
    """

    rule: str
    jobs: int
    seconds: float
    start_up: float | None
    work: float | None
    own: float | None
    peak_mb: float | None


@dataclass(frozen=True)
class Whole:
    """The run from the start of its first job to the end of its last, in seconds.

    busy: at least one job ran. between: none did, for less than `ANOTHER_SESSION` at a time. breaks: longer
    pauses, which lie between two sessions and are no part of the run.
    """

    busy: float
    between: float
    breaks: Sequence[float]


def read_jobs(timings: Path, logs: Path) -> list[Job]:
    """Return the jobs below the folder of timings: `<rule>/<name>.tsv` there is `<rule>/<name>.txt` in the logs.

    The timings are Snakemake's benchmark tables: columns `s` and `max_rss` ("NA" or "-" where it took no sample).
    """
    jobs = []
    for file in sorted(timings.glob("*/**/*.tsv")):
        name = file.relative_to(timings)
        if name.parts[0] == _NOT_THERE_YET:
            continue
        log = logs / name.with_name("log.txt" if file.name == "time.tsv" else f"{file.stem}.txt")
        with open(file, encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines, delimiter="\t"):
                seconds, peak = float(row["s"]), row["max_rss"]
                measured = seconds >= _MEASURED and peak not in ("NA", "-")
                jobs.append(Job(name.parts[0], seconds, float(peak) if measured else None, *_time_line(log)))
    return jobs


def sum_by_rule(jobs: Sequence[Job]) -> list[RuleTime]:
    """Sum the times of each rule, the longest first."""
    result = []
    for rule in {job.rule for job in jobs}:
        own_jobs = [job for job in jobs if job.rule == rule]
        seconds = sum(job.seconds for job in own_jobs)
        start_up, work = (sum_known([getattr(job, key) for job in own_jobs]) for key in ("start_up", "work"))
        own = None if start_up is None or work is None else max(0.0, seconds - start_up - work)
        peak = max((job.peak_mb for job in own_jobs if job.peak_mb is not None), default=None)
        result.append(RuleTime(rule, len(own_jobs), seconds, start_up, work, own, peak))
    return sorted(result, key=lambda one: (-one.seconds, one.rule))


def sum_whole_run(jobs: Sequence[Job]) -> Whole | None:
    """Sum the times of the whole run; None when the log of a job does not say when it started."""
    spans = sorted((job.started, job.started + job.seconds) for job in jobs if job.started is not None)
    if not spans or len(spans) < len(jobs):
        return None
    busy, pauses, end = 0.0, [], spans[0][0]
    for start, stop in spans:
        pauses.append(max(0.0, start - end))
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    breaks = [pause for pause in pauses if pause > ANOTHER_SESSION]
    return Whole(busy, sum(pauses) - sum(breaks), breaks)


def sum_known(values: Sequence[float | None]) -> float | None:
    """Return the sum, or None when one of the values is not known."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _time_line(log: Path) -> tuple[float, ...]:
    """Return when the job started, its start-up and its work; nothing when the log does not say."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    found = _TIME_LINE.match(lines[-1]) if lines else None
    return tuple(float(value) for value in found.groups()) if found else ()
