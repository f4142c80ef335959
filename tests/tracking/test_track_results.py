"""What trackers are told of a finished run: a sweep that was made up, MLflow's own store, a server that is down."""

import os
from pathlib import Path

import pytest
from mlflow import MlflowClient

from lib.core.files import hash_file, read_json, write_json
from support.event_files import read_scalars, read_texts


@pytest.fixture
def tell(made_sweep, run_script, tmp_path, monkeypatch):
    """Run the script on the made-up sweep, with a store of the test's own; returns its output and what it said."""
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)

    def run(*trackers: str, **environment: str):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        done = run_script(
            "track_results",
            *("--settings", {"trackers": list(trackers), "name": "results-a"}, *made_sweep.results()),
            *("--summary", "summary.json", "--report", "report.html"),
            *("--model-manifest", "assembled.manifest.json", "--work", tmp_path / "train"),
            *("--tracking", tmp_path, "--output", tmp_path / "tracked.json"),
            cwd=made_sweep.folder,
        )
        return read_json(tmp_path / "tracked.json"), done.stderr

    return run


def read_runs(folder: Path, monkeypatch) -> dict:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client = MlflowClient(folder.as_uri())
    return {
        run.info.run_name: run for run in client.search_runs([client.get_experiment_by_name("slmflow").experiment_id])
    }


def test_each_training_is_a_run_below_that_of_the_packaged_model(made_sweep, tell, tmp_path, monkeypatch):
    told, _ = tell("mlflow")
    summary, runs = made_sweep.read("summary.json"), read_runs(tmp_path / "mlflow", monkeypatch)
    assert set(runs) == {"results-a/model", *(f"results-a/{name}" for name in summary["runs"])}
    assert told == {"mlflow": {"fault": None, "runs": {name: run.info.run_id for name, run in runs.items()}}}
    model = runs["results-a/model"]
    above = {run.data.tags.get("mlflow.parentRunId") for name, run in runs.items() if run is not model}
    assert above == {model.info.run_id}
    low, high = summary["model"]["test"]["accuracy_ci95"]
    measured = model.data.metrics
    assert (measured["test/accuracy_ci95_low"], measured["test/accuracy_ci95_high"]) == (low, high)
    assert measured["test/majority/accuracy"] == summary["baselines"]["majority"]["test"]["accuracy"]
    assert model.data.tags["sha256.summary.json"] == hash_file(made_sweep.path("summary.json"))
    assert model.data.tags["slmflow.report"].endswith("/results-a/report.html")
    assert summary["verdict"]["text"] in model.data.tags["mlflow.note.content"]
    trained = runs["results-a/lora-r-8-seed-1"]
    manifest = made_sweep.path("runs/lora-r-8-seed-1/adapter.manifest.json")
    assert trained.data.tags["sha256.adapter.manifest.json"] == hash_file(manifest)
    quality = summary["runs"]["lora-r-8-seed-1"]["stages"]["onnx-int4"]["validation"]
    assert trained.data.metrics["validation/onnx-int4/macro_f1"] == quality["macro_f1"]
    assert {run.info.status for run in runs.values()} == {"FINISHED"}


def test_told_again_nothing_is_there_twice(tell, tmp_path, monkeypatch):
    tell("mlflow")
    runs = read_runs(tmp_path / "mlflow", monkeypatch)
    sizes = {file: file.stat().st_size for file in (tmp_path / "mlflow").rglob("metrics/**/*") if file.is_file()}
    tell("mlflow")
    assert set(read_runs(tmp_path / "mlflow", monkeypatch)) == set(runs)
    assert {file: file.stat().st_size for file in sizes} == sizes


def test_a_curve_comes_from_all_that_was_logged_or_else_from_the_results(made_sweep, tell, tmp_path):
    training = made_sweep.path("runs/lora-r-8-seed-1/training.json")
    progress = tmp_path / "train/0123456789abcdef/result"
    progress.mkdir(parents=True)
    (progress / "training.json").write_bytes(training.read_bytes())
    log = [{"step": 1, "loss": 2.0, "learning_rate": 0.1}, {"step": 2, "eval_loss": 1.0}, {"step": 2, "train_loss": 1}]
    write_json(progress / "log.json", log)
    tell("tensorboard")
    folder = tmp_path / "tensorboard/results-a"
    first, other = (read_scalars(folder / f"lora-r-8-seed-{seed}") for seed in (1, 2))
    assert (first["train/learning_rate"], first["eval/loss"]) == ([(1, pytest.approx(0.1))], [(2, 1.0)])
    curve = made_sweep.read("runs/lora-r-8-seed-2/training.json")["curve"]
    assert [step for step, _ in other["train/loss"]] == [point["step"] for point in curve if "loss" in point]
    assert "sha256.report.html" in read_texts(folder / "model").replace("\\", "")


def test_a_server_that_is_down_is_named_and_fails_nothing(tell):
    told, said = tell("mlflow", "tensorboard", MLFLOW_TRACKING_URI="http://me:geheim@127.0.0.1:9")
    assert told["tensorboard"]["fault"] is None
    assert told["mlflow"]["fault"].startswith("MlflowException: API request to http://…@127.0.0.1:9/")
    assert said.count("warning: MLflow does not take the numbers of results-a/model") == 1
    assert 'to send them again: make run ARGS="--forcerun track_results"' in said
    assert "geheim" not in said + str(told)
