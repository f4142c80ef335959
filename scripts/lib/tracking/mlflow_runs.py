"""Runs of MLflow: in a folder of this machine, on a server that the environment names, in Azure Machine Learning."""

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lib.core.cli import fail
from lib.tracking.delivery import CURVES, Point, TrackedRun

IDENTITY = "slmflow.id"  # tag by which a run is found again
_EXPERIMENT = "slmflow"
_MOST = {"metrics": 1000, "params": 100, "tags": 100}  # in one request, by MLflow's REST API
_LONGEST_PARAMETER, _LONGEST_TAG = 6000, 5000  # characters
# A server that does not answer costs seconds (MLflow's own are 120, 7 times); what fails is said in one line, and no
# address is printed, which may hold a password.
_OPTIONS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
_AZURE = re.compile(r"azureml://(?P<host>[^/?]+)/mlflow/v\d\.\d(?P<workspace>/subscriptions/[^?]+?)/?(\?.*)?")
_AZURE_SCOPE = "https://management.azure.com/.default"


class MlflowRuns:
    """Logs to one run of MLflow after the other. folder: the store where the environment names no server."""

    name = "MLflow"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.client: Any = None
        self.run_id = ""
        self.known: dict[str, set[int]] = {}  # steps, by metric of a curve
        self.scores: dict[str, float] = {}  # of the whole run, by metric

    def begin(self, run: TrackedRun) -> None:
        given = self._connect()
        found = given or self._find(run)
        if found is None:
            tags = {IDENTITY: run.identity, "mlflow.runName": run.name}
            found = self.client.create_run(self._find_experiment(), run_name=run.name, tags=tags)
        self.run_id = found.info.run_id
        if found.info.status != "RUNNING" and given is None:  # the status of a job's run is Azure's
            self.client.update_run(self.run_id, "RUNNING")
        curves = [name for name in found.data.metrics if name.startswith(CURVES)]
        self.known = {name: {one.step for one in self.client.get_metric_history(self.run_id, name)} for name in curves}
        self.scores = {name: value for name, value in found.data.metrics.items() if name not in self.known}
        self._describe(run, found.data.params, found.data.tags)

    def log(self, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric
        from mlflow.utils.time import get_current_time_millis

        now = get_current_time_millis()
        metrics = [
            Metric(name, value, now, point.step)
            for point in points
            for name, value in point.values.items()
            if point.step not in self.known.get(name, ()) and self.scores.get(name) != value
        ]
        self._log("metrics", metrics)

    def end(self, is_finished: bool) -> None:
        if not find_azure_run():
            self.client.set_terminated(self.run_id, "FINISHED" if is_finished else "KILLED")

    def _connect(self) -> Any:
        """Make the client; return the run that Azure Machine Learning has made for this job, or None."""
        for name, value in _OPTIONS.items():
            os.environ.setdefault(name, value)
        address = find_address(self.folder)
        if address.startswith("file:"):
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # refused since 3.13 unless it is asked for
        logging.getLogger("urllib3").setLevel(logging.ERROR)
        from mlflow import MlflowClient

        self.client = MlflowClient(address)
        run_id = find_azure_run()
        return self.client.get_run(run_id) if run_id else None

    def _find_experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or _EXPERIMENT
        found = self.client.get_experiment_by_name(name)
        return str(found.experiment_id if found else self.client.create_experiment(name))

    def _find(self, run: TrackedRun) -> Any:
        wanted = f"tags.`{IDENTITY}` = '{run.identity}'"
        found = self.client.search_runs([self._find_experiment()], wanted, max_results=1)
        return self.client.get_run(found[0].info.run_id) if found else None

    def _describe(self, run: TrackedRun, parameters: dict[str, str], tags: dict[str, str]) -> None:
        from mlflow.entities import Param, RunTag

        # A parameter is never changed; MLflow refuses to.
        new = {name: value[:_LONGEST_PARAMETER] for name, value in run.parameters.items() if name not in parameters}
        self._log("params", [Param(*one) for one in new.items()])
        texts = {IDENTITY: run.identity, **{name: text[:_LONGEST_TAG] for name, text in run.texts.items()}}
        self._log("tags", [RunTag(name, text) for name, text in texts.items() if tags.get(name) != text])

    def _log(self, kind: str, entries: list[Any]) -> None:
        use_azure_token()
        for start in range(0, len(entries), _MOST[kind]):
            self.client.log_batch(self.run_id, **{kind: entries[start : start + _MOST[kind]]})


def find_address(folder: Path) -> str:
    """Return where MLflow's client goes: the server that MLFLOW_TRACKING_URI names, else a folder of this machine.

    Of Azure Machine Learning it is the REST address behind `azureml://`, as azureml-mlflow computes it; that plugin is
    not used, since it holds Azure's storage client and MLflow at older versions. Raises `UserError` for another form.
    """
    address = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not address:
        return folder.absolute().as_uri()
    if not address.startswith("azureml:"):
        return address
    if (found := _AZURE.fullmatch(address)) is None:
        fail(
            "MLFLOW_TRACKING_URI is no address of an Azure Machine Learning workspace",
            "take it from az ml workspace show",
        )
    use_azure_token()
    return f"https://{found['host']}/mlflow/v2.0{found['workspace']}"


def find_azure_run() -> str:
    """Return the id of the run that Azure Machine Learning has made for this job; empty elsewhere."""
    is_azure = os.environ.get("MLFLOW_TRACKING_URI", "").startswith("azureml:")
    return os.environ.get("MLFLOW_RUN_ID", "") if is_azure else ""


_own_token = ""


def use_azure_token() -> None:
    """Put a token of this identity where MLflow looks for one; a job of Azure Machine Learning comes with its own."""
    global _own_token
    is_azure = os.environ.get("MLFLOW_TRACKING_URI", "").startswith("azureml:")
    if is_azure and os.environ.get("MLFLOW_TRACKING_TOKEN", "") == _own_token:
        from lib.azure.identity import get_credential

        _own_token = get_credential().get_token(_AZURE_SCOPE).token  # kept until it is about to end
        os.environ["MLFLOW_TRACKING_TOKEN"] = _own_token
