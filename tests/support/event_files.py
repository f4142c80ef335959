"""What TensorBoard would show of a folder of event files."""

import struct
import sys
from pathlib import Path
from typing import Any


def read_scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values by name, in the order of the files; framed as TensorFlow's records are."""
    found: dict[str, list[tuple[int, float]]] = {}
    for event in read_events(folder):
        for value in event.summary.value:
            if value.HasField("simple_value"):
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def read_texts(folder: Path) -> str:
    texts = [value.tensor.string_val for event in read_events(folder) for value in event.summary.value]
    return b"\n".join(text for several in texts for text in several).decode()


def read_events(folder: Path) -> list[Any]:
    from lib.tracking.tensorboard_events import import_without_torch

    import_without_torch()
    from tensorboardX.proto.event_pb2 import Event

    assert "torch" not in sys.modules or sys.modules["torch"]
    events = []
    for file in sorted(folder.glob("events.out.tfevents.*")):
        data, place = file.read_bytes(), 0
        while place < len(data):
            (length,) = struct.unpack_from("<Q", data, place)
            events.append(Event.FromString(data[place + 12 : place + 12 + length]))
            place += length + 16
    return events
