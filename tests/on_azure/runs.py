"""Workspaces whose runs go to Azure, as it is on loopback: jobs by the control plane, files by Azurite."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from itertools import groupby
from operator import attrgetter
from pathlib import Path

from lib.core.files import hash_text
from support.workspaces import Workspace

from .azurite import ACCOUNT, Azurite, environment_of_jobs
from .control_plane import GROUP, PATIENCE, SUBSCRIPTION, WORKSPACE, ControlPlane
from .nodes import PATH, Job

ADAPTER = "results/runs/lora/adapter.manifest.json"
PREFIX = "project"  # of all blobs of a run, in its container
# What a test wants otherwise than a site: this storage and this workspace, no GPUs, quick looks at the jobs.
PROFILE = [
    *("--profile", "profiles/azureml", "--azureml-subscription-id", SUBSCRIPTION),
    *("--azureml-resource-group", GROUP, "--azureml-workspace", WORKSPACE),
    *("--storage-azure-account-name", ACCOUNT, "--envvars", "AZURITE_CONNECTION_STRING"),
    *("--seconds-between-status-checks", "1", "--set-resources"),
    *(f"{rule}:{what}" for rule in ("train_adapter", "score_checkpoint", "calibrate_weights") for what in ("gpu=0",)),
]


class AzureWorkspace(Workspace):
    """`make run` with the Azure profile, in a git checkout."""

    def __init__(self, root: Path, azurite: Azurite, plane: ControlPlane | None, container: str) -> None:
        super().__init__(root)
        self.azurite, self.plane, self.container = azurite, plane, container
        self.env = {**environment_of_jobs(azurite), **(plane.environment() if plane else {})}
        self.options = [*PROFILE, "--default-storage-prefix", f"az://{container}/{PREFIX}"]

    def snakemake(self, *args: str, cwd: Path | None = None) -> subprocess.CompletedProcess:
        command = [sys.executable, "scripts/run.py", *self.options, *args]
        return subprocess.run(command, cwd=cwd or self.root, env=self.env, capture_output=True, text=True)

    def start(self, *args: str, output: str = "run.txt") -> subprocess.Popen:
        """As from a terminal: a process group of its own that heeds Ctrl-C."""
        with open(self.root / output, "w") as file:
            return subprocess.Popen(
                [sys.executable, "scripts/run.py", *self.options, *args],
                cwd=self.root,
                env=self.env,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    def finish(self, process: subprocess.Popen, output: str = "run.txt") -> str:
        code = process.wait(PATIENCE)
        said = (self.root / output).read_text()
        assert code == 0, said[-5000:]
        return said

    def jobs(self, rule: str | None = None) -> list[Job]:
        """What was submitted, in that order."""
        jobs = sorted(self.plane.jobs.values(), key=lambda job: job.created)
        return [job for job in jobs if rule is None or job.tags["snakemake_rule"] == rule]

    def wait_for_job(self, rule: str, process: subprocess.Popen) -> Job:
        """The first job of a rule, when it has been submitted."""
        self._wait(lambda: bool(self.jobs(rule)), f"{rule} is submitted", process)
        return self.jobs(rule)[0]

    def until_saved(self, process: subprocess.Popen) -> None:
        """Wait until a training has saved its progress in the storage."""
        self._wait(
            lambda: any(re.search(r"work/train/.*/complete\.json$", name) for name in self.blobs()), "saved", process
        )

    def _wait(self, condition: Callable[[], bool], what: str, process: subprocess.Popen) -> None:
        self.plane.wait_until(lambda: condition() or process.poll() is not None, what)
        assert process.poll() is None, (self.root / "run.txt").read_text()[-3000:]

    def blobs(self) -> dict[str, int]:
        """By the path that a folder would have."""
        found = self.azurite.blobs(self.container, f"{PREFIX}/")
        return {name.removeprefix(f"{PREFIX}/"): size for name, size in found.items()}

    def adapter(self) -> str:
        """Hash of the adapter's manifest, which names the hashes of its files."""
        return hash_text(self.azurite.read(self.container, f"{PREFIX}/{ADAPTER}").decode())


def as_checkout(root: Path) -> None:
    """Make a copy of the project the git checkout that jobs get their sources from."""
    (root / ".gitignore").write_text(".snakemake/\nresults/\nwork/\n__pycache__/\n*.txt\n")
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        subprocess.run([*git, *command], cwd=root, check=True)


def copy_run(source: AzureWorkspace, root: Path, plane: ControlPlane, container: str) -> AzureWorkspace:
    """Another checkout with a storage of its own that holds the same blobs, as old as each other as they were."""
    subprocess.run(["git", "clone", "-q", str(source.root), str(root)], check=True)
    client = source.azurite.client()
    target = client.get_container_client(container)
    blobs = client.get_container_client(source.container).list_blobs(include=["metadata"])
    when = attrgetter("last_modified")  # whole seconds
    for _, group in groupby(sorted(blobs, key=when), key=when):
        contents = [(blob, source.azurite.read(source.container, blob.name)) for blob in group]
        written: set[datetime] = set()
        while len(written) != 1:  # a new second began between them: an output would be older than its input
            copies = [
                target.upload_blob(blob.name, content, metadata=blob.metadata, overwrite=True)
                for blob, content in contents
            ]
            written = {copy.get_blob_properties().last_modified for copy in copies}
    return AzureWorkspace(root, source.azurite, plane, container)


def undisturbed_adapter(source: Path, root: Path) -> str:
    """Hash of the adapter's manifest as a run on this machine trains it."""
    shutil.copytree(source, root, symlinks=True, ignore=shutil.ignore_patterns(".snakemake", ".git"))
    Workspace(root).run(ADAPTER)
    return hash_text((root / ADAPTER).read_text())


def interrupt(process: subprocess.Popen) -> int:
    """Ctrl-C, which a terminal sends to everything in the foreground."""
    os.killpg(process.pid, signal.SIGINT)
    return process.wait(PATIENCE)


def running_plane(azurite: Azurite, folder: Path) -> ControlPlane:
    return ControlPlane(folder, path=PATH, blob=azurite.connection_string, grace=2)
