"""The workspace: jobs submitted, watched and cancelled through `azure.ai.ml.MLClient`; its errors in one line each."""

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from azure.ai.ml import MLClient
from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    HttpResponseError,
    ResourceNotFoundError,
    ServiceRequestError,
    ServiceResponseError,
)
from azure.identity import CredentialUnavailableError, DefaultAzureCredential
from snakemake_interface_common.exceptions import WorkflowError

from snakemake_executor_plugin_azureml.specification import JobSpecification

T = TypeVar("T")

_RUNNING = {
    "NotStarted",
    "Starting",
    "Provisioning",
    "Preparing",
    "Queued",
    "Running",
    "Finalizing",
    "CancelRequested",
    "NotResponding",
    "Paused",
    "Unknown",
}
_BUSY = (408, 429, 500, 502, 503, 504)
_ATTEMPTS = 6  # of a submission, after the client's own; the pauses between them add up to about a minute
_FIRST_PAUSE, _LONGEST_PAUSE = 2.0, 120.0  # seconds
_CANCEL_SECONDS = 120.0  # how long an answer to a cancellation is waited for
_LAST_LINES = 60  # of the log of a failed job

# Notices of experimental classes and of uploads; what goes wrong is raised.
for _name in ("azure.ai.ml", "azure.identity", "azure.core", "msrest"):
    logging.getLogger(_name).setLevel(logging.ERROR)


@dataclass(frozen=True)
class Look:
    """How a job stands. unanswered: why the service did not say. retry_after: seconds that it asks to wait."""

    status: str = "Unknown"
    unanswered: str | None = None
    retry_after: float | None = None

    @property
    def running(self) -> bool:
        return self.status in _RUNNING

    @property
    def completed(self) -> bool:
        return self.status == "Completed"


class Service:
    """A workspace. Every method raises `WorkflowError` with one line for a person."""

    def __init__(self, subscription_id: str, resource_group: str, workspace: str) -> None:
        self.workspace = workspace
        # Few attempts of the client's own: its pauses cannot be interrupted, ours can.
        self._client = MLClient(
            DefaultAzureCredential(),
            subscription_id,
            resource_group,
            workspace,
            show_progress=False,
            enable_telemetry=False,
            retry_total=2,
        )
        self._computes: set[str] = set()

    def check_compute(self, name: str) -> None:
        """Check that workspace and compute are there, once for each."""
        if name in self._computes:
            return
        try:
            self._patiently(lambda: self._client.compute.get(name))
        except ResourceNotFoundError as error:
            raise WorkflowError(
                f"workspace {self.workspace} has no compute {name}, or there is no such workspace "
                f"({_first_line(error)}); see: az ml compute list"
            ) from None
        self._computes.add(name)

    def submit(self, specification: JobSpecification) -> str:
        """Submit the job, once, whatever gets lost on the way; returns its page in Studio."""
        job = specification.command_job()

        def once() -> Any:
            try:
                return self._client.jobs.create_or_update(job)
            except AzureError:
                # It may have arrived, and only the answer got lost.
                if (found := self._find(specification.name)) is not None:
                    return found
                raise

        try:
            return self._patiently(once).studio_url or specification.name
        except ResourceNotFoundError as error:
            raise WorkflowError(_first_line(error)) from None

    def look(self, name: str) -> Look:
        try:
            return Look(status=self._status(name))
        except ResourceNotFoundError:
            return Look(status="gone: somebody deleted it")
        except AzureError as error:
            return Look(unanswered=_first_line(error), retry_after=_retry_after(error))

    def why_failed(self, name: str) -> str:
        """Return reason and last lines of the log, as far as the service tells them."""
        try:
            details: Any = self._client.jobs._runs_operations.get_run_details(name)  # what its `stream` reads
        except Exception as error:  # a hint is not worth another failure
            return f"Why is not told ({_first_line(error)}); see: az ml job stream --name {name}"
        reason = details.error.error.message if details.error and details.error.error else "No reason is given."
        lines = _last_lines(self._client, details.log_files or {})
        return f"{reason}\nLast lines of its log:\n{lines}" if lines else reason

    def cancel(self, names: Sequence[str]) -> dict[str, str]:
        """Cancel jobs and wait until each has ended; those that have not in time, with the reason."""
        deadline = time.monotonic() + _CANCEL_SECONDS
        with ThreadPoolExecutor(max_workers=16) as pool:
            reasons = pool.map(lambda name: self._cancel(name, deadline), names)
            return {name: reason for name, reason in zip(names, reasons, strict=True) if reason}

    def _cancel(self, name: str, deadline: float) -> str | None:
        asked, reason, pause = False, "no answer", 1.0
        while time.monotonic() < deadline:
            try:
                if not asked:
                    self._client.jobs.begin_cancel(name, polling=False)
                    asked = True
                status = self._status(name)
                if status not in _RUNNING:
                    return None
                reason = f"it is {status}"
            except ResourceNotFoundError:
                return None  # never arrived
            except AzureError as error:
                reason, pause = _first_line(error), max(pause, _retry_after(error) or 0)
            time.sleep(min(pause, max(0.0, deadline - time.monotonic())))
            pause = min(2 * pause, 10.0)
        return reason

    def _status(self, name: str) -> str:
        status: Any = self._client.jobs.get(name).status
        return str(getattr(status, "value", status))

    def _find(self, name: str) -> Any:
        try:
            return self._client.jobs.get(name)
        except AzureError:
            return None

    def _patiently(self, ask: Callable[[], T]) -> T:
        """Return what `ask` returns, asked again with growing pauses while the service is busy or away."""
        pause = _FIRST_PAUSE
        for attempt in range(_ATTEMPTS):
            try:
                return ask()
            except ResourceNotFoundError:
                raise
            except (CredentialUnavailableError, ClientAuthenticationError) as error:
                raise WorkflowError(f"Azure could not authenticate you ({_first_line(error)}); run: az login") from None
            except AzureError as error:
                if not _is_transient(error) or attempt == _ATTEMPTS - 1:
                    raise WorkflowError(_explain_error(error)) from None
                time.sleep(min(max(pause, _retry_after(error) or 0), _LONGEST_PAUSE))
                pause *= 2
        raise AssertionError("the last attempt returns or raises")


def _is_transient(error: AzureError) -> bool:
    if isinstance(error, HttpResponseError):
        return error.status_code in _BUSY
    return isinstance(error, ServiceRequestError | ServiceResponseError)


def _explain_error(error: AzureError) -> str:
    status = getattr(error, "status_code", None)
    if status == 403:
        return f"access is refused ({_first_line(error)}); you need the role AzureML Data Scientist in the workspace"
    return _first_line(error)


def _retry_after(error: AzureError) -> float | None:
    response = getattr(error, "response", None)
    value = (getattr(response, "headers", None) or {}).get("Retry-After")
    try:
        return float(value) if value else None
    except ValueError:  # a date
        return None


def _first_line(error: BaseException) -> str:
    message = getattr(getattr(error, "error", None), "message", None) or getattr(error, "message", None) or str(error)
    lines = [line.strip() for line in str(message).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:400]


def _last_lines(client: MLClient, files: dict[str, str]) -> str:
    """Return the last lines of the log that the command wrote. files: URLs that grant access themselves, by name."""
    urls = [url for name, url in sorted(files.items()) if name.startswith("user_logs/")]
    if not urls:
        return ""
    try:
        text = client._requests_pipeline.get(urls[0]).text()
    except Exception:  # a hint is not worth another failure
        return ""
    return "\n".join(text.splitlines()[-_LAST_LINES:])
