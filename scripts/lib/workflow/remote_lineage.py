"""The lineage of results in a storage: the same `lineage.json` as in a local folder, kept beside the results.

The run that submits the jobs has Snakemake's metadata, and each blob has its sha256 among its properties
(`lib.workflow.azure_storage_plugin`), so no blob is downloaded. The paths in it are local ones, so results that are
fetched from the storage are recognized on this machine, and nothing is made again. A run in a fresh clone learns from
it how the blobs were made.
"""

from pathlib import PurePosixPath
from typing import Any, NamedTuple

from azure.core.exceptions import ResourceNotFoundError

from lib.azure import blobs
from lib.core.files import dump_canonical_json, hash_text
from lib.provenance.lineage import NAME, Job, Lineage, format_lineage, is_hidden, parse_lineage
from lib.workflow.metadata_overlay import build_metadata, find_recorded_outputs, open_metadata
from lib.workflow.snakemake_metadata import UNKNOWN, Comparison, LineageBuilder, build_job, read_or_empty


class Blob(NamedTuple):
    """A file or a directory. sha256: as it was uploaded; None where somebody else put it there. written: Unix time."""

    sha256: str | None
    written: float


class Stored:
    """Results in a storage. results: az://CONTAINER/PREFIX/results. root: what local paths lack."""

    def __init__(self, results: str, name: str) -> None:
        self.folder = blobs.place(results)
        self.root = results.removesuffix(name)
        self.found: dict[str, Blob] = {}
        self.inside: dict[str, dict[str, Blob]] = {}  # blobs of each directory, by path relative to it
        start = f"{self.folder.prefix}/"
        for blob in self.folder.container.list_blobs(name_starts_with=start, include=["metadata"]):
            path = f"{name}/{blob.name.removeprefix(start)}"
            self.found[path] = Blob((blob.metadata or {}).get("sha256"), blob.last_modified.timestamp())
            for parent in PurePosixPath(path).parents:
                self.inside.setdefault(str(parent), {})[path.removeprefix(f"{parent}/")] = self.found[path]

    def find(self, path: str) -> Blob | None:
        """Return the blob or directory of a path, hashed as `lib.provenance.lineage.find_sha256` does it."""
        inside = self.inside.get(path)
        if inside is None:
            return self.found.get(path)
        hashes = {name: blob.sha256 for name, blob in sorted(inside.items()) if not is_hidden(name)}
        known = None if None in hashes.values() else hash_text(dump_canonical_json(hashes))
        return Blob(known, max(blob.written for blob in inside.values()))

    def lineage(self) -> Lineage:
        """Return the last run's lineage; an empty one when there is none, or, with a warning, when it is damaged."""
        try:
            content = self.folder.container.download_blob(self.folder.name(NAME)).readall()
        except ResourceNotFoundError:
            return Lineage({})
        return read_or_empty(lambda: parse_lineage(content, f"{self.folder.url}/{NAME}"))


def compare(results: str, name: str) -> Comparison:
    """Compare Snakemake's metadata with the blobs that are there now and with their lineage, and write nothing.

    A blob with the time that Snakemake recorded is described by Snakemake's metadata. Any other was written by a run on
    another machine: the lineage beside it says how, or nobody knows and it is made again.
    Raises `UserError` when the storage refuses or does not answer.
    """
    with blobs.explain_storage_errors(results):
        stored = Stored(results, name)
        lineage, records, corrections = stored.lineage(), open_metadata(), {}
        for query in {query for query in find_recorded_outputs() if query.startswith(stored.root)} | {
            stored.root + path for path in lineage.by_output
        }:
            path = query.removeprefix(stored.root)
            blob, record = stored.find(path), records._read_record(query)
            if blob is None or records._filter_incomplete_keys([query]) or _as_recorded(blob, record):
                continue
            job = lineage.by_output.get(path)
            facts = UNKNOWN
            if job is not None and blob.sha256 == job["outputs"][path]:
                inputs = job["record"].get("input") or []
                facts = job["record"] | {"input": [stored.root + one if stored.find(one) else one for one in inputs]}
            corrections[query] = build_metadata(facts, blob.written)

    def write() -> None:
        for query, record in corrections.items():
            records._write_record(query, record)

    return Comparison(lineage, corrections, write)


def write(results: str, name: str) -> None:
    """Write beside the blobs how they were made; those of other machines' runs as their lineage has them."""
    with blobs.explain_storage_errors(results):
        stored = Stored(results, name)
        new, records = LineageBuilder(), open_metadata()
        for query in sorted(find_recorded_outputs()):
            path, record = query.removeprefix(stored.root), records._read_record(query)
            blob = stored.find(path) if query.startswith(stored.root) else None
            if blob is None or blob.sha256 is None or record is None or not record.rule:
                continue
            if _as_recorded(blob, record) and not records._filter_incomplete_keys([query]):
                new.add(path, _job(stored, record, blob), blob.sha256)
        for path, job in stored.lineage().by_output.items():
            blob = stored.find(path)
            if path not in new.by_output and blob is not None and blob.sha256 == job["outputs"][path]:
                new.add(path, job, blob.sha256)
        if new.by_output:
            text = format_lineage(Lineage(new.by_output)).encode()
            stored.folder.container.upload_blob(stored.folder.name(NAME), text, overwrite=True)


def _as_recorded(blob: Blob, record: Any) -> bool:
    return record is not None and record.endtime == blob.written


def _job(stored: Stored, record: Any, output: Blob) -> Job:
    """Return the job with local paths, and with the sha256 of inputs that Snakemake has not seen itself."""
    job = build_job(record, None)
    facts = job["record"]
    inputs = [path.removeprefix(stored.root) for path in facts["input"] or []]
    checksums = {path: value for path, value in (facts["input_checksums"] or {}).items() if path in inputs}
    for path in inputs:
        blob = stored.found.get(path)
        if blob is not None and blob.sha256 and blob.written <= output.written:
            checksums[path] = f"sha256:{blob.sha256}"
    return {**job, "record": facts | {"input": inputs, "input_checksums": checksums}}
