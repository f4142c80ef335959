"""Manifests: what a directory artifact is made of, hash by hash.

`<name>.manifest.json` stands beside the directory and is written last, so a directory without a
manifest is not finished. It holds no time, host, path or duration: equal bytes have equal manifests.
"""

from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lib.core.cli import fail
from lib.core.files import dump_canonical_json, hash_file, link_or_copy, publish_file
from lib.core.forms import INTEGER, SHA256, allow_object_of, allow_open_object, read_form
from lib.core.paths import check_name, resolve_below

RUN_CARD = "run_card.json"
STAMP = ".snakemake_timestamp"  # Snakemake puts one into every directory output; it is no part of it
_FORM = allow_open_object(
    {
        "files": allow_object_of(SHA256),
        "size_bytes": INTEGER,
        "inputs": allow_object_of(SHA256),
        "settings": allow_open_object(),
    }
)
_HINT = "delete the folder and its manifest, then run again"


def build_manifest_path(directory: Path) -> Path:
    return directory.with_name(f"{directory.name}.manifest.json")


def hash_files(directory: Path, known: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
    """Return sha256 of each file below `directory`, by path relative to it; those in `known` are not read."""
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.name != STAMP)
    names = {path.relative_to(directory).as_posix(): path for path in files}
    return {name: known.get(name) or hash_file(path) for name, path in names.items()}


def read_described_files(directory: Path, known: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
    """Return the files that a manifest names: all but the run card, which tells of time and machine."""
    return {name: sha256 for name, sha256 in hash_files(directory, known).items() if name != RUN_CARD}


def read_versions(packages: Iterable[str]) -> dict[str, str]:
    """Return installed versions, without the build's local part (`2.13.0+cpu` is 2.13.0)."""
    return {name: version(name).partition("+")[0] for name in sorted(packages)}


def write_manifest(
    directory: Path,
    *,
    inputs: dict[str, Path],
    settings: dict[str, Any],
    extra: dict[str, Any] | None = None,
    known: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write the manifest of a published `directory`.

    inputs: name to file; a directory input is named by its manifest, so hashes form a chain.
    settings: what the rule was given (parameters, seed, versions of the packages that matter).
    extra: facts about the artifact that its readers need. known: hashes of files that were just computed.
    """
    files = read_described_files(directory, known)
    value = {
        "files": files,
        "size_bytes": sum((directory / name).stat().st_size for name in files),
        "inputs": {name: hash_file(path) for name, path in inputs.items()},
        "settings": settings,
        **(extra or {}),
    }
    with publish_file(build_manifest_path(directory)) as partial:
        partial.write_text(dump_canonical_json(value) + "\n", encoding="utf-8")


def read_manifest(directory: Path) -> dict[str, Any]:
    """Return the manifest of `directory`. Raises `UserError` when a file that it names is missing, or a link.

    Files are not hashed again here: weights take long to hash, and every rule would pay for it.
    """
    path = build_manifest_path(directory)
    manifest = load_manifest(path)
    for name in manifest["files"]:
        if not resolve_below(directory, name, at=path).is_file():
            fail(f"{name} is missing from it", _HINT, at=directory)
    return manifest


def load_manifest(path: Path) -> dict[str, Any]:
    """Read a manifest whose folder may be gone. Raises `UserError` unless it has the form that `write_manifest` writes.

    Whoever made the results chose the names in it: none leads out of the folder.
    """
    manifest: dict[str, Any] = read_form(path, _FORM, _HINT)
    for name in manifest["files"]:
        check_name(name, at=path)
    return manifest


def link_files(directory: Path, names: Iterable[str], target: Path) -> None:
    """Put files of `directory` into the folder `target` as well, by names that a manifest states.

    Raises `UserError` for a name that leads out of either, and for a link.
    """
    for name in names:
        source, place = (
            resolve_below(folder, name, at=build_manifest_path(directory)) for folder in (directory, target)
        )
        place.parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(source, place)
