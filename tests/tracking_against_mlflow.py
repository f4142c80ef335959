"""Trainings and a whole run that tell a real MLflow server their numbers: `make test-tracking`.

The server is up, down, slow, or dies meanwhile. Each time the adapter has the bytes of a training that nobody tracks,
and in the end the server has each number once.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from lib.core.files import hash_file, read_json
from lib.provenance.manifests import write_manifest
from support.event_files import read_scalars
from support.tiny_models import make_tiny_llama
from support.training import adapter_hash, make_corpus, train_command
from support.workspaces import Workspace, make_workspace

SLOW_TRAINING = {"num_train_epochs": 6, "eval_steps": 5, "logging_steps": 1}


class Server:
    """MLflow's own server with a database in a folder; it may be stopped and started again."""

    def __init__(self, program: Path, folder: Path) -> None:
        self.program, self.folder, self.port = program.absolute(), folder, find_free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None
        folder.mkdir()

    def start(self) -> None:
        store = ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db", "--artifacts-destination", "artifacts"]
        command = [str(self.program), "server", "--port", str(self.port), "--workers", "1", *store]
        log = open(self.folder / "log.txt", "ab")  # noqa: SIM115
        self.process = subprocess.Popen(
            command, cwd=self.folder, stdout=log, stderr=log, start_new_session=True, env=os.environ | quiet()
        )
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=5).read()
                return
            except OSError:
                assert self.process.poll() is None, (self.folder / "log.txt").read_text()[-3000:]
                time.sleep(0.5)
        raise AssertionError("the server does not start")

    def kill(self) -> None:
        if self.process:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def read_runs(self, experiment_name: str = "slmflow") -> dict[str, Any]:
        client = MlflowClient(self.url)
        experiment = client.get_experiment_by_name(experiment_name)
        runs = client.search_runs([experiment.experiment_id]) if experiment else []
        names = [run.info.run_name for run in runs]
        assert len(set(names)) == len(names), f"a run is there twice: {names}"
        return {run.info.run_name: run for run in runs}

    def read_steps(self, run: Any) -> dict[str, list[int]]:
        """Steps of each curve of a run, in the order in which they came."""
        client = MlflowClient(self.url)
        curves = [metric for metric in run.data.metrics if metric.startswith(("train/", "eval/"))]
        return {one: [point.step for point in client.get_metric_history(run.info.run_id, one)] for one in curves}


def quiet() -> dict[str, str]:
    return {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


def find_free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def answer_never() -> Iterator[str]:
    """A server that takes connections and says nothing."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen(50)
        yield f"http://127.0.0.1:{one.getsockname()[1]}"


class Trainings:
    """Trainings of one tiny model with the same settings."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.base = make_tiny_llama(folder / "base")
        write_manifest(self.base, inputs={}, settings={})
        self.corpus = make_corpus(self.base, folder / "corpus")
        self.expected = ""

    def start(self, name: str, *words: str, **environment: str) -> "subprocess.Popen[str]":
        out = self.folder / name
        command = train_command(self.base, self.corpus, out, out / "work", **SLOW_TRAINING)
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        return subprocess.Popen([*command, *words], **silent, text=True, env=os.environ | environment)  # type: ignore

    def track(self, name: str, url: str, *words: str, experiment: str = "") -> "subprocess.Popen[str]":
        """Start a tracked training, in an experiment of its own: with equal settings all are the same run."""
        words = ("--trackers", "mlflow", "tensorboard", "--run-name", experiment or name, *words)
        server = {"MLFLOW_TRACKING_URI": url, "MLFLOW_EXPERIMENT_NAME": experiment or name}
        return self.start(name, *words, "--tracking", str(self.folder / "tracking"), **server)

    def finish(self, name: str, process: "subprocess.Popen[str]", warnings: int = 0) -> None:
        said = process.communicate()[1]
        assert process.returncode == 0, said[-3000:]
        assert said.count("warning: MLflow does not take the numbers") == warnings, said[-3000:]
        if self.expected:
            assert adapter_hash(self.folder / name) == self.expected, f"{name}: another adapter"


def wait_for_line(process: "subprocess.Popen[str]", words: str) -> None:
    assert process.stderr
    for line in process.stderr:
        if words in line:
            return
    raise AssertionError(f"{words!r} was never said")


def list_logged_steps(out: Path) -> dict[str, list[int]]:
    """Steps by curve as the Trainer logged them."""
    (log,) = out.glob("work/*/result/log.json")
    found: dict[str, list[int]] = {}
    for entry in read_json(log):
        for name, shown in (
            ("loss", "train/loss"),
            ("learning_rate", "train/learning_rate"),
            ("eval_loss", "eval/loss"),
        ):
            if name in entry:
                found.setdefault(shown, []).append(entry["step"])
    return found


def check_curves(server: Server, out: Path, experiment: str) -> Any:
    """Check that the one run of an experiment has each logged step once; returns it."""
    ((_, run),) = server.read_runs(experiment).items()
    expected, steps = list_logged_steps(out), server.read_steps(run)
    for curve, logged in expected.items():
        assert sorted(steps[curve]) == logged, (experiment, curve, steps[curve], logged)
    return run


def check_trainings(server: Server, folder: Path) -> None:
    trainings = Trainings(folder)
    trainings.finish("untracked", trainings.start("untracked"))
    trainings.expected = adapter_hash(folder / "untracked")
    print_step("a training that is stopped and resumed is one run, with each step once")
    process = trainings.track("resumed", server.url)
    wait_for_line(process, "step 12 of")
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 75
    assert server.read_runs("resumed")["resumed"].info.status == "KILLED"
    trainings.finish("resumed", trainings.track("resumed", server.url))
    run = check_curves(server, folder / "resumed", "resumed")
    assert run.info.status == "FINISHED"
    assert run.data.params["finetune.learning_rate"] == "0.01"
    events = read_scalars(folder / "tracking/tensorboard/resumed")
    assert [step for step, _ in events["train/loss"]] == list_logged_steps(folder / "resumed")["train/loss"]
    print_step("of several processes the first tracks")
    log = folder / "several/log.txt"
    process = trainings.track("several", server.url, "--processes", "2", "--log", str(log))
    assert process.wait() == 0, log.read_text()[-3000:]
    check_curves(server, folder / "several", "several")
    print_step("a server that dies in the middle costs one line")
    process = trainings.track("orphaned", server.url)
    wait_for_line(process, "step 12 of")
    server.kill()
    trainings.finish("orphaned", process, warnings=1)
    print_step("a server that never answers costs seconds")
    with answer_never() as url:
        started = time.monotonic()
        trainings.finish("patient", trainings.track("patient", url), warnings=1)
        print_step(f"  {time.monotonic() - started:.0f} s for the whole training")
    server.start()
    print_step("what it missed is sent by the next start of the same training")
    trainings.finish("again", trainings.track("again", server.url, experiment="orphaned"))
    check_curves(server, folder / "again", "orphaned")


def check_whole_run(server: Server, folder: Path) -> None:
    print_step("a whole run while the server is down is complete, and told later")
    base = make_tiny_llama(folder / "base")
    workspace = make_workspace(folder / "workspace", base, tracking=["mlflow"])
    os.environ["MLFLOW_TRACKING_URI"] = server.url
    server.kill()
    said = workspace.run().stderr
    assert said.count("warning: MLflow does not take the numbers") == 2, "the training's, and that of the results"
    adapter = hash_file(workspace.results / "runs/lora/adapter/adapter_model.safetensors")
    server.start()
    workspace.run("--forcerun", "track_results")
    check_results(server, workspace)
    assert hash_file(workspace.results / "runs/lora/adapter/adapter_model.safetensors") == adapter
    assert "Nothing to be done" in workspace.run().stderr


def check_results(server: Server, workspace: Workspace) -> None:
    """Curves, parameters, intervals and hashes of a run are on the server."""
    runs, results = server.read_runs(), workspace.results
    summary, told = read_json(results / "summary.json"), read_json(results / "tracked.json")
    assert told["mlflow"]["fault"] is None
    assert told["mlflow"]["runs"] == {name: runs[name].info.run_id for name in ("results/model", "results/lora")}
    model, trained = runs["results/model"], runs["results/lora"]
    assert trained.data.tags["mlflow.parentRunId"] == model.info.run_id
    assert trained.data.params["finetune.r"] == "4"
    low, high = summary["model"]["test"]["accuracy_ci95"]
    assert (model.data.metrics["test/accuracy_ci95_low"], model.data.metrics["test/accuracy_ci95_high"]) == (low, high)
    assert model.data.tags["sha256.report.html"] == hash_file(results / "report.html")
    assert model.data.tags["slmflow.lineage"] == hash_file(results / "model.manifest.json")
    assert Path(model.data.tags["slmflow.report"]) == (results / "report.html").absolute()
    assert trained.data.tags["sha256.adapter.manifest.json"] == hash_file(results / "runs/lora/adapter.manifest.json")
    steps = server.read_steps(trained)
    assert len(steps["train/learning_rate"]) == len(set(steps["train/learning_rate"])) > 0
    assert steps["eval/loss"] == sorted(set(steps["eval/loss"]))


def print_step(text: str) -> None:
    print(text, flush=True)


def main(program: Path) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory() as scratch:
        server = Server(program, Path(scratch) / "server")
        server.start()
        try:
            (Path(scratch) / "trainings").mkdir()
            check_trainings(server, Path(scratch) / "trainings")
            (Path(scratch) / "run").mkdir()
            check_whole_run(server, Path(scratch) / "run")
        finally:
            server.kill()
    print(json.dumps({"passed": True}))


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--mlflow", type=Path, required=True, help="the program mlflow of an environment of its own")
    main(arguments.parse_args().mlflow)
