"""Inputs that no rule makes, compared by content: the user's rows, models and adapters, and the code of the rules.

Snakemake looks at times first. It takes an input that is older than the outputs for unchanged, whatever its bytes
(`mv`, `cp -p`, `unzip` and `rsync -t` bring such files), and of a folder it knows nothing but the time. Here it gets
the sha256 of each input instead, and its metadata of a job keep the sha256 of what that job read. Only what Snakemake
reads is changed, in memory: a difference stays a difference through any number of plans, and after a run that was
killed.

Patches Snakemake's own class, so it goes with the version that the lock pins.
"""

import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Set
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from snakemake.io import _IOFile
from snakemake.persistence import MetadataRecord

from lib.core.cli import UserError, fail
from lib.core.escaping import escape_controls
from lib.core.failures import find_place
from lib.core.files import dump_canonical_json, hash_text, publish_file
from lib.provenance.lineage import Lineage, find_sha256, is_code, list_visible_files
from lib.workflow.metadata_overlay import STATE, find_recorded_outputs, open_metadata

_NOTE = STATE / "lineage" / "hashes.json"
_LARGE = 2e9  # bytes that take some seconds to read
# Two changes within this many seconds may leave the same times, on file systems with coarse time stamps.
_TICK = 2.0
_is_newer, _is_checksum_eligible, _checksum = _IOFile.is_newer, _IOFile.is_checksum_eligible, _IOFile.checksum


def compare_by_content(
    given: Iterable[str],
    results: str,
    lineage: Lineage,
    corrections: Mapping[str, MetadataRecord] | None = None,
    *,
    add: bool = False,
) -> "ContentHashes":
    """Have this process's Snakemake compare inputs by content, and return the hashes, for a run to save.

    given: files and folders of the configuration. results: as in the paths of outputs that Snakemake has metadata of.
    corrections: what Snakemake is to read instead of its own metadata, by output. add: keep what was compared before,
    for other results.
    Raises `UserError` when an input cannot be read.
    """
    given = {str(path) for path in given}
    hashes = ContentHashes()
    try:
        read = collect_input_hashes(results, lineage, corrections or {})
        now = hashes.find({*given, *filter(is_code, read)})
    except OSError as error:
        fail(error.strerror or str(error), "mend the permissions, then start again", at=find_place(error) or results)
    if not add:
        _compared.clear()
    _compared.append(_Compared(given & now.keys(), now, read))
    _patch_snakemake()
    return hashes


def collect_input_hashes(
    results: str, lineage: Lineage, corrections: Mapping[str, MetadataRecord]
) -> dict[str, set[str]]:
    """Return the sha256 of each input that jobs read for outputs in `results`, whether these are still there or not."""
    records = open_metadata()
    read: dict[str, set[str]] = defaultdict(set)
    for output in {*find_recorded_outputs(), *corrections}:
        if not output.startswith(f"{results}/"):
            continue
        record = corrections[output] if output in corrections else records._read_record(output)
        for path, checksum in ((record and record.input_checksums) or {}).items():
            read[path].add(checksum.rpartition(":")[2])
    for job in lineage.jobs():
        for path, sha256 in job["sources"].items():
            read[path].add(sha256)
    return read


class _Compared(NamedTuple):
    """The inputs of one results folder. given: of the user. now: sha256 by path. read: what jobs read before."""

    given: Set[str]
    now: Mapping[str, str]
    read: Mapping[str, Set[str]]


_compared: list[_Compared] = []


class _State(NamedTuple):
    """What shows that a file or folder may have changed. key: all of it. changed: Unix time. size: in bytes."""

    key: str
    changed: float
    size: int


class ContentHashes:
    """The sha256 of files and folders. What has not changed since a run noted its hash is not read again.

    Times, size and inode tell what may have changed; one of the times is ctime, which `cp -p` and `touch` cannot set.
    """

    def __init__(self) -> None:
        self._noted = _read_note()
        self._new: dict[str, list[str]] = {}

    def find(self, paths: Iterable[str]) -> dict[str, str]:
        """Return the sha256 of each path that is there."""
        found = {}
        for path in sorted(path for path in paths if Path(path).exists()):
            state = _state(Path(path))
            if self._noted.get(path, [None])[0] == state.key:
                found[path] = self._noted[path][1]
                continue
            started = time.time()
            sha256 = _read(path, state.size)
            if sha256 is not None:
                found[path] = sha256
                if state.changed < started - _TICK and _state(Path(path)) == state:
                    self._new[path] = [state.key, sha256]
        return found

    def save(self) -> None:
        """Note the hashes for later plans. Where that fails all is read again."""
        if self._new:
            with suppress(OSError, UserError), publish_file(_NOTE) as partial:
                partial.write_text(dump_canonical_json(self._noted | self._new), encoding="utf-8")


def _read(path: str, size: int) -> str | None:
    if size > _LARGE:
        line = f"lineage: reading {path} ({size / 1e9:.1f} GB), once until it changes"
        print(escape_controls(line), file=sys.stderr, flush=True)
    return find_sha256(Path(path))


def _state(path: Path) -> _State:
    files = list_visible_files(path) if path.is_dir() else {"": path}
    stats = {name: file.stat() for name, file in files.items()}
    facts = {name: [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino] for name, stat in stats.items()}
    changed = max((stat.st_ctime for stat in stats.values()), default=0.0)
    return _State(hash_text(dump_canonical_json(facts)), changed, sum(stat.st_size for stat in stats.values()))


def _read_note() -> dict[str, list[str]]:
    """Return the noted state and sha256 of each path; nothing when none was ever noted."""
    try:
        noted = json.loads(_NOTE.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return noted if isinstance(noted, dict) else {}


def _patch_snakemake() -> None:
    """Make Snakemake decide by hashes whether an input is new.

    An input counts as newer unless all jobs read the bytes that it has now; the checksums in its own record then tell
    Snakemake which job is to run again.
    """
    given = {path for one in _compared for path in one.given}
    now = {path: sha256 for one in _compared for path, sha256 in one.now.items()}
    read: dict[str, set[str]] = defaultdict(set)
    for one in _compared:
        for path, hashes in one.read.items():
            read[path] |= hashes
    made: dict[str, bool] = {}

    def is_given(file: _IOFile) -> bool:
        """Return whether no rule makes it: what another workflow's rule makes in this run has other bytes later."""
        path = str(file)
        if path not in made:
            rules = file.rule.workflow.rules if file.rule else ()
            made[path] = path in given and any(rule.is_producer(path) for rule in rules)
        return path in given and not made[path]

    async def is_newer(self: _IOFile, time: float) -> bool:
        path = str(self)
        if self.is_ancient or path not in now or (path in given and not is_given(self)):
            return await _is_newer(self, time)
        return read.get(path) != {now[path]}

    async def is_checksum_eligible(self: _IOFile, threshold: Any) -> bool:
        return is_given(self) or await _is_checksum_eligible(self, threshold)

    async def checksum(self: _IOFile, *args: Any, **options: Any) -> str | None:
        if not is_given(self):
            return await _checksum(self, *args, **options)
        path = str(self)
        others = read.get(path, set()) - {now[path]}
        # --touch runs no job: the outputs are still made from what their jobs read.
        return f"sha256:{min(others) if others and self.rule.workflow.touch else now[path]}"

    for method in (is_newer, is_checksum_eligible, checksum):
        setattr(_IOFile, method.__name__, method)
