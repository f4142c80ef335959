"""The numbers of a training, handed to a process that tells the trackers of the configuration.

The training imports no tracker and waits for none: numbers go into a pipe, so a server that is slow, down or gone costs
it nothing. How they are told is no part of the code that an adapter depends on (`scripts/track_training.py`).
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from lib.core import distributed
from lib.core.cli import report_progress

_SCRIPT = Path(__file__).resolve().parents[2] / "track_training.py"
_LAST_WORDS = 30.0  # seconds for a slow server, when the training has ended
_STOPPED = 5.0  # where it stops before its time limit, or fails; what is missing is sent by the next start


@contextmanager
def tell_trackers(trackers: Sequence[str], *words: str) -> Iterator["ProgressFeed"]:
    """Start the process that tells the trackers; without trackers, and in all processes but the first, none.

    words: arguments for scripts/track_training.py. Whatever becomes of that process, the training goes on.
    """
    if not trackers or distributed.get_rank():
        yield ProgressFeed(None)
        return
    feed = ProgressFeed(_start([sys.executable, str(_SCRIPT), "--trackers", *trackers, *words]))
    try:
        yield feed
    finally:
        feed.close()


def _start(command: list[str]) -> "subprocess.Popen[bytes] | None":
    # Another process than torchrun's: a rank in its environment would silence it.
    environment = {name: value for name, value in os.environ.items() if name != "RANK"}
    try:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    except OSError as error:
        report_progress(f"warning: nothing tells the trackers: {error}; the training goes on")
        return None


class ProgressFeed(TrainerCallback):
    """Sends each point of the curves, those of earlier starts first. process: that reads them; None: nobody does."""

    def __init__(self, process: "subprocess.Popen[bytes] | None") -> None:
        self.process = process
        self.voice = threading.Thread(target=self._repeat, daemon=True)
        self.is_finished = False
        if process:
            self.voice.start()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for entry in state.log_history:
            self._send(entry)
        if self.process and self.process.stdin:
            os.set_blocking(self.process.stdin.fileno(), False)  # from here on a step must never wait

    def on_log(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self._send(given["logs"] | {"step": state.global_step})

    def finish(self) -> None:
        """Say that the training has ended and not only stopped."""
        self.is_finished = True
        self._send({"end": True})

    def close(self) -> None:
        """Let the process send what it has, for some seconds."""
        if self.process is None:
            return
        with suppress(OSError):
            self.process.stdin.close()  # type: ignore[union-attr]
        try:
            self.process.wait(_LAST_WORDS if self.is_finished else _STOPPED)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            report_progress(
                "warning: the trackers are slow and have not taken every number; the training is not touched"
            )
        self.voice.join(1.0)

    def _send(self, entry: dict[str, Any]) -> None:
        """Write one line; a pipe takes one of this length whole or not at all (PIPE_BUF)."""
        if self.process is None or self.process.stdin is None:
            return
        with suppress(OSError, ValueError):  # nobody reads any more, or not for a long time
            os.write(self.process.stdin.fileno(), json.dumps(entry).encode() + b"\n")

    def _repeat(self) -> None:
        """Repeat what the process says: it has no terminal of its own where the log is a file."""
        for line in self.process.stdout:  # type: ignore[union-attr]
            report_progress(line.decode("utf-8", "replace").rstrip("\n"))
