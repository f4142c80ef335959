"""Snakemake's record of finished jobs, held against the results on disk before the DAG is believed.

Snakemake remembers in `.snakemake/` by which parameters and from which inputs it made each output, but not which bytes
it wrote: whoever puts others there (`dvc checkout` of an older commit, `dvc pull`, a copy, an edit) makes it believe
wrong artefacts and distrust right ones. `lineage.json` knows the bytes. `agree` makes the two say the same, and where
neither describes what is on disk, it has Snakemake make it again.

`compare` finds this out and writes nothing, for plans; `agree` writes it.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from snakemake.persistence import RECORD_FORMAT_VERSION, MetadataRecord
from snakemake.persistence.file import FilePersistence

from lib.core.cli import UserError, fail, place_of
from lib.core.escaping import escape_controls
from lib.core.files import canonical_json, sha256_text
from lib.core.paths import find_fault, path_below
from lib.provenance.folder_state import FolderStates
from lib.provenance.lineage import NAME, Job, Lineage, input_hashes, read_lineage, sha256_of, write_lineage
from lib.provenance.manifests import STAMP, manifest_path
from lib.workflow.metadata_overlay import NOT_KEPT, STATE, as_record, recorded, snakemake_records

_NOT_ARTEFACTS = {"logs", "timings", NAME}
# The record of an output that Snakemake is to make again.
UNKNOWN = {"params": [repr("bytes that no job wrote")], "record_format_version": RECORD_FORMAT_VERSION}


class Comparison(NamedTuple):
    """What Snakemake's metadata, a lineage and the disk say together.

    lineage: of what is on disk now. corrections: metadata of the outputs of which Snakemake's own is wrong.
    write: makes metadata and lineage on disk say so; raises `UserError` when it cannot.
    """

    lineage: Lineage
    corrections: dict[str, MetadataRecord]
    write: Callable[[], None]


def agree(results: Path, *, during_run: bool = False) -> Lineage:
    """Make Snakemake's metadata and the lineage of `results` agree with what is on disk, and return that lineage.

    The arguments are those of `compare`. Raises `UserError` when the disk is full or may not be written.
    """
    found = compare(results, during_run=during_run)
    found.write()
    return found.lineage


def compare(results: Path, *, during_run: bool = False) -> Comparison:
    """Compare Snakemake's metadata and the lineage of `results` with what is on disk, and write nothing.

    An output whose time is the one that Snakemake recorded is as Snakemake says: the lineage learns it. Any other is
    known by its bytes, and then Snakemake learns from the lineage how it was made, or it is unknown, and Snakemake
    is told so. A lineage that was not written here goes first wherever the bytes are those that it names: it came with
    results of another time, and the same bytes may have been made from other inputs here.

    during_run: called by the run that holds the lock of the folder; else nothing is done while another one does.
    Raises `UserError` when something cannot be read.
    """
    if not results.is_dir() or (not during_run and any((STATE / "locks").glob("*"))):
        return Comparison(_lineage(results), {}, lambda: None)
    with _explained(results):
        return _compare(results)


@contextmanager
def _explained(results: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        what = error.strerror or str(error)
        fail(what, "free some space or mend the permissions, then start again", at=place_of(error) or results)


def _compare(results: Path) -> Comparison:
    records = snakemake_records()
    old, new = _lineage(results), LineageBuilder()
    brought = _remembered(results) != sha256_of(results / NAME)
    # What was written before the lineage is in it as it is, unless it came from elsewhere.
    sealed = 0.0 if brought or not old.by_output else _written(results / NAME)
    corrections: dict[str, dict[str, Any]] = {}
    restored, unknown = [], []
    states = FolderStates(STATE / "lineage/folders.json")
    known_paths = set(recorded())
    waiting = {path for path in known_paths if Path(path).is_relative_to(results)} | set(_lying(results))
    waiting |= {path for path in old.by_output if path in known_paths or _may_lie_here(path, results)}
    while waiting:
        path = waiting.pop()
        if path in new.by_output or not Path(path).exists() or records._filter_incomplete_keys([path]):
            continue
        record, known = records._read_record(path), old.by_output.get(path)
        as_recorded = _as_recorded(path, records) and states.is_as_noted(path, _written(Path(path)))
        job = job_facts(record, known) if as_recorded and record is not None and record.rule is not None else None
        sha256 = known["outputs"][path] if known and job and _written(Path(path)) < sealed else None
        sha256 = sha256 or sha256_of(Path(path), trust_manifest=job is not None)
        if sha256 is None:
            fail("neither a file nor a folder, where a job writes one", "remove it", at=path)
        as_known = known is not None and known["outputs"][path] == sha256
        if job is not None and not (brought and as_known):
            new.add(path, job, sha256)
        elif known is not None and as_known:
            if job is None or job["record"] != known["record"]:
                corrections[path] = known["record"]
                restored.append(path)
            new.add(path, known, sha256)
        else:
            if not as_recorded:
                corrections[path] = UNKNOWN
                unknown.append(path)
            if known is not None:  # so that it is found to be broken until it is made again
                new.add(path, known, known["outputs"][path])
        if job is not None or as_known:
            states.note(path, _written(Path(path)))
        if path in new.by_output:  # outputs outside of the folder, such as rows that were fetched
            waiting |= input_hashes(new.by_output[path]).keys() & known_paths
    _tell(results, restored, sorted(unknown))
    lineage = Lineage(new.by_output)

    def write() -> None:
        with _explained(results):
            for path, facts in corrections.items():
                written = _stamped(Path(path))
                records._write_record(path, as_record(facts, written))
                states.date(path, written)
            if new.by_output and new.by_output != old.by_output:
                write_lineage(results, lineage)
            _remember(results)
            states.save()

    found = {path: as_record(facts, _written(Path(path))) for path, facts in corrections.items()}
    return Comparison(lineage, found, write)


def _remembered(results: Path) -> str | None:
    """sha256 of the lineage that this folder's Snakemake knows."""
    note = _note(results)
    return note.read_text(encoding="utf-8") if note.is_file() else None


def _remember(results: Path) -> None:
    note = _note(results)
    sha256 = sha256_of(results / NAME)
    if sha256 is not None and sha256 != _remembered(results):
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(sha256, encoding="utf-8")


def _note(results: Path) -> Path:
    return STATE / "lineage" / sha256_text(results.as_posix())[:16]


class LineageBuilder:
    """A lineage in the making: outputs of one job come together."""

    def __init__(self) -> None:
        self.by_output: dict[str, Job] = {}
        self._by_record: dict[str, Job] = {}

    def add(self, path: str, job: Job, sha256: str) -> None:
        key = canonical_json(job["record"])
        found = self._by_record.setdefault(key, {**job, "outputs": {}})
        found["outputs"][path] = sha256
        self.by_output[path] = found


def _as_recorded(path: str, records: FilePersistence) -> bool:
    """Whether an output was last written when Snakemake recorded it.

    Its time of a directory is that of a file inside, which stays when the other files are replaced: so none of these
    may be newer, and the manifest must be as recorded too. What is older, gone or swapped is found by `FolderStates`.
    """
    record, place = records._read_record(path), Path(path)
    if record is None or record.endtime is None or record.endtime != _written(place):
        return False
    if not place.is_dir():
        return True
    newest = max((file.lstat().st_mtime for file in place.rglob("*")), default=0.0)
    manifest = manifest_path(place)
    return newest <= record.endtime and (not manifest.exists() or _as_recorded(manifest.as_posix(), records))


def _written(path: Path) -> float:
    """When an output was written, in Unix time as Snakemake takes it."""
    stamp = path / STAMP
    return (stamp if stamp.exists() else path).lstat().st_mtime


def _stamped(path: Path) -> float:
    """The same, after what stands for the time of a directory was made newer than all that is in it."""
    if path.is_dir():
        (path / STAMP).touch()
    return _written(path)


def _lineage(results: Path) -> Lineage:
    """Return the lineage that is there; an empty one where there is none, or, with a line, one of another form."""
    return read_or_empty(lambda: read_lineage(results)) if (results / NAME).exists() else Lineage({})


def read_or_empty(read: Callable[[], Lineage]) -> Lineage:
    """Return what `read` returns; an empty lineage, and a line that says so, where it refuses."""
    try:
        return read()
    except UserError as error:
        print(f"lineage: {error}; until then it counts for nothing", file=sys.stderr)
        return Lineage({})


def _may_lie_here(path: str, results: Path) -> bool:
    """Return whether an output is looked at that a lineage names and Snakemake has no record of here.

    Raises `UserError` when it lies in the results folder behind a link: what came from elsewhere may lead anywhere.
    """
    name = path.removeprefix(f"{results.as_posix()}/")
    if name == path:  # such as rows that were fetched
        return find_fault(path) is None and Path(path).is_file()
    return find_fault(name) is None and path_below(results, name, at=results / NAME).exists()


def job_facts(record: MetadataRecord, before: Job | None) -> Job:
    """before: what the lineage says of the same output; its folders are not read again if it is the same job."""
    facts = {key: value for key, value in record.items() if key not in NOT_KEPT}
    if before is not None and before["record"] == facts:
        return before
    # Folders of ours have a manifest among the inputs.
    known = {*(facts["input_checksums"] or {}), *(path.removesuffix(".manifest.json") for path in facts["input"])}
    folders = {path for path in facts["input"] if Path(path).is_dir() and path not in known}
    sources = {path: sha256 for path in sorted(folders) if (sha256 := sha256_of(Path(path), trust_manifest=True))}
    return {"rule": facts["rule"], "outputs": {}, "record": facts, "sources": sources}


def _lying(folder: Path, inside: frozenset[Path] = frozenset()) -> Iterator[str]:
    """Yield files of a results folder, and directories that have a manifest, without what lies in these.

    Links to nothing, pipes, sockets and names that are no text are passed over.
    inside: folders that this one lies in, since a link may lead to one of them.
    """
    inside |= {folder.resolve()}
    for path in folder.iterdir():
        if path.name in _NOT_ARTEFACTS or path.name.startswith(".") or ".partial." in path.name:
            continue
        if find_fault(path.name):  # no job gives such a name
            continue
        if path.is_file() or (path.is_dir() and manifest_path(path).is_file()):
            yield path.as_posix()
        elif path.is_dir() and path.resolve() not in inside:
            yield from _lying(path, inside)


def _tell(results: Path, restored: Sequence[str], unknown: Sequence[str]) -> None:
    if restored:
        line = f"lineage: {len(restored)} files in {results} came from elsewhere; {NAME} tells how they were made"
        print(escape_controls(line), file=sys.stderr)
    for path in unknown[:3]:
        line = f"lineage: {path} is not what a job wrote there; it is made again when something needs it"
        print(escape_controls(line), file=sys.stderr)
    if len(unknown) > 3:
        print(f"lineage: the same of {len(unknown) - 3} more", file=sys.stderr)
