"""Names, sizes and times of the files in each folder that a job made, as they were when its bytes were last known.

Snakemake's record has one time for a folder, that of a file inside: a file that was replaced by an older one, taken
away, added with its old time, or exchanged with another leaves it as it is. Here any difference shows, and leads to the
bytes. What is edited in place, with its time set back, is found by `trace_lineage.py --verify` alone.
"""

import json
from pathlib import Path
from typing import Any

from lib.core.files import dump_canonical_json, hash_text, publish_file
from lib.provenance.lineage import list_visible_files


class FolderStates:
    """The states noted in a file; those of folders that are noted again replace them."""

    def __init__(self, file: Path) -> None:
        self._file, self._before = file, _read(file)
        self._now: dict[str, list[Any]] = {}

    def is_as_noted(self, path: str, written: float) -> bool:
        """Return whether a folder that its job wrote at that time is as it was noted; so is what was never noted."""
        if not Path(path).is_dir():
            return True
        noted = self._before.get(path)
        return noted is None or noted[0] != written or noted[1] == _describe(Path(path))

    def note(self, path: str, written: float) -> None:
        """Note how a folder is now, whose bytes are known. written: when its job wrote it, in Unix time."""
        if Path(path).is_dir():
            self._now[path] = [written, _describe(Path(path))]

    def date(self, path: str, written: float) -> None:
        """Give a folder that was noted another time at which its job wrote it; its state stays as noted."""
        if path in self._now:
            self._now[path][0] = written

    def save(self) -> None:
        """Write down what was noted, beside the folders of other results."""
        if any(self._before.get(path) != state for path, state in self._now.items()):
            with publish_file(self._file) as partial:
                partial.write_text(dump_canonical_json(self._before | self._now), encoding="utf-8")


def _read(file: Path) -> dict[str, list[Any]]:
    """Return what was noted; nothing where the file is not there or cannot be read as a whole."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
        return {path: [written, state] for path, (written, state) in value.items()}
    except (FileNotFoundError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def _describe(folder: Path) -> str:
    stats = {name: file.stat() for name, file in list_visible_files(folder).items()}
    return hash_text(dump_canonical_json({name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}))
