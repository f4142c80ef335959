"""Numbers on their way to a tracker, which may be down, slow or gone: the work that they tell of goes on."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from lib.core.cli import extract_first_line
from lib.core.escaping import escape_controls, hide_secrets

CURVES = ("train/", "eval/")  # what the names of numbers begin with that belong to a step
_PAUSE = 60.0  # seconds until a tracker that failed is asked again
_LONGEST = 200  # characters of what a library says; an address stands at its beginning
_SECRETS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")


class Point(NamedTuple):
    """Numbers of one step, by the names that trackers show."""

    step: int
    values: dict[str, float]


class TrackedRun(NamedTuple):
    """What a tracker shows as one run.

    identity: tells that two starts are the same run. name: for people. texts: what it is about, such as hashes.
    """

    identity: str
    name: str
    parameters: Mapping[str, str]
    texts: Mapping[str, str]


class Tracker(Protocol):
    """A place where people look at numbers. Its methods raise whatever its library raises."""

    name: str

    def begin(self, run: TrackedRun) -> None:
        """Find the run, or make it; every point is logged again after this."""

    def log(self, points: Sequence[Point]) -> None:
        """Add points; of those that are there already, none twice."""

    def end(self, is_finished: bool) -> None:
        """Say whether the run has ended or only stopped."""


class Delivery:
    """The points of one run for one tracker. say: prints a line for a person."""

    def __init__(self, tracker: Tracker, run: TrackedRun, say: Callable[[str], None]) -> None:
        self.tracker, self.run, self.say = tracker, run, say
        self.points: list[Point] = []
        self.sent = 0
        self.has_begun = False
        self.next_try = 0.0
        self.fault: str | None = None

    def add(self, point: Point) -> None:
        self.points.append(point)

    def send(self) -> bool:
        """Send what is new; return whether the tracker has all of it. One that has just failed is left in peace."""
        if time.monotonic() < self.next_try:
            return False
        return self._try(self._send)

    def close(self, is_finished: bool) -> bool:
        """Send what is left, once more whatever happened before; return whether the tracker has all of it."""
        return self._try(self._send) and self._try(lambda: self.tracker.end(is_finished))

    def _send(self) -> None:
        if not self.has_begun:
            self.tracker.begin(self.run)
            self.has_begun, self.sent = True, 0
        new = self.points[self.sent :]
        if new:
            self.tracker.log(new)
            self.sent += len(new)

    def _try(self, act: Callable[[], None]) -> bool:
        try:
            act()
        except Exception as error:  # of a library, a server, a disk: all the same to the work
            self.has_begun, self.next_try = False, time.monotonic() + _PAUSE
            if self.fault is None:  # once
                self.fault = describe_fault(error)
                self.say(f"warning: {self.tracker.name} does not take the numbers of {self.run.name}: {self.fault}")
            return False
        return True


def describe_fault(error: BaseException) -> str:
    """Return what a tracker's library says, as one line without secrets."""
    text = extract_first_line(error)
    for secret in filter(None, map(os.environ.get, _SECRETS)):
        text = text.replace(secret, "…")
    text = hide_secrets(escape_controls(f"{type(error).__name__}: {text}"))
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 2]} …"


def build_tracker(name: str, folder: Any) -> Tracker:
    """Return a tracker by its name in the configuration. folder: of trackers that write to this machine."""
    if name == "mlflow":
        from lib.tracking.mlflow_runs import MlflowRuns

        return MlflowRuns(folder / "mlflow")
    from lib.tracking.tensorboard_events import TensorBoardEvents

    return TensorBoardEvents(folder / "tensorboard")
