"""How long a run still takes: what its jobs should take, corrected by what the finished ones took."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

_START_UP = 15.0  # seconds in which a job starts and ends, until jobs have been seen


@dataclass
class TimeLeft:
    """The jobs of a run, and what is known of their times, in seconds.

    A job takes its start-up and its work. `work` has the work that the rules expect, which is of another machine; how
    much faster this one is follows from the finished jobs. None: not known yet, since an input is not there.
    """

    work: dict[int, float | None] = field(default_factory=dict)
    rules: dict[int, str] = field(default_factory=dict)
    taken: dict[int, float] = field(default_factory=dict)

    def finish(self, job: int, seconds: float) -> None:
        self.taken[job] = seconds

    def estimate(self, running: Mapping[int, float], told: Mapping[int, float], elapsed: float) -> float | None:
        """Return the seconds that all remaining jobs take, or None when that is not known or none remains.

        running: how long the jobs that run have been running; told: what their scripts say is left of them; elapsed:
        how long the run has been going on. As many jobs run at a time as did so far.
        """
        if not self.taken:
            return None
        left = dict[int, float]()
        for job in self.work.keys() - self.taken.keys():
            if job in told:
                left[job] = told[job]
            elif (seconds := self._estimate_job(job)) is None:
                return None
            else:
                left[job] = max(0.0, seconds - running.get(job, 0.0))
        if not left:
            return None
        at_a_time = (sum(self.taken.values()) + sum(running.values())) / max(elapsed, 1e-9)
        return sum(left.values()) / max(1.0, at_a_time)

    def _estimate_job(self, job: int) -> float | None:
        alike = [other for other in self.taken if job in self.rules and self.rules.get(other) == self.rules[job]]
        work = self.work[job]
        if alike and (work is None or not self._works(job)):
            return self._mean(alike)
        if work is None:
            return None
        start_up = self._mean([other for other in self.taken if not self._works(other)]) or _START_UP
        if not self._works(job):
            return start_up
        measured = [other for other in alike or self.taken if self._works(other)]
        expected = sum(self.work[other] or 0 for other in measured)
        if not expected:
            return None
        return start_up + work * sum(max(0.0, self.taken[other] - start_up) for other in measured) / expected

    def _works(self, job: int) -> bool:
        """Return whether the job is more than its start-up."""
        return (self.work.get(job) or 0) > _START_UP

    def _mean(self, jobs: Collection[int]) -> float:
        return sum(self.taken[job] for job in jobs) / len(jobs) if jobs else 0.0


def describe_time(seconds: float) -> str:
    """Return `45 s`, `12 min 5 s` or `3 h 20 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def describe_time_left(seconds: float | None) -> str:
    """Return `about 12 minutes left`, as exactly as such an estimate is; nothing when it is not known."""
    if seconds is None:
        return ""
    if seconds < 60:
        return "less than a minute left"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"about {minutes} minute{'s' if minutes > 1 else ''} left"
    return f"about {round(minutes / 60)} hours left"
