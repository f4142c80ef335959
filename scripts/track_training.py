"""Tell trackers the numbers of a training, which `train_adapter` sends line by line; never stops or slows it.

Each line is an entry of the Trainer's log as JSON, with its step; `{"end": true}` says that the training has ended and
did not only stop. The numbers end with the input. A tracker that cannot be reached is named in one line on standard
output and asked again after a minute; what it already has is not sent twice.
"""

import argparse
import json
import queue
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from lib.core.cli import build_parser, parse_settings, run
from lib.core.escaping import escape_controls
from lib.tracking.delivery import Delivery, TrackedRun, build_tracker
from lib.tracking.facts import build_point, flatten_parameters

_POLL = 1.0  # seconds


def main(args: argparse.Namespace) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # the training gets them, too, and its end is the end of the input
        signal.signal(number, signal.SIG_IGN)
    inbox: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    threading.Thread(target=read_lines, args=(inbox,), daemon=True).start()
    tracked = TrackedRun(args.identity, args.name, flatten_parameters(args.settings), {})
    deliveries = [Delivery(build_tracker(name, args.folder), tracked, report_fault) for name in args.trackers]
    is_open, is_finished = True, False
    while is_open:
        for entry in collect_entries(inbox):
            is_open = is_open and entry is not None
            is_finished = is_finished or bool(entry and entry.get("end"))
            if entry and "step" in entry and (point := build_point(entry)):
                for delivery in deliveries:
                    delivery.add(point)
        for delivery in deliveries:
            delivery.send()
    for delivery in deliveries:
        delivery.close(is_finished)


def read_lines(inbox: "queue.SimpleQueue[dict[str, Any] | None]") -> None:
    """Read while trackers are waited for, so that the training's pipe never fills; None is the end."""
    for line in sys.stdin:
        inbox.put(json.loads(line))
    inbox.put(None)


def collect_entries(inbox: "queue.SimpleQueue[dict[str, Any] | None]") -> list[dict[str, Any] | None]:
    """Return what has come within a second."""
    found = []
    try:
        found.append(inbox.get(timeout=_POLL))
        while True:
            found.append(inbox.get_nowait())
    except queue.Empty:
        return found


def report_fault(line: str) -> None:
    print(escape_controls(f"{line}; the training goes on"), flush=True)


if __name__ == "__main__":
    arguments = build_parser(__doc__)
    arguments.add_argument("--trackers", nargs="+", choices=["tensorboard", "mlflow"], required=True)
    arguments.add_argument("--identity", required=True, help="the same for each start of one training")
    arguments.add_argument("--name", required=True, help="of the run, for people")
    arguments.add_argument("--settings", type=parse_settings, required=True, help="what is shown as its parameters")
    arguments.add_argument("--folder", type=Path, default=Path("work/tracking"), help="of trackers on this machine")
    run(arguments, main)
