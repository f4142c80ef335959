"""Event files for TensorBoard, one folder for each run."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lib.core.escaping import escape_markdown
from lib.core.paths import check_name
from lib.tracking.delivery import Point, TrackedRun

_PREFIX = "events"


class TensorBoardEvents:
    """Writes a run's events anew whenever it begins, so a resumed training has no step twice.

    By tensorboardX's writer of single events: its SummaryWriter writes in a thread, whose errors nobody would see.
    """

    name = "TensorBoard"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.writer: Any = None

    def begin(self, run: TrackedRun) -> None:
        import_without_torch()
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.summary import text

        folder = self.folder / check_name(run.name.strip("/"), at=self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._close()
        for old in folder.glob(f"{_PREFIX}.out.tfevents.*"):
            old.unlink()
        self.writer = EventsWriter(str(folder / _PREFIX))
        for title, values in (("parameters", run.parameters), ("about", run.texts)):
            if values:
                lines = [f"| {escape_markdown(name)} | {escape_markdown(value)} |" for name, value in values.items()]
                self._write(text(title, "\n".join(["| | |", "| --- | --- |", *lines])), 0)
        self.writer.flush()

    def log(self, points: Sequence[Point]) -> None:
        from tensorboardX.summary import scalar

        for point in points:
            for name, value in point.values.items():
                self._write(scalar(name, value), point.step)
        self.writer.flush()

    def end(self, is_finished: bool) -> None:
        self._close()

    def _write(self, summary: Any, step: int) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self.writer.write_event(Event(wall_time=time.time(), step=step, summary=summary))

    def _close(self) -> None:
        if self.writer is not None:
            writer, self.writer = self.writer, None
            writer.close()


def import_without_torch() -> None:
    """Import tensorboardX, which takes torch if it can get it: 2 seconds and 200 MB for nothing that is used here."""
    if "torch" in sys.modules:
        import tensorboardX
    else:
        sys.modules["torch"] = None  # type: ignore[assignment]
        try:
            import tensorboardX  # noqa: F401
        finally:
            del sys.modules["torch"]
