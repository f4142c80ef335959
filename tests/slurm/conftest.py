"""One cluster for all tests, and the training that disturbed ones must end like."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from lib.core.files import hash_file
from support.workspaces import Workspace, tiny_workspace

from .onebox import PATIENCE, Cluster, running_cluster, wait_until

ADAPTER = "results/runs/lora/adapter.manifest.json"
# What a small test wants otherwise than a site: two threads as the runs it is compared with, and quick answers.
PROFILE = ["--profile", "profiles/slurm", "--max-threads", "2"]
QUICK = ["--latency-wait", "10", "--slurm-init-seconds-before-status-checks", "10", "--slurm-keep-successful-logs"]


class ClusterWorkspace(Workspace):
    """A workspace whose runs go through Slurm."""

    def __init__(self, root: Path, cluster: Cluster) -> None:
        super().__init__(root)
        self.cluster = cluster
        self.started: list[subprocess.Popen] = []

    def start(self, *arguments: str, output: str = "run.txt") -> subprocess.Popen:
        """`make run` with the Slurm profile, as from a terminal: a process group of its own that heeds Ctrl-C."""
        command = [sys.executable, "scripts/run.py", *PROFILE, *QUICK, *arguments]
        with open(self.root / output, "w") as file:
            process = subprocess.Popen(
                command,
                cwd=self.root,
                env=self.cluster.env,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        self.started.append(process)
        return process

    def kill(self) -> None:
        """End the runs that a failed case left."""
        for process in self.started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def finish(self, process: subprocess.Popen, output: str = "run.txt") -> str:
        """What a run said that must go well."""
        code = process.wait(PATIENCE)
        said = (self.root / output).read_text()
        assert code == 0, f"{said[-5000:]}\n{self.cluster.logs()}"
        return said

    def queue(self) -> dict[str, str]:
        return self.cluster.queue(self.root)

    def ended(self) -> list[str]:
        """How its jobs ended, in their order."""
        return [job["JobState"] for job in self.cluster.ended(self.root)]

    def job_logs(self, rule: str) -> list[str]:
        """What Slurm kept of each job of a rule, in the order of their numbers."""
        logs = self.root.glob(f".snakemake/slurm_logs/rule_{rule}/**/*.log")
        return [log.read_text() for log in sorted(logs, key=lambda log: int(log.stem.split("_")[0]))]

    def until_trained(self, step: int = 5) -> None:
        """Wait until a training has saved its progress."""
        wait_until(lambda: self._saved(step), f"a training is at step {step}")

    def _saved(self, step: int) -> bool:
        saved = self.root.glob("work/train/*/checkpoint-*/complete.json")
        return any(int(path.parent.name.rpartition("-")[2]) >= step for path in saved)

    def trainers(self) -> list[int]:
        """Processes that train the adapter, or wait for it, the oldest first."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
                if (folder / "cwd").resolve() == self.root and words[1:2] == [b"scripts/train_adapter.py"]:
                    found.append((folder.stat().st_mtime, int(folder.name)))
            except OSError:  # it has ended
                continue
        return [pid for _, pid in sorted(found)]

    def adapter(self, run: str = "lora") -> dict[str, str]:
        """Hashes of what a training left."""
        folder = self.results / "runs" / run
        names = ("adapter/adapter_model.safetensors", "adapter.manifest.json")
        return {name: hash_file(folder / name) for name in names}


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    needed = ("slurmctld", "slurmd", "sbatch", "srun")
    missing = [name for name in needed if shutil.which(name) is None]
    assert not missing, f"no {missing[0]} on this machine: run `make slurm`"
    assert os.geteuid() == 0, "slurmd starts jobs as the user who sent them, which only root can"
    with running_cluster(tmp_path_factory.mktemp("cluster") / "onebox") as cluster:
        yield cluster


@pytest.fixture(scope="session")
def to_train(tiny_llama, tmp_path_factory) -> Path:
    """A workspace with all that the training needs, which takes 216 steps."""
    workspace = tiny_workspace(tmp_path_factory.mktemp("to_train"), tiny_llama)
    workspace.configure(lambda config: config["finetune"].update(num_train_epochs=12))
    names = ("corpus/leakage.json", "corpus/checked.done", "corpus/onnx_tokenizer.done", "checks/model.done")
    workspace.run(*(f"results/{name}" for name in names))
    return workspace.root


@pytest.fixture(scope="session")
def undisturbed(to_train, tmp_path_factory) -> dict[str, str]:
    """Hashes of the adapter as a run without a cluster trains it."""
    root = tmp_path_factory.mktemp("undisturbed") / "copy"
    shutil.copytree(to_train, root, symlinks=True)
    Workspace(root).run(ADAPTER)
    return ClusterWorkspace(root, None).adapter()


@pytest.fixture(scope="module")
def running(request, cluster, to_train, undisturbed, tmp_path_factory) -> Iterator[dict[str, Future]]:
    """Those of a module's CASES that were asked for, all under way, each in a copy of `to_train`."""
    asked = [item.callspec.params["name"] for item in request.session.items if item.module is request.module]
    with ThreadPoolExecutor(len(asked)) as pool:
        under_way = {}
        for name in asked:
            root = tmp_path_factory.mktemp(re.sub(r"\W", "-", name)) / "copy"
            shutil.copytree(to_train, root, symlinks=True)
            under_way[name] = pool.submit(
                _case, request.module.CASES[name], ClusterWorkspace(root, cluster), undisturbed
            )
        yield under_way


def _case(function: Callable[..., None], workspace: ClusterWorkspace, undisturbed: dict[str, str]) -> None:
    try:
        function(workspace, undisturbed)
    finally:
        workspace.kill()
