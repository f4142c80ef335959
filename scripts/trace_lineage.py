"""Lead an artifact or a number back to raw rows, code, environment and base weights, hash by hash.

    python scripts/trace_lineage.py results/model
    python scripts/trace_lineage.py model.test.accuracy
    python scripts/trace_lineage.py --verify

Each line is a file or folder, its sha256, whether its bytes are still those that its job wrote, and the rule of that
job; what it was made from stands below it, further to the right. `--verify` reads every artifact of the results folder
and exits 1 at the first thing that does not hold: bytes, parameters, the lineage itself, files that no job wrote, logs
and timings that are gone. Nothing is written.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lib.core.cli import call_or_exit, fail
from lib.core.escaping import escape_controls
from lib.core.files import read_json
from lib.provenance.lineage import (
    NAME,
    Broken,
    Lineage,
    find_broken_links,
    find_sha256,
    find_sources,
    is_code,
    list_input_hashes,
    read_lineage,
    read_settings,
)
from lib.workflow.verification import (
    find_edited_jobs,
    find_foreign_entries,
    find_missing_logs,
    find_other_folder,
    find_other_settings,
    is_sealed,
)

_SHOWN = 12  # digits of a hash


def main(args: argparse.Namespace) -> None:
    if args.verify:
        print(escape_controls(verify(args.results)))
        return
    path, value = resolve(args.what, args.results)
    results = next((place for place in (path, *path.parents) if (place / "lineage.json").is_file()), args.results)
    lineage = read_lineage(results)
    start = find_artifact(path, lineage)
    if value is not None:
        print(escape_controls(f"{args.what} = {value}, from {start}"))
    for line in draw_tree(lineage, start):
        print(escape_controls(line))


def verify(results: Path) -> str:
    """Check every artifact of a results folder. Raises `UserError` at the first link that does not hold."""
    lineage = read_lineage(results)
    if not any(Path(path).is_relative_to(results) for path in lineage.by_output):
        results = Path(os.path.relpath(results))
    for broken in find_all_broken(lineage, results):
        fail(broken.what, broken.hint, at=broken.path)
    jobs, found = list(lineage.jobs()), sorted(find_sources(lineage))
    said = (
        f"{len(lineage.by_output)} artifacts from {len(jobs)} jobs verified, back to {len(found)} sources:"
        f" {', '.join(found)}"
    )
    return (
        said if is_sealed(results) else f"{said}\n{results / NAME} has no hashes of its own: an older version wrote it"
    )


def find_all_broken(lineage: Lineage, results: Path) -> Iterator[Broken]:
    """Yield what does not hold: the lineage itself, then the bytes, then what is missing or lies there besides."""
    yield from find_other_folder(lineage, results)
    yield from find_edited_jobs(results)
    yield from find_broken_links(lineage, sorted(lineage.by_output))
    yield from find_other_settings(lineage)
    yield from find_foreign_entries(lineage, results)
    yield from find_missing_logs(lineage, results)


def resolve(what: str, results: Path) -> tuple[Path, Any]:
    """Return a path as it is; a key of the summary becomes the file that it was taken from, and its value.

    Raises `UserError` for what is neither.
    """
    if Path(what).exists() or "/" in what:
        return Path(what), None
    file = results / "summary.json"
    value: Any = read_json(file)
    keys = what.split(".")
    for place, key in enumerate(keys):
        if isinstance(value, dict) and key in value:
            value = value[key]
            continue
        known = ", ".join(value) if isinstance(value, dict) else "nothing below it"
        fail(f"no {'.'.join(keys[: place + 1])} in it", f"there is {known}", at=file)
    return find_source(keys, results), value


def find_source(keys: Sequence[str], results: Path) -> Path:
    """Return the file that a part of the summary was taken from; the summary itself for what it computed."""
    match keys:
        case ["data", *_]:
            return results / "data/audit.json"
        case ["baselines", *_]:
            return results / "scores/baselines.json"
        case ["base", ("validation" | "test") as split, *_]:
            return results / f"scores/base.{split}.json"
        case ["runs", run, "training", *_]:
            return results / f"runs/{run}/training.json"
        case ["runs", run, "merge", *_]:
            return results / f"runs/{run}/merge.json"
        case ["runs", run, "stages", stage, "validation", metric] if metric not in ("flips", "kl", "against"):
            return results / f"scores/{run}/{stage}.validation.json"
        case ["selected" | "ranking", *_]:
            return results / "selection.json"
        case ["model", "test", metric] if metric not in ("flips", "kl", "against"):
            return results / "scores/model.test.json"
        case ["gate", *_]:
            return results / "gate.json"
    return results / "summary.json"


def find_artifact(path: Path, lineage: Lineage) -> str:
    """Return the artifact that `path` is or lies in. Raises `UserError` when no job made it."""
    for place in (path, *path.parents):
        if place.as_posix() in lineage.by_output:
            return place.as_posix()
    hint = "name a file or folder that docs/reading-the-report.md lists, by its path from this folder"
    fail("no job of this workflow made it", hint, at=path)


def draw_tree(lineage: Lineage, start: str) -> Iterator[str]:
    """Yield lines, depth first; what a job was given is not repeated below its other outputs."""
    hashes: dict[str, str | None] = {}
    shown: set[int] = set()

    def now(path: str) -> str | None:
        if path not in hashes:
            hashes[path] = find_sha256(Path(path))
        return hashes[path]

    def lines(path: str, then: str | None, depth: int) -> Iterator[str]:
        job, found = lineage.by_output.get(path), now(path)
        made = job["outputs"][path] if job else then
        state = "ok" if found == made else "MISSING" if found is None else "CHANGED"
        if found is None and made is None:
            state = "dropped after use"  # a folder that `keep: selected` removed; its manifest stands below
        by = job["rule"] if job else "source"
        repeated = ", see above" if job and id(job) in shown else ""
        label = "  " * depth + path
        yield f"{label:<64} {(found or made or '')[:_SHOWN]:<{_SHOWN}}  {state}  {by}{repeated}"
        if job is None or repeated:
            return
        shown.add(id(job))
        inputs = list_input_hashes(job)
        code = {name: then for name, then in inputs.items() if is_code(name)}
        changed = sorted(name for name, then in code.items() if now(name) != then)
        about = f"CHANGED: {', '.join(changed)}" if changed else "ok"
        yield "  " * (depth + 1) + f"code: {len(code)} files, {about}" + format_versions(job)
        for name, sha256 in inputs.items():
            if name not in code:
                yield from lines(name, sha256, depth + 1)

    yield from lines(start, None, 0)


def format_versions(job: Any) -> str:
    found = read_settings(job).get("versions")
    if not isinstance(found, dict) or not found:
        return ""
    return "; " + ", ".join(f"{name} {version}" for name, version in found.items())


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("what", nargs="?", metavar="PATH|KEY", help="an artifact, or a key of summary.json")
    arguments.add_argument("--verify", action="store_true", help="check everything, exit 1 at the first broken link")
    arguments.add_argument("--results", type=Path, default=Path("results"), help="default: results")
    given = arguments.parse_args()
    if (given.what is None) != given.verify:
        arguments.error("give an artifact, a key of summary.json, or --verify")
    try:
        call_or_exit(main, given)
    except BrokenPipeError:
        sys.exit(141)
