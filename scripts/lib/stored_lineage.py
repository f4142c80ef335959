"""Where results in a storage came from: the same `lineage.json` as in a folder, kept beside them.

The run that sends jobs away has Snakemake's record, and each blob tells its sha256 (`lib.azure_storage`), so nothing is
read again. Paths in it are those of a folder: results that are fetched from the storage are known here, and Snakemake
makes nothing of them again. The other way round, a run in a fresh clone learns from it how the blobs were made.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from azure.core.exceptions import ResourceNotFoundError
from snakemake.persistence import MetadataRecord

from lib import blobs
from lib.cli import fail
from lib.files import canonical_json, sha256_text
from lib.lineage import NAME, Job, Lineage, as_lineage, lineage_text
from lib.snakemake_record import LineageBuilder, job_facts, recorded, snakemake_records

_STAMP = ".snakemake_timestamp"


class Blob(NamedTuple):
    """sha256: as it was uploaded; None for a blob that somebody else put there. written: Unix time."""

    sha256: str | None
    written: float


class Stored:
    """Results in a storage. results: az://CONTAINER/PREFIX/results; root: az://CONTAINER/PREFIX/, what paths lack."""

    def __init__(self, results: str, name: str) -> None:
        self.folder = blobs.place(results)
        self.root = results.removesuffix(name)
        self.name = name
        self.blobs = dict(self._listed())

    def _listed(self) -> Iterator[tuple[str, Blob]]:
        start = f"{self.folder.prefix}/"
        try:
            for blob in self.folder.container.list_blobs(name_starts_with=start, include=["metadata"]):
                if not blob.name.endswith(_STAMP):
                    sha256 = (blob.metadata or {}).get("sha256")
                    path = f"{self.name}/{blob.name.removeprefix(start)}"
                    yield path, Blob(sha256, blob.last_modified.timestamp())
        except ResourceNotFoundError:  # no container yet
            return

    def find(self, path: str) -> Blob | None:
        """A file or a directory, whose sha256 is that of its files' names and hashes (`lib.lineage.sha256_of`)."""
        if path in self.blobs:
            return self.blobs[path]
        inside = {
            name.removeprefix(f"{path}/"): blob for name, blob in self.blobs.items() if name.startswith(f"{path}/")
        }
        if not inside:
            return None
        hashes = {name: blob.sha256 for name, blob in sorted(inside.items())}
        known = None if None in hashes.values() else sha256_text(canonical_json(hashes))
        return Blob(known, max(blob.written for blob in inside.values()))

    def lineage(self) -> Lineage:
        """That of the last run; an empty one where there is none, or one that was cut."""
        try:
            text = self.folder.container.download_blob(self.folder.name(NAME)).readall()
            return as_lineage(text.decode())
        except (ResourceNotFoundError, ValueError, TypeError, KeyError, AttributeError):
            return Lineage({})

    def local(self, path: str) -> str:
        """A path of Snakemake's record as a folder has it."""
        return path.removeprefix(self.root)


def learn(results: str, name: str) -> None:
    """Before a plan: tell Snakemake how blobs were made that it knows nothing of, as the lineage beside them says."""
    with blobs.explained_storage_errors(results):
        stored = Stored(results, name)
        records = snakemake_records()
        for path, job in stored.lineage().by_output.items():
            query = stored.root + path
            blob = stored.find(path)
            if blob is None or blob.sha256 != job["outputs"][path] or records._read_record(query) is not None:
                continue
            if records._filter_incomplete_keys([query]):
                continue
            facts = job["record"] | {
                "input": [stored.root + one if stored.find(one) else one for one in job["record"]["input"] or []],
                "endtime": blob.written,
            }
            records._write_record(query, MetadataRecord.model_validate(facts))


def write(results: str, name: str) -> None:
    """After a run: write the lineage of all blobs that Snakemake has a record of, beside them."""
    with blobs.explained_storage_errors(results):
        stored = Stored(results, name)
        before, new = stored.lineage(), LineageBuilder()
        records = snakemake_records()
        for query in sorted(recorded()):
            path = stored.local(query)
            blob = stored.find(path) if query.startswith(stored.root) else None
            record = records._read_record(query)
            if blob is None or blob.sha256 is None or record is None or record.rule is None:
                continue
            if not records._filter_incomplete_keys([query]):
                new.add(path, _job(stored, job_facts(record, None), blob), blob.sha256)
        for path, job in before.by_output.items():  # of other machines' runs
            blob = stored.find(path)
            if path not in new.by_output and blob is not None and blob.sha256 == job["outputs"][path]:
                new.add(path, job, blob.sha256)
        if new.by_output:
            text = lineage_text(Lineage(new.by_output)).encode()
            stored.folder.container.upload_blob(stored.folder.name(NAME), text, overwrite=True)


def _job(stored: Stored, job: Job, output: Blob) -> Job:
    """The job with the paths of a folder, and the sha256 of inputs of which Snakemake saw no copy."""
    record: dict[str, Any] = dict(job["record"])
    inputs = [stored.local(path) for path in record["input"] or []]
    checksums = {
        path: value for path, value in (record["input_checksums"] or {}).items() if not path.startswith(".snakemake/")
    }
    for path in inputs:
        blob = stored.find(path)
        if path in stored.blobs and blob is not None and blob.sha256 and blob.written <= output.written:
            checksums[path] = f"sha256:{blob.sha256}"
    return {**job, "record": record | {"input": inputs, "input_checksums": checksums}}


def check_storage(results: str) -> None:
    """Raises `UserError` when the storage cannot be reached or read, before anything is planned."""
    folder = blobs.place(results)
    with blobs.explained_storage_errors(results):
        if not folder.container.exists():
            fail(f"there is no container {folder.container.container_name}", "az storage container create", at=results)
