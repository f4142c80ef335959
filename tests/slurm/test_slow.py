"""What takes minutes on a Slurm: its own time limit, arrays, several nodes. Side by side, as in test_slurm.py."""

import os
import re
import signal
from collections.abc import Callable

import pytest
import yaml

from lib.core.files import read_json

from .conftest import ADAPTER, ClusterWorkspace

pytestmark = pytest.mark.slurm_slow


def time_limit(workspace: ClusterWorkspace, undisturbed: dict[str, str]) -> None:
    """A training that hangs, and so cannot stop itself, is ended by Slurm; the retry has twice the time and goes on."""
    process = workspace.start(ADAPTER, "--set-resources", "train_adapter:runtime=3 * attempt")
    workspace.until_trained()
    (trainer,) = workspace.trainers()
    os.kill(trainer, signal.SIGSTOP)
    workspace.finish(process)
    assert workspace.ended() == ["TIMEOUT", "COMPLETED"]
    assert [job["TimeLimit"] for job in workspace.cluster.ended(workspace.root)] == ["3", "6"]
    assert "resumed at step" in workspace.job_logs("train_adapter")[1]
    assert workspace.adapter() == undisturbed


def arrays(workspace: ClusterWorkspace, undisturbed: dict[str, str]) -> None:
    """The trainings of a sweep as one array; the one with the seed of the others has their bytes."""
    path = workspace.root / "config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"sweep": {"seed": [0, 1, 2]}}))
    seeds = [f"results/runs/lora-seed-{seed}/adapter.manifest.json" for seed in (0, 1, 2)]
    workspace.finish(workspace.start(*seeds, "--slurm-array-jobs", "all"))
    assert workspace.ended() == ["COMPLETED"] * 3
    logs = {path.stem for path in workspace.root.glob(".snakemake/slurm_logs/rule_train_adapter/**/*.log")}
    assert {name.partition("_")[2] for name in logs} == {"1", "2", "3"}
    assert len({name.partition("_")[0] for name in logs}) == 1
    assert workspace.adapter("lora-seed-0") == undisturbed


def two_nodes(workspace: ClusterWorkspace, undisturbed: dict[str, str]) -> None:
    """One training on a GPU of each node, as profiles/README.md says."""
    asked = {"gpu": 2, "nodes": 2, "tasks": 2, "tasks_per_gpu": 0, "mpi": "srun"}
    words = [f"train_adapter:{name}={value}" for name, value in asked.items()]
    workspace.finish(workspace.start(ADAPTER, "--set-resources", *words))
    (job,) = workspace.cluster.ended(workspace.root)
    assert job["NodeList"] == "n[1-2]"
    assert len(re.findall(r"^runs on [01]$", workspace.job_logs("train_adapter")[0], flags=re.MULTILINE)) == 2
    assert read_json(workspace.results / "runs/lora/training.json")["processes"] == 2


CASES: dict[str, Callable[..., None]] = {
    "Slurm's time limit": time_limit,
    "a sweep as an array": arrays,
    "two nodes train together": two_nodes,
}


@pytest.mark.parametrize("name", CASES)
def test_through_slurm(running, name):
    running[name].result()
