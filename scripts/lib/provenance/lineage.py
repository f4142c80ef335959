"""Where every artifact came from: `lineage.json` of a results folder, and what it says about the bytes on disk.

It has each job whose outputs are there: rule, parameters, code, the sha256 of every input when the job ended and of
every output. It is written by the Snakefile after a run (`lib.workflow.snakemake_metadata`) and travels with the
results, so that a folder that was pulled, copied or checked out still tells how it was made.
"""

import ast
import json
import re
from collections.abc import Callable, Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypedDict

from lib.core.cli import fail
from lib.core.files import dump_canonical_json, hash_file, hash_once, hash_text, parse_json, publish_file
from lib.core.forms import (
    ANYTHING,
    INTEGER,
    SHA256,
    TEXT,
    allow_null,
    allow_object_of,
    allow_open_object,
    check_form,
    list_of,
)
from lib.core.paths import check_source_path
from lib.provenance.manifests import build_manifest_path, load_manifest

NAME = "lineage.json"
_RECORD = allow_open_object(
    {"record_format_version": INTEGER},
    {
        "input": allow_null(list_of(TEXT)),
        "input_checksums": allow_null(allow_object_of(TEXT)),
        "params": allow_null(list_of(ANYTHING)),
        **dict.fromkeys(("rule", "code", "container_img_url", "software_stack_hash"), allow_null(TEXT)),
    },
)
_JOB = allow_open_object(
    {"rule": TEXT, "outputs": allow_object_of(SHA256), "record": _RECORD, "sources": allow_object_of(SHA256)}
)
_FORM = allow_open_object({"jobs": list_of(_JOB)})
_DEEPEST = 200  # jobs from the first to the last; the workflow has about 20
_HINT = "remove it and run the workflow again"


class Job(TypedDict):
    """One job. outputs: sha256 by path, as `find_sha256` has it.

    record: what Snakemake keeps of it, the same for all its outputs; `input_checksums` are in there. sources: sha256 of
    the folders that the job read and no job wrote, where the record has none (`lib.workflow.input_content` has it keep
    them).
    """

    rule: str
    outputs: dict[str, str]
    record: dict[str, Any]
    sources: dict[str, str]


class Lineage(NamedTuple):
    """Every job by each of its outputs' paths."""

    by_output: dict[str, Job]

    def jobs(self) -> Iterator[Job]:
        """Yield each job once."""
        seen = set()
        for job in self.by_output.values():
            if id(job) not in seen:
                seen.add(id(job))
                yield job

    def sha256(self, path: str) -> str | None:
        """Return the sha256 of an output as its job wrote it; None for what no job wrote."""
        job = self.by_output.get(path)
        return job["outputs"][path] if job else None


def read_lineage(results: Path) -> Lineage:
    """Return the lineage of a results folder. Raises `UserError` when it has none, or one of another form."""
    file = results / NAME
    if not file.is_file():
        fail("no such file", "run the workflow: it writes this file when it ends", at=file)
    return parse_lineage(file.read_bytes(), file)


def parse_lineage(content: bytes, at: str | Path) -> Lineage:
    """Return the lineage in the bytes of a `lineage.json`, which travels with results and may be anybody's.

    Its paths are compared, and read where they lie; who writes because of one asks where it leads first.
    Raises `UserError` unless it has the form that `write_lineage` writes.
    """
    try:
        value = parse_json(content.decode("utf-8"))
    except ValueError:
        fail("not JSON", _HINT, at=at)
    jobs: list[Job] = check_form(value, _FORM, at=at, hint=_HINT)["jobs"]
    for job in jobs:
        _check_job(job, at)
    lineage = Lineage({path: job for job in jobs for path in job["outputs"]})
    _check_order(lineage, at)
    return lineage


def _check_job(job: Job, at: str | Path) -> None:
    record = job["record"]
    if not re.fullmatch(r"\w+", job["rule"]):
        fail(f"{ascii(job['rule'])[:80]} is not the name of a rule", _HINT, at=at)
    for paths in (job["outputs"], job["sources"], record.get("input") or [], record.get("input_checksums") or {}):
        for path in paths:
            check_source_path(path, at=at)


def _check_order(lineage: Lineage, at: str | Path) -> None:
    """Raise `UserError` when a job was made from its own output, or by more jobs in a row than any workflow has."""
    made_from = {
        id(job): {id(lineage.by_output[path]) for path in list_input_hashes(job) if path in lineage.by_output}
        for job in lineage.jobs()
    }
    depth: dict[int, int] = {}
    try:
        for key in TopologicalSorter(made_from).static_order():
            depth[key] = 1 + max((depth[before] for before in made_from[key]), default=0)
    except CycleError:
        fail("a job in it has its own output as input", _HINT, at=at)
    if max(depth.values(), default=0) > _DEEPEST:
        fail(f"more than {_DEEPEST} of its jobs follow one upon the other", _HINT, at=at)


def write_lineage(results: Path, lineage: Lineage) -> None:
    """Write it atomically."""
    with publish_file(results / NAME) as partial:
        partial.write_text(format_lineage(lineage), encoding="utf-8")


def format_lineage(lineage: Lineage) -> str:
    """Return a job a line, each after those that made its inputs, and their hashes: equal runs have equal bytes."""
    text = {id(job): format_job(job) for job in lineage.jobs()}
    jobs = {id(job): job for job in sorted(lineage.jobs(), key=lambda job: text[id(job)])}
    made_from = {
        key: [id(lineage.by_output[path]) for path in sorted(list_input_hashes(job)) if path in lineage.by_output]
        for key, job in jobs.items()
    }
    lines = [text[key] for key in TopologicalSorter(made_from).static_order()]
    hashes = [f'"{hash_text(line)}"' for line in lines]
    jobs_part, hashes_part = ",\n".join(lines), ",\n".join(hashes)
    return f'{{"jobs": [\n{jobs_part}\n],\n"sha256": [\n{hashes_part}\n]}}\n'


def format_job(job: Job) -> str:
    """Return a job as `lineage.json` has it, in one line."""
    return json.dumps(job, ensure_ascii=False, sort_keys=True)


def find_sha256(
    path: Path, *, trust_manifest: bool = False, hash_file: Callable[[Path], str] = hash_file
) -> str | None:
    """Return the sha256 of a file, or of the names and hashes in a directory; None when there is nothing.

    Hidden files do not count: no rule reads `.git`, `.cache` or `.DS_Store` of a model, and other programs change them.

    trust_manifest: take the hashes that the directory's manifest names instead of reading weights again, for a
    directory that was written just now. hash_file: what reads a file.
    """
    if path.is_file():
        return hash_file(path)
    if not path.is_dir():
        return None
    known: dict[str, str] = {}
    if trust_manifest and build_manifest_path(path).is_file():
        known = load_manifest(build_manifest_path(path))["files"]
    files = list_visible_files(path)
    return hash_text(dump_canonical_json({name: known.get(name) or hash_file(file) for name, file in files.items()}))


def list_visible_files(folder: Path) -> dict[str, Path]:
    """Return all files below a folder but hidden ones, by path relative to it."""
    names = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*"))}
    return {name: path for name, path in names.items() if not is_hidden(name) and path.is_file()}


def is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in PurePosixPath(name).parts)


def list_input_hashes(job: Job) -> dict[str, str | None]:
    """Return sha256 of each input of a job at the time, by path; None for folders of ours, whose manifests are inputs
    too.
    """
    checksums = (job["record"].get("input_checksums") or {}) | job["sources"]
    return {path: (checksums.get(path) or "").rpartition(":")[2] or None for path in job["record"].get("input") or []}


def is_code(path: str) -> bool:
    return path.endswith((".py", ".j2"))


def read_settings(job: Job) -> dict[str, Any]:
    """Return what the rule was given: its own sections of the configuration, the seed, the versions that matter."""
    for text in job["record"].get("params") or []:
        try:
            value = json.loads(ast.literal_eval(text))
        except (TypeError, ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(value, dict):
            return value
    return {}


def find_sources(lineage: Lineage) -> set[str]:
    """Return rows and weights that no job made."""
    made = lineage.by_output.keys()
    found = {path for path in walk(lineage, made) if path not in made}
    return {path for path in found if f"{path}.manifest.json" not in made}  # weights that were dropped after use


class Broken(NamedTuple):
    """A link that does not hold: the path, what is wrong with it, and what to do."""

    path: str
    what: str
    hint: str


def find_broken_links(lineage: Lineage, paths: Iterable[str]) -> Iterator[Broken]:
    """Yield what does not hold on the way from `paths` back to their sources; every file is hashed once.

    A link holds when an output has the bytes that its job wrote, and each input of the job has the bytes that the
    job read. Outputs that were dropped after use (`keep: selected`) are known by their manifests.
    """
    hashes: dict[str, str | None] = {}
    hash_file = hash_once()

    def now(path: str) -> str | None:
        if path not in hashes:
            hashes[path] = find_sha256(Path(path), hash_file=hash_file)
        return hashes[path]

    for path in walk(lineage, paths):
        job = lineage.by_output.get(path)
        made = lineage.sha256(path)
        if job is None or made is None:
            continue
        if now(path) != made:
            wrong = "is missing" if now(path) is None else f"has sha256 {now(path)}, and not {made}"
            yield Broken(path, f"{wrong}, which {job['rule']} wrote", "run the workflow: it makes it again")
            continue
        yield from _manifest(path, job)
        for name, then in list_input_hashes(job).items():
            if then is None or then == now(name):
                continue
            if name in lineage.by_output and now(name) != lineage.sha256(name):
                continue  # broken itself, which is said in its own turn
            wrong = "is missing" if now(name) is None else "has changed since"
            use = f"{path} was made with it"
            yield Broken(name, f"{wrong}: {use} when its sha256 was {then}", "run the workflow, or bring it back")


def _manifest(path: str, job: Job) -> Iterator[Broken]:
    """Yield inputs that a manifest names and the job had not."""
    if not path.endswith(".manifest.json"):
        return
    manifest = load_manifest(Path(path))
    had = set(list_input_hashes(job).values())
    for name, sha256 in manifest["inputs"].items():
        if sha256 not in had:
            yield Broken(path, f"names an input {name} with sha256 {sha256}, which {job['rule']} did not have", "")


def walk(lineage: Lineage, paths: Iterable[str]) -> Iterator[str]:
    """Yield `paths` and everything that they were made from, each once, code left out."""
    seen: set[str] = set()
    waiting = list(paths)[::-1]
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        yield path
        if job := lineage.by_output.get(path):
            waiting += [name for name in sorted(list_input_hashes(job), reverse=True) if not is_code(name)]
