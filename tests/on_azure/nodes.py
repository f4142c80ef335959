"""The nodes that jobs run on: real processes, each in an empty folder and with an environment of its own."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from isodate import parse_duration

from .data import Data, DataError, Mount

FINAL = ("Completed", "Failed", "Canceled")
BINDING = re.compile(r"\$\{\{\s*(.*?)\s*\}\}")
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # of a node whose environment is this one
SYNC_EVERY = 1.0  # seconds between two looks at the files of a mounted output


@dataclass
class Job:
    """body: as the client sent it. history: every status it had. started: how often its command began."""

    name: str
    body: dict
    root: Path
    status: str = "NotStarted"
    history: list[str] = field(default_factory=lambda: ["NotStarted"])
    started: int = 0
    error: dict | None = None
    created: datetime = field(default_factory=lambda: datetime.now(UTC))
    begun: datetime | None = None
    ended: datetime | None = None
    fate: str | None = None  # why it is being ended: cancel, requeue, lost, closed

    @property
    def properties(self) -> dict:
        return self.body["properties"]

    @property
    def tags(self) -> dict[str, str]:
        return self.properties.get("tags") or {}

    @property
    def command(self) -> str:
        return self.properties["command"]

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables that were sent with it."""
        return self.properties.get("environmentVariables") or {}

    @property
    def attempt(self) -> Path:
        return self.root / str(self.started)

    @property
    def folder(self) -> Path:
        """Where its command runs, or ran last."""
        return self.attempt / "work"

    @property
    def log_file(self) -> Path:
        return self.root / "user_logs/std_log.txt"

    @property
    def log(self) -> str:
        """What its command wrote, all of its starts together."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""


class Nodes:
    """A queue and so many nodes. environment: what every job finds set."""

    def __init__(self, count: int, grace: float, data: Data, environment: dict[str, str]) -> None:
        self._free, self._grace, self._data, self._environment = count, grace, data, environment
        self._queue: list[Job] = []
        self._threads: list[threading.Thread] = []
        self._all: list[Job] = []
        self._changed = threading.Condition(threading.RLock())
        self._closed = False

    def submit(self, job: Job) -> None:
        with self._changed:
            self._all.append(job)
            self._put_in_queue(job)

    def end(self, job: Job, fate: str) -> None:
        """Take a job off its node or out of the queue; one that has ended stays as it is."""
        with self._changed:
            if job.status in FINAL or job.fate == "cancel":
                return
            if job in self._queue:
                self._queue.remove(job)
                return self._finish(job, "Canceled")
            job.fate = fate
            if fate == "cancel":
                self._set(job, "CancelRequested")

    def wait(self, condition: Callable[[], bool], patience: float) -> bool:
        """Wait for what follows from the states of jobs."""
        with self._changed:
            return self._changed.wait_for(condition, patience)

    def close(self) -> None:
        """Kill what runs, start nothing more."""
        with self._changed:
            self._closed = True
            self._queue.clear()
            for job in self._all:
                if job.status not in FINAL:
                    job.fate = "closed"
        for thread in self._threads:
            thread.join()

    def _put_in_queue(self, job: Job) -> None:
        job.fate = None
        self._queue.append(job)
        self._set(job, "Queued")
        self._start_next()

    def _start_next(self) -> None:
        while self._queue and self._free and not self._closed:
            self._free -= 1
            job = self._queue.pop(0)
            self._set(job, "Preparing")
            thread = threading.Thread(target=self._occupy, args=(job,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _occupy(self, job: Job) -> None:
        """All that happens on a node from the start of a job to its end."""
        try:
            status, error = self._run(job)
        except DataError as missing:
            status, error = "Failed", {"code": "UserError", "message": f"DataAccessError(NotFound): {missing}"}
        except Exception as broken:  # a fault of this server must end the job too, or a test waits for ever
            status, error = "Failed", {"code": "SystemError", "message": repr(broken)}
        with self._changed:
            self._free += 1
            if job.fate == "requeue" and not self._closed:
                shutil.rmtree(job.attempt, ignore_errors=True)  # the disk went with the node
                self._put_in_queue(job)
            elif job.fate in ("cancel", "closed", "requeue"):
                self._finish(job, "Canceled")
            elif job.fate == "lost":
                message = "The node that ran the job was preempted: low-priority capacity was taken back."
                self._finish(job, "Failed", {"code": "NodePreempted", "message": message})
            elif job.fate == "timeout":
                self._finish(job, "Canceled", {"code": "JobTimeout", "message": "The job ran longer than its limit."})
            else:
                self._finish(job, status, error)
            self._start_next()

    def _run(self, job: Job) -> tuple[str, dict | None]:
        job.started += 1
        shutil.rmtree(job.attempt, ignore_errors=True)
        home = job.attempt / "home"
        for folder in (job.folder, home, job.log_file.parent):
            folder.mkdir(parents=True, exist_ok=True)
        paths, mounts = self._bring(job)
        command = BINDING.sub(lambda match: paths[match[1]], job.command)
        environment = {**self._environment, **job.environment, "HOME": str(home), "AZUREML_RUN_ID": job.name}
        with self._changed:
            if job.fate:
                return "Canceled", None
            self._set(job, "Running")
            job.begun = job.begun or datetime.now(UTC)
            with open(job.log_file, "ab") as log:
                process = subprocess.Popen(
                    [shutil.which("bash") or "bash", "-c", command],
                    cwd=job.folder,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        self._watch(job, process, home, mounts)
        with self._changed:
            if job.fate is None:
                self._set(job, "Finalizing")
        for mount in mounts:
            mount.sync()
        if process.returncode == 0:
            return "Completed", None
        code = process.returncode if process.returncode > 0 else 128 - process.returncode
        message = f"Execution failed. User process 'bash' exited with status code {code}. "
        message += "Please check log file 'user_logs/std_log.txt' for error details."
        return "Failed", {"code": "UserError", "message": message}

    def _bring(self, job: Job) -> tuple[dict[str, str], list[Mount]]:
        """Put the inputs where the command finds them; the outputs that have to be sent on."""
        paths, mounts = {}, []
        for name, wanted in (job.properties.get("inputs") or {}).items():
            kind = wanted["jobInputType"]
            if kind == "literal":
                paths[f"inputs.{name}"] = wanted["value"]
            else:
                paths[f"inputs.{name}"] = str(self._data.fetch(wanted["uri"], kind, job.attempt / "inputs" / name))
        for name, wanted in (job.properties.get("outputs") or {}).items():
            uri = wanted.get("uri") or f"azureml://datastores/workspaceblobstore/paths/azureml/{job.name}/{name}/"
            folder = job.attempt / "outputs" / name
            mounts.append(self._data.mount(uri, wanted.get("mode") or "ReadWriteMount", folder))
            paths[f"outputs.{name}"] = str(folder)
        return paths, mounts

    def _watch(self, job: Job, process: subprocess.Popen, home: Path, mounts: list[Mount]) -> None:
        """Wait for the end of a command, end it when its fate asks for that, send on what it writes."""
        limit = (job.properties.get("limits") or {}).get("timeout")
        latest = time.monotonic() + parse_duration(limit).total_seconds() if limit else float("inf")
        kill_at, sync_at = float("inf"), time.monotonic() + SYNC_EVERY
        while process.poll() is None:
            now = time.monotonic()
            if now > latest and not job.fate:
                self.end(job, "timeout")
            if job.fate and kill_at == float("inf"):
                kill_at = now if job.fate == "closed" else now + self._grace
                _signal_group(process.pid, signal.SIGTERM)
            if now >= kill_at or job.fate == "closed":
                _kill_all(process.pid, home)
            if now >= sync_at:
                for mount in mounts:
                    if mount.live:
                        mount.sync()
                sync_at = time.monotonic() + SYNC_EVERY
            try:
                process.wait(0.05)
            except subprocess.TimeoutExpired:
                pass
        _kill_all(process.pid, home)  # a container ends with its first process

    def _set(self, job: Job, status: str) -> None:
        with self._changed:
            job.status = status
            job.history.append(status)
            self._changed.notify_all()

    def _finish(self, job: Job, status: str, error: dict | None = None) -> None:
        job.error, job.ended = error, datetime.now(UTC)
        self._set(job, status)


def _signal_group(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        pass


def _kill_all(group: int, home: Path) -> None:
    """Kill a command's group and what has left it, known by the home that nothing else has; wait until all are gone."""
    _signal_group(group, signal.SIGKILL)
    end = time.monotonic() + 10
    while (found := _with_home(home)) and time.monotonic() < end:
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(0.01)


def _with_home(home: Path) -> list[int]:
    mark = f"HOME={home}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:  # it has ended, or is another user's
            continue
    return found
