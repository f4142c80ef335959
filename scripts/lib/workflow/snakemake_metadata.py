"""Snakemake's metadata of finished jobs, compared with the results on disk before Snakemake builds the DAG.

Snakemake remembers in `.snakemake/` by which parameters and from which inputs it made each output, but not which bytes
it wrote. When others are put there (`dvc checkout` of an older commit, `dvc pull`, a copy, an edit), it trusts wrong
artifacts and makes right ones again. `lineage.json` has the hashes. Here the two are made to agree, and what neither of
them describes is made again.

`compare` finds what has to change and writes nothing, for plans; `agree` writes it.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from snakemake.persistence import RECORD_FORMAT_VERSION, MetadataRecord
from snakemake.persistence.file import FilePersistence

from lib.core.cli import UserError, fail
from lib.core.escaping import escape_controls
from lib.core.failures import find_place
from lib.core.files import dump_canonical_json, hash_text
from lib.core.paths import find_fault, resolve_below
from lib.provenance.folder_state import FolderStates
from lib.provenance.lineage import NAME, Job, Lineage, find_sha256, list_input_hashes, read_lineage, write_lineage
from lib.provenance.manifests import STAMP, build_manifest_path
from lib.workflow.metadata_overlay import NOT_KEPT, STATE, build_metadata, find_recorded_outputs, open_metadata

_NOT_ARTIFACTS = {"logs", "timings", NAME}
# The metadata of an output that Snakemake has to make again. Older versions gave it no rule, which `--report` dies of.
UNKNOWN = {"rule": "", "params": [repr("bytes that no job wrote")], "record_format_version": RECORD_FORMAT_VERSION}


class Comparison(NamedTuple):
    """The result of a comparison of Snakemake's metadata, a lineage, and the disk.

    lineage: of what is on disk now. corrections: metadata of the outputs for which Snakemake's own are wrong.
    write: writes corrections and lineage to disk; raises `UserError` when it cannot.
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

    An output with the time that Snakemake recorded is as its metadata say, and the lineage takes them over. Any other
    is looked up by its bytes: if the lineage has them, Snakemake takes over how they were made, else they count as
    unknown. A lineage that was not written here has priority for outputs with the bytes that it states: it came with
    results of another time, and the same bytes may have been made from other inputs here.

    during_run: called by the run that holds the lock of the folder; otherwise the comparison is left out while another
    run holds it.
    Raises `UserError` when something cannot be read.
    """
    if not results.is_dir() or (not during_run and any((STATE / "locks").glob("*"))):
        return Comparison(_lineage(results), {}, lambda: None)
    with _explain_errors(results):
        return _compare(results)


@contextmanager
def _explain_errors(results: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        what = error.strerror or str(error)
        fail(what, "free some space or mend the permissions, then start again", at=find_place(error) or results)


def _compare(results: Path) -> Comparison:
    records = open_metadata()
    old, new = _lineage(results), LineageBuilder()
    brought = _read_remembered(results) != find_sha256(results / NAME)
    # What is older than the lineage is in it unchanged, unless the lineage came from elsewhere.
    sealed = 0.0 if brought or not old.by_output else _find_written_time(results / NAME)
    corrections: dict[str, dict[str, Any]] = {}
    restored, unknown = [], []
    states = FolderStates(STATE / "lineage/folders.json")
    known_paths = set(find_recorded_outputs())
    waiting = {path for path in known_paths if Path(path).is_relative_to(results)} | set(_list_artifacts(results))
    waiting |= {path for path in old.by_output if path in known_paths or _may_lie_here(path, results)}
    while waiting:
        path = waiting.pop()
        if path in new.by_output or not Path(path).exists() or records._filter_incomplete_keys([path]):
            continue
        record, known = records._read_record(path), old.by_output.get(path)
        as_recorded = _as_recorded(path, records) and states.is_as_noted(path, _find_written_time(Path(path)))
        job = build_job(record, known) if as_recorded and record is not None and record.rule else None
        sha256 = known["outputs"][path] if known and job and _find_written_time(Path(path)) < sealed else None
        sha256 = sha256 or find_sha256(Path(path), trust_manifest=job is not None)
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
            if known is not None:  # so that `trace_lineage.py --verify` reports it until it is made again
                new.add(path, known, known["outputs"][path])
        if job is not None or as_known:
            states.note(path, _find_written_time(Path(path)))
        if path in new.by_output:  # outputs outside of the folder, such as rows that were fetched
            waiting |= list_input_hashes(new.by_output[path]).keys() & known_paths
    _tell(results, restored, sorted(unknown))
    lineage = Lineage(new.by_output)

    def write() -> None:
        with _explain_errors(results):
            for path, facts in corrections.items():
                written = _stamp_directory(Path(path))
                records._write_record(path, build_metadata(facts, written))
                states.date(path, written)
            if new.by_output and new.by_output != old.by_output:
                write_lineage(results, lineage)
            _remember(results)
            states.save()

    found = {path: build_metadata(facts, _find_written_time(Path(path))) for path, facts in corrections.items()}
    return Comparison(lineage, found, write)


def _read_remembered(results: Path) -> str | None:
    """Return the sha256 of the lineage that was last written or taken over here."""
    note = _note(results)
    return note.read_text(encoding="utf-8") if note.is_file() else None


def _remember(results: Path) -> None:
    note = _note(results)
    sha256 = find_sha256(results / NAME)
    if sha256 is not None and sha256 != _read_remembered(results):
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(sha256, encoding="utf-8")


def _note(results: Path) -> Path:
    return STATE / "lineage" / hash_text(results.as_posix())[:16]


class LineageBuilder:
    """A lineage that is being built: it groups outputs by the job that made them."""

    def __init__(self) -> None:
        self.by_output: dict[str, Job] = {}
        self._by_record: dict[str, Job] = {}

    def add(self, path: str, job: Job, sha256: str) -> None:
        key = dump_canonical_json(job["record"])
        found = self._by_record.setdefault(key, {**job, "outputs": {}})
        found["outputs"][path] = sha256
        self.by_output[path] = found


def _as_recorded(path: str, records: FilePersistence) -> bool:
    """Return whether an output was last written at the time that Snakemake recorded.

    The time of a directory is that of one file inside, which stays when other files are replaced. So none of these may
    be newer, and the manifest must be as recorded too. Older, missing or swapped files are found by `FolderStates`.
    """
    record, place = records._read_record(path), Path(path)
    if record is None or record.endtime is None or record.endtime != _find_written_time(place):
        return False
    if not place.is_dir():
        return True
    newest = max((file.lstat().st_mtime for file in place.rglob("*")), default=0.0)
    manifest = build_manifest_path(place)
    return newest <= record.endtime and (not manifest.exists() or _as_recorded(manifest.as_posix(), records))


def _find_written_time(path: Path) -> float:
    """Return the Unix time at which an output was written, by Snakemake's rules."""
    stamp = path / STAMP
    return (stamp if stamp.exists() else path).lstat().st_mtime


def _stamp_directory(path: Path) -> float:
    """Return the same, after the time stamp of a directory was made newer than all files in it."""
    if path.is_dir():
        (path / STAMP).touch()
    return _find_written_time(path)


def _lineage(results: Path) -> Lineage:
    """Return the lineage on disk; an empty one when there is none, or, with a warning, when it is damaged."""
    return read_or_empty(lambda: read_lineage(results)) if (results / NAME).exists() else Lineage({})


def read_or_empty(read: Callable[[], Lineage]) -> Lineage:
    """Return what `read` returns, or an empty lineage, with a warning, when it raises `UserError`."""
    try:
        return read()
    except UserError as error:
        print(f"lineage: {error}; until then it counts for nothing", file=sys.stderr)
        return Lineage({})


def _may_lie_here(path: str, results: Path) -> bool:
    """Return whether to look at an output that a lineage names and Snakemake has no metadata of.

    Raises `UserError` when it is in the results folder behind a link: what came from elsewhere may lead anywhere.
    """
    name = path.removeprefix(f"{results.as_posix()}/")
    if name == path:  # such as rows that were fetched
        return find_fault(path) is None and Path(path).is_file()
    return find_fault(name) is None and resolve_below(results, name, at=results / NAME).exists()


def build_job(record: MetadataRecord, before: Job | None) -> Job:
    """Return a job of the lineage from Snakemake's metadata of one of its outputs.

    before: the job that the lineage has for the same output; if it is the same, its folders are not read again.
    """
    facts = {key: value for key, value in record.items() if key not in NOT_KEPT}
    if before is not None and before["record"] == facts:
        return before
    # Folders of ours have a manifest among the inputs.
    known = {*(facts["input_checksums"] or {}), *(path.removesuffix(".manifest.json") for path in facts["input"])}
    folders = {path for path in facts["input"] if Path(path).is_dir() and path not in known}
    sources = {path: sha256 for path in sorted(folders) if (sha256 := find_sha256(Path(path), trust_manifest=True))}
    return {"rule": facts["rule"], "outputs": {}, "record": facts, "sources": sources}


def _list_artifacts(folder: Path, inside: frozenset[Path] = frozenset()) -> Iterator[str]:
    """Yield files of a results folder, and directories that have a manifest, without what lies in these.

    Links to nothing, pipes, sockets and names that are no text are passed over.
    inside: folders that this one lies in, since a link may lead to one of them.
    """
    inside |= {folder.resolve()}
    for path in folder.iterdir():
        if path.name in _NOT_ARTIFACTS or path.name.startswith(".") or ".partial." in path.name:
            continue
        if find_fault(path.name):  # no job gives such a name
            continue
        if path.is_file() or (path.is_dir() and build_manifest_path(path).is_file()):
            yield path.as_posix()
        elif path.is_dir() and path.resolve() not in inside:
            yield from _list_artifacts(path, inside)


def _tell(results: Path, restored: Sequence[str], unknown: Sequence[str]) -> None:
    if restored:
        line = f"lineage: {len(restored)} files in {results} came from elsewhere; {NAME} tells how they were made"
        print(escape_controls(line), file=sys.stderr)
    for path in unknown[:3]:
        line = f"lineage: {path} is not what a job wrote there; it is made again when something needs it"
        print(escape_controls(line), file=sys.stderr)
    if len(unknown) > 3:
        print(f"lineage: the same of {len(unknown) - 3} more", file=sys.stderr)
