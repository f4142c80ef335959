"""Snakemake's metadata: read without a trace, corrected in memory, and written when a run starts.

While it builds the DAG, Snakemake reads how finished jobs made their outputs. Where that is wrong, a plan must see the
correction and yet write nothing: `snakemake -n`, `--summary`, `--report` and `--lint` work in a read-only folder. So
corrections lie over what Snakemake reads, and are written when it locks the folder, which it does only for a run.

Patches Snakemake's own class, so it goes with the version that the lock pins.
"""

import os
from base64 import urlsafe_b64decode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from snakemake.jobs import Job as SnakemakeJob
from snakemake.persistence import MetadataRecord
from snakemake.persistence.file import FilePersistence

from lib.core.cli import call_or_exit

STATE = Path(".snakemake")
# Repeated, or of one output alone, or another one in every process.
NOT_KEPT = {"shellcmd", "conda_env", "external_jobid", "incomplete", "starttime", "endtime", "job_hash", "log"}
_postprocess, _finished, _lock = SnakemakeJob.postprocess, FilePersistence.finished, FilePersistence.lock
_read, _write, _delete = FilePersistence._read_record, FilePersistence._write_record, FilePersistence._delete_record

_corrections: dict[str, MetadataRecord] = {}
_writers: list[Callable[[], None]] = []


class MetadataFiles(FilePersistence):
    """The metadata of this folder as it is on disk. Snakemake's own class makes folders when it only reads."""

    def __init__(self) -> None:
        self._path = STATE.absolute()
        self._metadata_path, self._incomplete_path = (str(self._path / name) for name in ("metadata", "incomplete"))
        self._incomplete_cache = None
        self._max_len = os.pathconf(".", "PC_NAME_MAX")

    def _read_record(self, key: str) -> MetadataRecord | None:
        record = self._io_read(self._metadata_path, key)
        return MetadataRecord.model_validate(record) if record else None


def open_metadata() -> MetadataFiles:
    """Open Snakemake's metadata of this folder."""
    return MetadataFiles()


def find_recorded_outputs() -> Iterator[str]:
    """Yield the paths that Snakemake has metadata of: its file names in base64, long ones in several parts."""
    folder = STATE / "metadata"
    for place, _, names in os.walk(folder):
        for name in names:
            parts = (Path(place) / name).relative_to(folder).parts
            yield urlsafe_b64decode("".join(part.removeprefix("@") for part in parts)).decode()


def build_metadata(facts: Mapping[str, Any], endtime: float) -> MetadataRecord:
    """Return Snakemake's metadata of an output from what a lineage keeps of it. endtime: Unix time."""
    kept = {key: value for key, value in facts.items() if key not in NOT_KEPT}
    return MetadataRecord.model_validate(kept | {"endtime": endtime})


def correct_metadata(
    corrections: Mapping[str, MetadataRecord], *writers: Callable[[], None], add: bool = False
) -> None:
    """Have this process's Snakemake read `corrections` instead of its own metadata of these outputs.

    writers: called once when a run starts, to write the corrections and what else was found to disk. add: keep what was
    said before, of other results.
    """
    if not add:
        _corrections.clear()
        _writers.clear()
    _corrections.update(corrections)
    _writers.extend(writers)
    for method in (_read_record, _write_record, _delete_record, lock):
        setattr(FilePersistence, method.__name__, method)


def write_corrections() -> None:
    """Write the corrections to disk, unless that is done. Raises `UserError` when the disk takes nothing."""
    while _writers:
        _writers.pop(0)()
    _corrections.clear()


@contextmanager
def lock(self: FilePersistence) -> Iterator[None]:
    """Lock the folder as Snakemake does for a run, also for one with nothing to do, then write."""
    with _lock(self):
        call_or_exit(write_corrections)
        yield


def _read_record(self: FilePersistence, key: str) -> MetadataRecord | None:
    return _corrections[key] if key in _corrections else _read(self, key)


def _write_record(self: FilePersistence, key: str, record: MetadataRecord) -> None:
    _corrections.pop(key, None)  # a job has made the output again
    _write(self, key, record)


def _delete_record(self: FilePersistence, key: str) -> bool:
    _corrections.pop(key, None)
    return _delete(self, key)


def keep_records_of_failed_jobs() -> None:
    """Have this process's Snakemake record only jobs that succeed.

    It records a failed job like any other, then removes the outputs. Where what was made from them is still there, the
    next plan would find nothing to do, and old results would pass for those of the new rows or settings.
    """
    failed: set[SnakemakeJob] = set()

    async def postprocess(self: SnakemakeJob, *args: Any, error: bool = False, **options: Any) -> None:
        if error:
            failed.add(self)
        try:
            await _postprocess(self, *args, error=error, **options)
        finally:
            failed.discard(self)

    async def finished(self: FilePersistence, job: SnakemakeJob) -> None:
        if job in failed:
            self.cleanup(job)
        else:
            await _finished(self, job)

    def cleanup(self: FilePersistence, job: SnakemakeJob) -> None:  # else it deletes the record
        for file in job.output:
            self._unmark_incomplete(self._get_key(file))

    setattr(SnakemakeJob, postprocess.__name__, postprocess)
    for method in (finished, cleanup):
        setattr(FilePersistence, method.__name__, method)
