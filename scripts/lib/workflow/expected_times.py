"""What each job of a run should take, told to the console while the run goes on."""

import logging
import time
from pathlib import Path
from typing import Any

from snakemake.logging import logger
from snakemake_interface_logger_plugins.common import LogEvent

LOGGER = "slmflow"  # the logger plugin of `make run`
_SHARE = 0.05  # of the time, at most, goes into looking


def tell_expected_times(workflow: Any) -> None:
    """Add the expected times of the jobs to Snakemake's announcements of jobs, where `make run` shows them.

    Not where files lie in a storage: each look at their sizes would ask it.
    """
    asked = LOGGER in workflow.output_settings.log_handler_settings
    if asked and workflow.storage_settings.default_storage_provider is None:
        logger.addFilter(ExpectedTimes(workflow.dag))


class ExpectedTimes(logging.Filter):
    """Lets every record pass, those that announce jobs with the attribute `work`: job -> rule and seconds."""

    def __init__(self, dag: Any) -> None:
        super().__init__()
        self._dag, self._known, self._next = dag, dict[int, list[Any]](), 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        began = time.monotonic()
        if getattr(record, "event", None) == LogEvent.JOB_STARTED and began >= self._next:
            record.work = self._look()
            ended = time.monotonic()
            self._next = ended + (ended - began) / _SHARE
        return True

    def _look(self) -> dict[int, list[Any]]:
        for job in self._dag.needrun_jobs(exclude_finished=False):
            number = self._dag.jobid(job)
            if self._known.get(number, [None, None])[1] is None:
                self._known[number] = [job.rule.name, estimate_work(job)]
        return dict(self._known)


def estimate_work(job: Any) -> float | None:
    """Return the seconds of work that a job's rule expects; None while the rows that it depends on are not there."""
    if "runtime" not in job.rule.resources:
        return 0.0
    if any(str(file).endswith(".jsonl") and not Path(file).exists() for file in job.input):
        return None
    try:
        seconds = job.rule.expand_resources(job.wildcards_dict, job.input, 0).get("runtime")
    except Exception:  # an estimate is not worth a run
        return None
    return float(seconds) if isinstance(seconds, int) else None
