"""Faults that are planted into the product's code, to see that the campaign finds them.

    python tests/faults/planted.py               each of them, with cases that should find it
    python tests/faults/campaign.py --plant 'removed fsync' --only 'power lost'

A plant changes the scripts of the workspace that a case has restored, never those of the project.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

CAMPAIGN = Path(__file__).with_name("campaign.py")


class Plant(NamedTuple):
    """file: in the workspace. old, new: the text that is changed, wherever it stands. only: cases that should find it."""

    file: str
    old: str
    new: str
    only: str


PLANTS = {
    "removed fsync": Plant(
        "scripts/lib/core/files.py", "os.fsync(", "(lambda file: None)(", "power lost | render_corpus"
    ),
    # What was read once is believed, whatever its size and times are now.
    "skipped hash check": Plant(
        "scripts/lib/workflow/input_content.py",
        "if self._noted.get(path, [None])[0] == state.key:",
        "if path in self._noted:",
        "input replaced by older | fetch_data",
    ),
    # A disk that is full passes for one that has room.
    "swallowed error": Plant(
        "scripts/lib/core/files.py",
        "with publish_file(path) as partial,",
        "with __import__('contextlib').suppress(OSError), publish_file(path) as partial,",
        "disk full in results | fetch_data",
    ),
}


def plant(name: str, workspace: Path) -> None:
    """Change the code of a workspace. Raises `ValueError` when the text that a plant changes is gone."""
    file, old, new, _ = PLANTS[name]
    path = workspace / file
    text = path.read_text(encoding="utf-8")
    if old not in text:
        raise ValueError(f"{name}: {file} has no {old!r} any more; change the plant")
    path.write_text(text.replace(old, new), encoding="utf-8")


def finds(name: str, more: Sequence[str] = ()) -> tuple[bool, str]:
    """Run the cases that should find a plant; returns whether one did, and what was said."""
    with tempfile.TemporaryDirectory() as folder:
        journal = ["--journal", f"{folder}/journal.jsonl"]
        command = [sys.executable, str(CAMPAIGN), "--plant", name, "--only", PLANTS[name].only, *journal, *more]
        done = subprocess.run(command, capture_output=True, text=True)
    found = [line for line in done.stderr.splitlines() if line.startswith("NOT AS PROMISED")]
    return done.returncode == 1 and bool(found), "\n".join(found) or done.stdout + done.stderr


def main(more: Sequence[str]) -> int:
    missed = 0
    for name in PLANTS:
        found, said = finds(name, more)
        missed += not found
        print(f"{name}: {'found' if found else 'NOT FOUND'}\n{said}", flush=True)
    return int(missed > 0)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sys.exit(main(arguments.parse_known_args()[1]))  # all options are the campaign's
