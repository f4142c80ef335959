"""MLflow's own store and TensorBoard's own files, on this machine: runs that go on, and nothing twice."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from mlflow import MlflowClient

from lib.core.cli import UserError
from lib.tracking import mlflow_runs
from lib.tracking.delivery import Point, TrackedRun
from lib.tracking.mlflow_runs import MlflowRuns, find_address, use_azure_token
from lib.tracking.tensorboard_events import TensorBoardEvents
from support.event_files import read_scalars, read_texts
from support.paths import SCRIPTS

RUN = TrackedRun(
    "0123456789abcdef", "results/lora", {"finetune.r": "4"}, {"sha256.report.html": "ab|c", "slmflow.verdict": "<b>`x`"}
)
POINTS = [Point(step, {"train/loss": 1 / step, "train/learning_rate": 0.1}) for step in (1, 2, 3)]
WORKSPACE = "/subscriptions/s/resourceGroups/g/providers/Microsoft.MachineLearningServices/workspaces/w"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """No server, no experiment and no token of this machine; what is set for MLflow is unset again."""
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    for name in (*mlflow_runs._OPTIONS, "MLFLOW_ALLOW_FILE_STORE", "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.setenv(name, "1")
        monkeypatch.delenv(name)
    monkeypatch.setattr(mlflow_runs, "_own_token", "")


def list_runs(folder: Path) -> list:
    client = MlflowClient(folder.absolute().as_uri())
    experiment = client.get_experiment_by_name("slmflow")
    return client.search_runs([experiment.experiment_id])


def read_history(folder: Path, run_id: str, name: str) -> list[tuple[int, float]]:
    client = MlflowClient(folder.absolute().as_uri())
    return [(one.step, one.value) for one in client.get_metric_history(run_id, name)]


def test_a_resumed_training_is_the_same_mlflow_run_and_no_step_is_there_twice(tmp_path):
    first, again = MlflowRuns(tmp_path / "mlflow"), MlflowRuns(tmp_path / "mlflow")
    first.begin(RUN)
    first.log(POINTS[:2])
    first.end(is_finished=False)
    assert [run.info.status for run in list_runs(tmp_path / "mlflow")] == ["KILLED"]
    again.begin(RUN)
    again.log(POINTS)
    assert [run.info.status for run in list_runs(tmp_path / "mlflow")] == ["RUNNING"]
    again.end(is_finished=True)
    (run,) = list_runs(tmp_path / "mlflow")
    assert (run.info.run_name, run.info.status) == ("results/lora", "FINISHED")
    assert read_history(tmp_path / "mlflow", run.info.run_id, "train/loss") == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert run.data.params == {"finetune.r": "4"}
    assert run.data.tags["sha256.report.html"] == "ab|c"


def test_scores_are_there_once_however_often_they_are_told_and_changed_ones_again(tmp_path):
    for value in (0.5, 0.5, 0.75):
        tracker = MlflowRuns(tmp_path / "mlflow")
        tracker.begin(RUN)
        tracker.log([Point(0, {"test/accuracy": value})])
        tracker.end(is_finished=True)
    (run,) = list_runs(tmp_path / "mlflow")
    assert read_history(tmp_path / "mlflow", run.info.run_id, "test/accuracy") == [(0, 0.5), (0, 0.75)]


def test_another_training_is_another_run(tmp_path):
    tracker = MlflowRuns(tmp_path / "mlflow")
    for identity in ("a", "b"):
        tracker.begin(RUN._replace(identity=identity))
        tracker.end(is_finished=True)
    assert len(list_runs(tmp_path / "mlflow")) == 2


def test_begun_again_event_files_hold_each_step_once(tmp_path):
    first, again = TensorBoardEvents(tmp_path), TensorBoardEvents(tmp_path)
    first.begin(RUN)
    first.log(POINTS[:2])  # killed
    (file,) = (tmp_path / "results/lora").iterdir()
    file.rename(file.with_name(f"events.out.tfevents.1700000000.{file.suffix[1:]}"))  # some time ago
    again.begin(RUN)
    again.log(POINTS)
    again.end(is_finished=True)
    scalars = read_scalars(tmp_path / "results/lora")
    assert [step for step, _ in scalars["train/loss"]] == [1, 2, 3]
    assert scalars["train/loss"][1] == (2, 0.5)
    assert r"ab\|c" in read_texts(tmp_path / "results/lora")
    assert "<b>" not in read_texts(tmp_path / "results/lora")


def test_events_are_on_disk_while_a_training_runs(tmp_path):
    tracker = TensorBoardEvents(tmp_path)
    tracker.begin(RUN)
    tracker.log(POINTS[:1])
    assert [step for step, _ in read_scalars(tmp_path / "results/lora")["train/loss"]] == [1]


def test_event_files_of_a_run_never_lie_elsewhere(tmp_path):
    with pytest.raises(UserError, match="names the file"):
        TensorBoardEvents(tmp_path).begin(RUN._replace(name="../outside"))


def test_event_files_are_written_without_torch(tmp_path):
    code = f"""
import sys; sys.path.insert(0, {str(SCRIPTS)!r})
from pathlib import Path
from lib.tracking.delivery import TrackedRun
from lib.tracking.tensorboard_events import TensorBoardEvents
TensorBoardEvents(Path({str(tmp_path)!r})).begin(TrackedRun("a", "b", {{}}, {{}}))
sys.exit("torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# Where MLflow's client goes


def test_without_a_server_there_is_a_folder(tmp_path, monkeypatch):
    assert find_address(tmp_path / "a b") == (tmp_path / "a b").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://server:5000")
    assert find_address(tmp_path) == "https://server:5000"


@pytest.mark.parametrize("end", ["", "/", "?experiment=x"])
def test_the_address_of_azure_is_that_of_its_rest_service(tmp_path, monkeypatch, end):
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "of the job")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"azureml://eastus.api.azureml.ms/mlflow/v1.0{WORKSPACE}{end}")
    assert find_address(tmp_path) == f"https://eastus.api.azureml.ms/mlflow/v2.0{WORKSPACE}"
    assert os.environ["MLFLOW_TRACKING_TOKEN"] == "of the job"


def test_an_address_of_azure_without_a_workspace_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "azureml://eastus/else")
    with pytest.raises(UserError, match="^MLFLOW_TRACKING_URI is no address of an Azure"):
        find_address(tmp_path)


def test_outside_of_a_job_azure_gets_a_token_of_this_identity_which_is_renewed(monkeypatch):
    tokens = iter(["first", "second"])
    identity = SimpleNamespace(get_token=lambda scope: SimpleNamespace(token=next(tokens)))
    monkeypatch.setattr("lib.azure.identity.get_credential", lambda: identity)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"azureml://host/mlflow/v1.0{WORKSPACE}")
    for expected in ("first", "second"):
        use_azure_token()
        assert os.environ["MLFLOW_TRACKING_TOKEN"] == expected


def test_a_job_of_azure_logs_to_the_run_that_it_is(tmp_path, monkeypatch):
    """Found by its id, and its status stays Azure's; the store stands for the service."""
    tracker = MlflowRuns(tmp_path / "mlflow")
    tracker.begin(RUN._replace(identity="of azure", name="job"))
    monkeypatch.setattr(mlflow_runs, "find_azure_run", lambda: tracker.run_id)
    job = MlflowRuns(tmp_path / "mlflow")
    job.begin(RUN)
    job.log(POINTS)
    job.end(is_finished=True)
    (run,) = list_runs(tmp_path / "mlflow")
    assert (run.info.run_name, run.info.status) == ("job", "RUNNING")
    assert run.data.metrics["train/loss"] == 1 / 3
