"""A Snakemake executor: a job is a command job of Azure Machine Learning (AmlCompute, Kubernetes by Arc, serverless).

Jobs share no file system with the run: sources, inputs and outputs go through Snakemake's default storage provider.
"""

import asyncio
import re
import threading
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor
from snakemake_interface_executor_plugins.jobs import JobExecutorInterface
from snakemake_interface_executor_plugins.settings import CommonSettings, ExecutorSettingsBase

from snakemake_executor_plugin_azureml.secrets import check_no_secrets
from snakemake_executor_plugin_azureml.specification import (
    JobSpecification,
    parse_inputs,
    parse_named_words,
    parse_outputs,
)

_LONGEST_PAUSE = 600  # seconds between two looks at the jobs while the service does not answer

common_settings = CommonSettings(
    non_local_exec=True,
    implies_no_shared_fs=True,
    job_deploy_sources=True,
    pass_default_storage_provider_args=True,
    pass_default_resources_args=True,
    pass_envvar_declarations_to_cmd=False,  # they go into the job's environment_variables, not into its command
    auto_deploy_default_storage_provider=False,  # jobs bring the storage plugin in the version of their environment
    init_seconds_before_status_checks=5,
)


def _setting(text: str, **more: Any) -> Any:
    return field(default=None, metadata={"help": text, **more})


# Optional[X]: Snakemake's parser of settings does not know X | None.
@dataclass
class ExecutorSettings(ExecutorSettingsBase):
    subscription_id: Optional[str] = _setting("Subscription of the workspace.", env_var=True, required=True)
    resource_group: Optional[str] = _setting("Resource group of the workspace.", env_var=True, required=True)
    workspace: Optional[str] = _setting("Name of the Azure Machine Learning workspace.", env_var=True, required=True)
    compute: Optional[str] = _setting(
        "Compute that jobs run on: an AmlCompute cluster or an attached Kubernetes (Arc) cluster. Left out: "
        "serverless, which needs an instance type. The resource azureml_compute of a rule goes first.",
        env_var=True,
    )
    instance_type: Optional[str] = _setting(
        "Instance type: of a Kubernetes compute, or the size of serverless nodes. The resource azureml_instance_type "
        "of a rule goes first.",
        env_var=True,
    )
    environment: Optional[str] = _setting(
        "Registered environment that jobs run in, as azureml:NAME:VERSION, instead of image and conda file. The "
        "resource azureml_environment of a rule goes first.",
        env_var=True,
    )
    image: Optional[str] = _setting(
        "Docker image that jobs run in, with the conda file's environment on top if there is one. The resource "
        "azureml_image of a rule goes first.",
        env_var=True,
    )
    conda_file: Optional[Path] = _setting(
        "Conda environment with all that a job needs: Snakemake, the storage plugin, the software of the rules. The "
        "resource azureml_conda_file of a rule goes first."
    )
    experiment: Optional[str] = _setting(
        "Experiment that the jobs are listed under (default: snakemake).", env_var=True
    )
    identity: Optional[str] = _setting(
        "Who jobs are toward storage: managed (the default: the identity of the compute), managed:CLIENT_ID (one of "
        "several user-assigned ones), user (the person who submits), or token (the workspace's token).",
        env_var=True,
    )
    shm_size: Optional[str] = _setting("Shared memory of a job's container, such as 8g (Azure's default: 2g).")
    tags: Optional[str] = _setting("Tags of each job, with blanks between them.", metavar="NAME=VALUE ...")
    inputs: Optional[str] = _setting(
        "Files, folders and models that each job gets. TYPE is one of uri_file, uri_folder, mlflow_model, "
        "custom_model; MODE is ro_mount or download; URI begins with azureml:. The path in the job is in "
        "AZUREML_INPUT_<NAME>. The resource azureml_inputs of a rule adds to them.",
        metavar="NAME=TYPE:MODE:URI ...",
    )
    outputs: Optional[str] = _setting(
        "Folders of a datastore that each job may write, by mount. The path in the job is in AZUREML_OUTPUT_<NAME>. "
        "The resource azureml_outputs of a rule adds to them.",
        metavar="NAME=URI ...",
    )

    def __post_init__(self) -> None:
        given = [name for name in ("environment", "image") if getattr(self, name)]
        if len(given) == 2:
            raise WorkflowError("Give --azureml-environment, or --azureml-image with --azureml-conda-file; not both.")
        kind = (self.identity or "managed").partition(":")[0]
        if kind not in ("managed", "user", "token") or (":" in (self.identity or "") and kind != "managed"):
            raise WorkflowError(
                f"--azureml-identity: {self.identity} is not managed, managed:CLIENT_ID, user or token."
            )
        parse_named_words(self.tags, "--azureml-tags")
        parse_inputs(self.inputs, "--azureml-inputs")
        parse_outputs(self.outputs, "--azureml-outputs")
        if self.conda_file is not None and not self.conda_file.is_file():
            raise WorkflowError(f"--azureml-conda-file: {self.conda_file} does not exist; check the path.")


class Executor(RemoteExecutor):
    def __post_init__(self) -> None:
        from snakemake_executor_plugin_azureml.service import Service  # takes seconds to import

        settings = self.workflow.executor_settings
        check_no_secrets(self.envvars())
        self.run_id = uuid.uuid4().hex[:8]
        self.service = Service(settings.subscription_id, settings.resource_group, settings.workspace)
        if settings.compute:
            self.service.check_compute(settings.compute)
        # By name, from before a job is submitted until its end is known: Snakemake's own list is empty during a check.
        self.unfinished: dict[str, SubmittedJobInfo] = {}
        self.unfinished_lock = threading.Lock()
        self.cancelling = False

    def run_job(self, job: JobExecutorInterface) -> None:
        name = f"{_slug(job.name)}-{self.run_id}-{uuid.uuid4().hex[:8]}"
        submitted = SubmittedJobInfo(job, external_jobid=name)
        with self.unfinished_lock:
            self.unfinished[name] = submitted
        try:
            specification = self._specification(job, name)
            if specification.compute:
                self.service.check_compute(specification.compute)
            studio = self.service.submit(specification)
        except WorkflowError as error:  # the run goes on with other jobs, or ends as after any failed job
            self._forget(name)
            self.report_job_error(submitted, msg=f"Azure Machine Learning did not take the job: {error}\n")
            return
        self.logger.info(f"Job {job.jobid} is {name} in Azure Machine Learning: {studio}")
        self.report_job_submission(submitted)

    def _specification(self, job: JobExecutorInterface, name: str) -> JobSpecification:
        return JobSpecification.of(
            name=name,
            command=self.format_job_exec(job),
            environment_variables=self.envvars(),
            settings=self.workflow.executor_settings,
            resources=_resources(job),
            description=f"Snakemake job {job.jobid}: {job.name}",
            tags={"snakemake_run": self.run_id, "snakemake_rule": job.name, "snakemake_attempt": str(job.attempt)},
        )

    async def check_active_jobs(self, active_jobs: list[SubmittedJobInfo]) -> AsyncIterator[SubmittedJobInfo]:
        silence = None
        for submitted in active_jobs:
            name = submitted.external_jobid
            async with self.status_rate_limiter:
                look = await asyncio.to_thread(self.service.look, name)
            if look.unanswered:
                silence = look
                yield submitted
            elif look.running:
                yield submitted
            elif look.completed:
                self._forget(name)
                self.report_job_success(submitted)
            elif not self.cancelling:
                self._forget(name)
                why = await asyncio.to_thread(self.service.why_failed, name)
                self.report_job_error(submitted, msg=f"Azure Machine Learning: {look.status}. {why}\n")
        self._pace(silence)

    def _pace(self, silence: Any) -> None:
        """Ask less often while the service is busy or does not answer; jobs are not affected by that."""
        usual = self.workflow.remote_execution_settings.seconds_between_status_checks
        if silence is None:
            self.next_seconds_between_status_checks = usual
            return
        longer = max(silence.retry_after or 0, 2 * max(1, self.next_seconds_between_status_checks))
        self.next_seconds_between_status_checks = min(longer, _LONGEST_PAUSE)
        self.logger.warning(
            f"Azure Machine Learning does not tell how jobs stand ({silence.unanswered}); they go on, and it is asked "
            f"again in {self.next_seconds_between_status_checks:.0f} s."
        )

    def cancel_jobs(self, active_jobs: list[SubmittedJobInfo]) -> None:
        """Cancel all that is not known to have ended, and wait until the service says that it is."""
        self.cancelling = True
        with self.unfinished_lock:
            names = list(self.unfinished)
        if not names:
            return
        self.logger.info(f"Cancelling {len(names)} jobs of Azure Machine Learning ...")
        left = self.service.cancel(names)
        if not left:
            self.logger.info("All are cancelled.")
        for name, why in left.items():
            self.logger.error(f"{name} may go on, and cost money ({why}); cancel it: az ml job cancel --name {name}")

    def _forget(self, name: str) -> None:
        with self.unfinished_lock:
            self.unfinished.pop(name, None)


def _slug(name: str) -> str:
    """Return a rule or group as part of a job's name: letters, digits, - and _, and not too long."""
    return re.sub(r"[^A-Za-z0-9-]+", "-", name).strip("-")[:60] or "job"


def _resources(job: JobExecutorInterface) -> Mapping[str, Any]:
    """Return the resources that concern a job of Azure; those of its members, where it is a group."""
    resources = dict(job.resources.items())
    for member in job.jobs if job.is_group() else []:
        for key, value in member.resources.items():
            if key in ("azureml_inputs", "azureml_outputs"):
                resources[key] = " ".join(dict.fromkeys([*str(resources.get(key, "")).split(), *str(value).split()]))
            elif key.startswith("azureml_") and resources.setdefault(key, value) != value:
                raise WorkflowError(f"the rules of group {job.name} have different resources {key}; give them one")
    return resources
