"""Base models and tokenizers that were imported before: one import for all results folders of a working directory.

`work/base/KEY/` holds what one version of the code makes of one content, as an artifact with its manifest. Results
folders get hard links to its files, which are read-only, or copies where the file system has no links.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lib.core.cli import UserError, fail, report_progress
from lib.core.files import dump_canonical_json, hash_text, publish_directory
from lib.core.progress_lock import hold_progress
from lib.provenance.code_closure import find_code_closure, hash_code
from lib.provenance.manifests import build_manifest_path, hash_files, link_files, load_manifest, write_manifest

_READ_ONLY = 0o444

Content = Mapping[str, Any] | None  # None: not known before it is fetched
Build = Callable[[Path], dict[str, Any]]  # fills a folder and returns the facts for its manifest


class Entry(NamedTuple):
    """A folder in the cache, and the content of the source that it is for. identify: tells that content again."""

    folder: Path
    content: Content
    identify: Callable[[], Content]


class Imported(NamedTuple):
    """Facts for the manifest, and the sha256 of each file."""

    facts: dict[str, Any]
    files: dict[str, str]


def find_entry(
    cache: Path | None, name: str, identify: Callable[[], Content], versions: Mapping[str, str], script: Path
) -> Entry | None:
    """Return the entry for what `script` makes of a source; None where nothing is cached.

    name: of the folder, `model` or `tokenizer`. versions: of the packages that the result depends on.
    """
    if cache is None or (content := identify()) is None:
        return None
    code = hash_code((script, *find_code_closure(script)))
    parts = {"content": content, "versions": versions, "code": code}
    return Entry(cache / hash_text(dump_canonical_json(parts))[:16] / name, content, identify)


def publish_imported(
    output: Path, entry: Entry | None, build: Build, check: Callable[[Imported], None] = lambda _: None
) -> Imported:
    """Publish the folder `output`, linked from the cache, where it is built first unless it is there and whole.

    check: raises `UserError` when what was imported does not fit; nothing is published then.
    """
    if entry is None:
        with publish_directory(output, mode=_READ_ONLY) as folder:
            imported = Imported(build(folder), hash_files(folder))
            check(imported)
        return imported
    with hold_progress(entry.folder.parent):  # another run may be importing the same model
        imported = _read_entry(entry.folder) or _build_entry(entry, build)
        check(imported)
        with publish_directory(output, mode=_READ_ONLY) as folder:
            link_files(entry.folder, imported.files, folder)
    return imported


def _read_entry(folder: Path) -> Imported | None:
    """Return what the cache holds, every file checked by its hash; None where it is missing or was changed."""
    path = build_manifest_path(folder)
    if not path.exists():
        return None
    try:
        manifest = load_manifest(path)
        if manifest["files"] != hash_files(folder):
            raise UserError("its files are not those of its manifest")
        facts: dict[str, Any] = manifest["facts"]
    except (UserError, KeyError) as error:
        report_progress(f"{folder} is not used ({error}): importing again")
        return None
    os.utime(path)  # `make clean-work DAYS=` keeps what is in use
    return Imported(facts, manifest["files"])


def _build_entry(entry: Entry, build: Build) -> Imported:
    with publish_directory(entry.folder, mode=_READ_ONLY) as folder:
        facts = build(folder)
        files = hash_files(folder)
        if entry.identify() != entry.content:
            fail("the base model changed while it was imported", "start again")
    write_manifest(entry.folder, inputs={}, settings={}, extra={"facts": facts}, known=files)
    return Imported(facts, files)
