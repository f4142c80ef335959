"""A base model is imported once for all results folders: what is linked is what an import would have written."""

import os
import shutil
import stat
import threading
from pathlib import Path

import pytest

from lib.core.cli import UserError
from lib.models import import_checkpoint
from lib.models.base_cache import Entry, Imported, find_entry, publish_imported
from lib.provenance.manifests import build_manifest_path, read_manifest
from support.fetching import fetch, parameters
from support.paths import SCRIPTS


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "work" / "base"


def entry(cache: Path, content: str = "a", now: str | None = None) -> Entry:
    """A new entry for this content, which is `now` another one."""
    contents = iter([{"x": content}, {"x": now or content}])
    found = find_entry(cache, "model", lambda: next(contents), {}, SCRIPTS / "fetch_model.py")
    assert found is not None
    return found


def write(folder: Path) -> dict:
    (folder / "a.txt").write_text("a")
    return {"parameters": 1}


def never(folder: Path) -> dict:
    raise AssertionError("imported again")


def test_a_model_is_imported_once(tiny_llama, cache, tmp_path, monkeypatch):
    count = parameters(tiny_llama)
    alone = fetch({"path": "m"}, tiny_llama, tmp_path / "alone/base", count)
    fetch({"path": "m"}, tiny_llama, tmp_path / "one/base", count, cache)
    monkeypatch.setattr(import_checkpoint, "import_small_files", never)
    moved = Path(shutil.copytree(tiny_llama, tmp_path / "moved"))
    found = fetch({"path": "m"}, moved, tmp_path / "two/base", count, cache)
    assert found == alone == read_manifest(tmp_path / "one/base")
    for name in found["files"]:
        one, two = tmp_path / "one/base" / name, tmp_path / "two/base" / name
        assert one.samefile(two)
        assert not one.samefile(moved / name)
        assert stat.S_IMODE(one.stat().st_mode) == 0o444
    with pytest.raises(UserError, match="write base_model.parameters: "):
        fetch({"path": "m"}, moved, tmp_path / "three/base", 2 * count, cache)
    assert not list((tmp_path / "three").glob("base*"))


def test_what_was_changed_is_not_linked(cache, tmp_path, capfd):
    publish_imported(tmp_path / "one", entry(cache), write)
    (tmp_path / "one/a.txt").chmod(0o644)
    (tmp_path / "one/a.txt").write_text("b")  # in the cache, too: it is one file
    publish_imported(tmp_path / "two", entry(cache), write)
    assert (tmp_path / "two/a.txt").read_text() == "a"
    assert "is not used (its files are not those of its manifest): importing again" in capfd.readouterr().err
    for broken in ("{", "{}", '{"files": {}, "inputs": {}, "settings": {}, "size_bytes": 0}'):
        build_manifest_path(entry(cache).folder).write_text(broken)
        publish_imported(tmp_path / "two", entry(cache), write)
        assert (tmp_path / "two/a.txt").read_text() == "a"


def test_another_content_version_or_code_is_another_entry(cache):
    script = SCRIPTS / "fetch_model.py"
    places = {
        find_entry(cache, "model", lambda content=content: content, versions, code).folder
        for content in ({"x": "a"}, {"x": "b"})
        for versions in ({}, {"transformers": "5"})
        for code in (script, SCRIPTS / "fetch_tokenizer.py")
    }
    assert len(places) == 8
    assert find_entry(cache, "model", lambda: None, {}, script) is None, "known only once it is fetched"
    assert find_entry(None, "model", lambda: {"x": "a"}, {}, script) is None


def test_a_source_that_changes_while_it_is_imported(cache, tmp_path):
    with pytest.raises(UserError, match="the base model changed while it was imported; start again"):
        publish_imported(tmp_path / "one", entry(cache, "a", now="b"), write)
    assert not list(cache.glob("*/model*"))
    assert not list(tmp_path.glob("one*"))


def test_two_runs_at_once_import_once(cache, tmp_path):
    inside, go_on, builds = threading.Event(), threading.Event(), []

    def build(folder: Path) -> dict:
        builds.append(folder)
        inside.set()
        assert go_on.wait(60)
        return write(folder)

    runs = [
        threading.Thread(target=publish_imported, args=(tmp_path / name, entry(cache), build))
        for name in ("one", "two")
    ]
    for run in runs:
        run.start()
    assert inside.wait(60)
    go_on.set()
    for run in runs:
        run.join()
    assert len(builds) == 1
    assert (tmp_path / "one/a.txt").samefile(tmp_path / "two/a.txt")


def test_a_file_system_without_links_gets_copies(cache, tmp_path, monkeypatch):
    def no_links(*args: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", no_links)
    found = publish_imported(tmp_path / "one", entry(cache), write)
    assert found == Imported({"parameters": 1}, found.files)
    assert (tmp_path / "one/a.txt").read_text() == "a"
    assert stat.S_IMODE((tmp_path / "one/a.txt").stat().st_mode) == 0o444


def test_files_that_are_linked_on_stay_read_only(cache, tmp_path):
    """As a merged model has the tokenizer of its base."""
    from lib.core.files import link_or_copy, publish_directory

    publish_imported(tmp_path / "one", entry(cache), write)
    with publish_directory(tmp_path / "merged") as folder:
        link_or_copy(tmp_path / "one/a.txt", folder / "a.txt")
        (folder / "b.txt").touch(mode=0o600)
    assert stat.S_IMODE((tmp_path / "one/a.txt").stat().st_mode) == 0o444
    assert stat.S_IMODE((tmp_path / "merged/b.txt").stat().st_mode) == 0o644
