"""The jobs of a run before it starts: which are done, which will run, and what they should take.

Snakemake reads configuration and rules as for a run. What the jobs should take comes from the functions with which the
rules ask a scheduler; sizes of files that are not there yet are told to them by `resources.EXPECTED`.
"""

import contextlib
import io
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from lib.core.cli import fail
from lib.workflow.steps import STEPS, TARGETS


@dataclass(frozen=True)
class PlannedJob:
    """A job of the workflow.

    command: its words; outputs: the files that it makes; timing: where Snakemake writes its time.
    is_done: it is not run again; reason: why it is run.
    seconds: of work on the machine of the estimates, None where that is not known; reserved: minutes that a profile
    reserves for it instead. mem_mb, gpus: what it asks for. environment: its conda environment.
    """

    rule: str
    wildcards: Mapping[str, str]
    command: Sequence[str]
    outputs: Sequence[str]
    log: str
    timing: str
    is_done: bool
    reason: str
    seconds: float | None
    reserved: int | None
    mem_mb: float | None
    gpus: int
    environment: str


def read_workflow(arguments: Sequence[str], use: Callable[[Any, bool], None]) -> NoReturn:
    """Let Snakemake read the workflow and call `use` once its jobs are known; then leave with Snakemake's code.

    `use` gets the workflow, and whether its jobs run on this machine. Raises `UserError` for arguments that Snakemake
    refuses.

    `snakemake --summary` does all of this and runs nothing; what it prints is replaced. arguments: of Snakemake.
    """
    from snakemake import cli
    from snakemake.workflow import Workflow

    def summarize(self: Any, detailed: bool = False) -> None:
        self._prepare_dag(forceall=self.dag_settings.forceall, ignore_incomplete=True, lock_warn_only=True)
        self._build_dag()
        use(self, executor in (None, "local"))

    arguments = ["--summary", "--quiet", "all", *arguments]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):  # it says which profile it reads, and says so again below
            executor = cli.parse_args(arguments)[1].executor
    except SystemExit:
        fail(said.getvalue().strip().splitlines()[-1].removeprefix("Error: "))
    Workflow.summary = summarize
    cli.main(arguments)
    raise AssertionError("Snakemake leaves by itself")


def list_jobs(workflow: Any) -> list[PlannedJob]:
    """Return the jobs of a workflow, in the order in which its rules stand in `STEPS`."""
    given = {rule for rule, values in workflow.resource_settings.overwrite_resources.items() if "runtime" in values}
    jobs = [job for job in workflow.dag.jobs if job.rule.name not in TARGETS]
    order = {rule: place for place, rule in enumerate(STEPS)}
    jobs.sort(key=lambda job: (order.get(job.rule.name, len(order)), sorted(job.wildcards_dict.items())))
    return [_describe_job(workflow.dag, job, job.rule.name in given) for job in jobs]


def _describe_job(dag: Any, job: Any, has_reserved_time: bool) -> PlannedJob:
    asked = _find_resources(job, 1)
    planned = None if has_reserved_time else _find_resources(job, 0).get("runtime")
    is_done = not dag.needrun(job)
    return PlannedJob(
        rule=job.rule.name,
        wildcards={name: str(value) for name, value in job.wildcards_dict.items()},
        command=shlex.split(job.shellcmd or ""),
        outputs=[str(path) for path in job.output],
        log=str(job.log[0]) if job.log else "",
        timing=str(job.benchmark or ""),
        is_done=is_done,
        reason="" if is_done else str(dag.reason(job)),
        seconds=float(planned) if isinstance(planned, int) and planned else None,
        reserved=asked["runtime"] if has_reserved_time and isinstance(asked.get("runtime"), int) else None,
        mem_mb=float(asked["mem_mb"]) if isinstance(asked.get("mem_mb"), int) else None,
        gpus=_count_gpus(asked),
        environment=str(job.rule.conda_env or "").rpartition("/")[2].removesuffix(".yaml"),
    )


def _find_resources(job: Any, attempt: int) -> Mapping[str, Any]:
    """Return what a job asks for; what cannot be known yet is a text of Snakemake's."""
    found: Mapping[str, Any] = job.rule.expand_resources(job.wildcards_dict, job.input, attempt)
    return found


def _count_gpus(asked: Mapping[str, Any]) -> int:
    from lib.hardware.resources import count_gpus

    return count_gpus(asked)
