"""The workflow through a real Slurm: the whole way, and what goes wrong on clusters.

The cases run side by side, since they mostly wait: for Snakemake's looks at the queue and for each other's jobs. Each is
a function; its test is where its outcome is told.
"""

import os
import re
import shutil
import signal
from collections.abc import Callable

import pytest

from lib.core.files import read_json

from .conftest import ADAPTER, ClusterWorkspace
from .onebox import PATIENCE, wait_until

pytestmark = pytest.mark.slurm


def whole_way(workspace: ClusterWorkspace, undisturbed: dict[str, str]) -> None:
    """From raw rows to the report; all but the rules that need the internet or take no time in jobs."""
    for made in ("results", ".snakemake"):
        shutil.rmtree(workspace.root / made)
    said = workspace.finish(workspace.start())
    assert read_json(workspace.results / "summary.json")["selected"]["variant"] == "int4"
    assert (workspace.results / "report.html").is_file()
    assert "accuracy" in said.splitlines()[-1] or "results/report.html" in said

    assert set(workspace.ended()) == {"COMPLETED"}
    in_jobs = {path.name.removeprefix("rule_") for path in (workspace.root / ".snakemake/slurm_logs").iterdir()}
    assert {"audit_data", "train_adapter", "merge_adapter", "build_onnx", "score_onnx", "write_report"} <= in_jobs
    assert not in_jobs & {"fetch_data", "fetch_tokenizer", "fetch_model", "select_model", "check_gate"}

    for rule in sorted(in_jobs):
        on_gpu = [re.search(r"^runs on [01]$", log, flags=re.MULTILINE) is not None for log in workspace.job_logs(rule)]
        assert set(on_gpu) == {rule in ("train_adapter", "score_checkpoint")}, rule
    partitions = [job["Partition"] for job in workspace.cluster.ended(workspace.root)]
    assert partitions.count("gpu") == 5, "train_adapter, score_checkpoint of base (twice), adapter and merged model"
    assert workspace.planned() == set(), "a run without a cluster has nothing left to do"


def out_of_time(workspace: ClusterWorkspace, undisturbed: dict[str, str]) -> None:
    """A training with too little time stops itself after a step, progress saved; its retry has more and goes on."""
    workspace.finish(workspace.start(ADAPTER, "--set-resources", "train_adapter:runtime=9 * attempt - 8"))
    assert [job["TimeLimit"] for job in workspace.cluster.ended(workspace.root)] == ["1", "10"]
    assert workspace.ended() == ["FAILED", "COMPLETED"], "it ended itself, before Slurm did"
    first, second = workspace.job_logs("train_adapter")
    assert "the time is up at step 1 of 216, and saved" in first
    assert "resumed at step 1 of 216" in second
    assert workspace.adapter() == undisturbed


def cancelled_job(workspace: ClusterWorkspace, undisturbed: dict[str, str]) -> None:
    """Somebody cancels the job; the profile's retry goes on where it was."""
    process = workspace.start(ADAPTER)
    workspace.until_trained()
    (job,) = workspace.queue()
    workspace.cluster.call("scancel", job)
    workspace.finish(process)
    assert workspace.ended() == ["CANCELLED", "COMPLETED"]
    assert "resumed at step" in workspace.job_logs("train_adapter")[1]
    assert workspace.adapter() == undisturbed


def ctrl_c(workspace: ClusterWorkspace, undisturbed: dict[str, str]) -> None:
    """Jobs do not outlive a run that was interrupted, and the next run needs no unlocking."""
    process = workspace.start(ADAPTER)
    workspace.until_trained()
    (trainer,) = workspace.trainers()
    os.kill(trainer, signal.SIGSTOP)  # until Slurm cancels it, however fast it trains
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to everything in the foreground
    assert process.wait(PATIENCE) == 130
    wait_until(lambda: not workspace.queue(), "the queue is empty")
    assert workspace.ended() == ["CANCELLED"]
    assert not (workspace.root / ADAPTER).exists()
    workspace.finish(workspace.start(ADAPTER, output="again.txt"), "again.txt")
    assert "resumed at step" in workspace.job_logs("train_adapter")[1]
    assert workspace.adapter() == undisturbed


def killed_controller(workspace: ClusterWorkspace, undisturbed: dict[str, str]) -> None:
    """Its job goes on. The next run's job waits for it, trains nothing, and no attempt is lost."""
    process = workspace.start(ADAPTER)
    workspace.until_trained()
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    (trainer,) = workspace.trainers()
    os.kill(trainer, signal.SIGSTOP)  # so that it is alive, however fast it trains, when the second one comes
    again = workspace.start(ADAPTER, output="again.txt")
    try:
        wait_until(
            lambda: any("waiting for it" in log for log in workspace.job_logs("train_adapter")), "a second waits"
        )
        assert len(workspace.trainers()) == 2
        assert len(workspace.queue()) == 2
    finally:
        os.kill(trainer, signal.SIGCONT)
    workspace.finish(again, "again.txt")
    assert workspace.ended() == ["COMPLETED", "COMPLETED"]
    first, second = workspace.job_logs("train_adapter")
    assert "sequences" in first
    assert "sequences" not in second, "it did not train"
    assert workspace.adapter() == undisturbed


CASES: dict[str, Callable[..., None]] = {
    "the whole way": whole_way,
    "a training runs out of time": out_of_time,
    "a job is cancelled": cancelled_job,
    "Ctrl-C": ctrl_c,
    "the controller is killed": killed_controller,
}


@pytest.mark.parametrize("name", CASES)
def test_through_slurm(running, name):
    running[name].result()
