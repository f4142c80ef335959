"""The storage plugin as it is, and as the workflow mends it (`scripts/lib/workflow/azure_storage_plugin.py`)."""

import asyncio
import importlib.util
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import snakemake_storage_plugin_azure as installed
from snakemake.io import IOCache, IOFile, _IOFile
from snakemake.jobs import Job
from snakemake.persistence.file import FilePersistence

from lib.core.files import hash_file
from lib.provenance.lineage import Lineage, find_sha256, format_lineage
from lib.workflow.azure_storage_plugin import list_once, mend_storage_plugin
from lib.workflow.remote_storage import sync_metadata_before_run

from .azurite import ACCOUNT, environment_of_jobs
from .conftest import write_files

pytestmark = [pytest.mark.azure, pytest.mark.usefixtures("in_storage")]


def plugin_as_it_is() -> ModuleType:
    """A second copy of the plugin, which nothing has mended."""
    spec = importlib.util.spec_from_file_location("plugin_as_it_is", installed.__file__)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks itself up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def as_it_is() -> ModuleType:
    return plugin_as_it_is()


@pytest.fixture
def mended() -> ModuleType:
    mend_storage_plugin()
    return installed


def stored(module: ModuleType, container: str, path: str, local: Path):
    provider = module.StorageProvider(local, logging.getLogger(), settings=module.StorageProviderSettings(ACCOUNT))
    return module.StorageObject(f"az://{container}/{path}", keep_local=False, retrieve=True, provider=provider)


def test_a_directory_is_found(as_it_is, mended, container, tmp_path):
    write_files(tmp_path / "here" / container / "model", a="1", b="2")
    stored(mended, container, "model", tmp_path / "here").store_object()
    assert not stored(as_it_is, container, "model", tmp_path / "new").exists(), (
        "the plugin has learned it: mend it less"
    )
    assert stored(mended, container, "model", tmp_path / "new").exists()
    assert not stored(mended, container, "mod", tmp_path / "new").exists(), "a beginning of a name is no directory"
    assert not stored(mended, "no-such-container", "model", tmp_path / "new").exists()


def test_a_new_directory_replaces_the_old_one(as_it_is, mended, azurite, container, tmp_path):
    for module, left in ((as_it_is, {"model/a", "model/old-shard"}), (mended, {"model/a"})):
        write_files(tmp_path / "old" / container / "model", **{"a": "1", "old-shard": "2"})
        stored(module, container, "model", tmp_path / "old").store_object()
        write_files(tmp_path / "new" / container / "model", a="3")
        stored(module, container, "model", tmp_path / "new").store_object()
        assert set(azurite.blobs(container)) == left
    assert azurite.read(container, "model/a") == b"3"


def test_a_new_directory_takes_its_old_manifest_away(mended, azurite, container, tmp_path):
    azurite.put(container, {"model.manifest.json": b"{}", "model-2.manifest.json": b"{}"})
    write_files(tmp_path / container / "model", a="1")
    stored(mended, container, "model", tmp_path).store_object()
    assert set(azurite.blobs(container)) == {"model/a", "model-2.manifest.json"}


def test_a_directory_is_removed_and_its_neighbors_are_not(as_it_is, mended, azurite, container, tmp_path):
    azurite.put(container, {"model/a": b"1", "model/deep/b": b"2", "model-2/a": b"3", "model.json": b"4"})
    stored(as_it_is, container, "model", tmp_path).remove()
    assert len(azurite.blobs(container)) == 4, "the plugin has learned it: mend it less"
    stored(mended, container, "model", tmp_path).remove()
    assert set(azurite.blobs(container)) == {"model-2/a", "model.json"}
    stored(mended, container, "model.json", tmp_path).remove()
    stored(mended, container, "model.json", tmp_path).remove()
    assert set(azurite.blobs(container)) == {"model-2/a"}


def test_a_directory_comes_back_as_it_went(mended, container, tmp_path):
    folder = write_files(tmp_path / "here" / container / "model", a="1")
    write_files(folder / "deep", b="2")
    stored(mended, container, "model", tmp_path / "here").store_object()
    write_files(tmp_path / "there" / container / "model", stale="3")
    there = stored(mended, container, "model", tmp_path / "there")
    there.retrieve_object()
    files = {
        path.relative_to(there.local_path()).as_posix() for path in there.local_path().rglob("*") if path.is_file()
    }
    assert files == {"a", "deep/b"}
    assert there.size() == 2


def test_each_blob_tells_its_sha256(mended, azurite, container, tmp_path):
    folder = write_files(tmp_path / container, **{"rows.jsonl": "{}\n"})
    stored(mended, container, "rows.jsonl", tmp_path).store_object()
    blob = azurite.client().get_blob_client(container, "rows.jsonl").get_blob_properties()
    assert blob.metadata == {"sha256": hash_file(folder / "rows.jsonl")}


def test_what_is_not_there_is_said_at_once(mended, container, tmp_path):
    missing = stored(mended, container, "nothing", tmp_path)
    started = time.monotonic()
    for ask in (missing.size, missing.mtime, missing.retrieve_object):
        with pytest.raises(FileNotFoundError) as error:
            ask()
        assert error.value.filename == str(missing.local_path()), "by this Snakemake knows that it is an input to come"
    assert time.monotonic() - started < 10, "as it is, the plugin tries each three times in 12 seconds"


@pytest.mark.parametrize("as_it_is", [True, False])
def test_large_files_pass_through_little_memory(as_it_is, azurite, container, tmp_path):
    """192 MiB: as it is, the plugin holds all of it."""
    with open(tmp_path / "large", "wb") as file:
        file.truncate(192 << 20)
    with open(tmp_path / "large", "rb") as file:
        azurite.client().get_blob_client(container, "large").upload_blob(file)
    script = f"""
import sys
from pathlib import Path
sys.path[:0] = {sys.path!r}
from on_azure.test_storage import *
mend_storage_plugin() if not {as_it_is} else None
one = stored(installed, {container!r}, "large", Path({str(tmp_path)!r}))
one.local_path().parent.mkdir(parents=True)
peak = lambda: int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) >> 10
before = peak()
one.retrieve_object()
assert one.local_path().stat().st_size == 192 << 20
print(peak() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment_of_jobs(azurite)
    )
    assert done.returncode == 0, done.stderr
    grown = int(done.stdout)
    assert grown > 150 if as_it_is else grown < 90, f"{grown} MiB"


def test_a_plan_lists_the_storage_once(as_it_is, mended, azurite, container, tmp_path, monkeypatch):
    """And knows by it what it else learns by asking for each file."""
    azurite.put(container, {f"project/results/{name}": b"12" for name in ("a", "model/deep/c", "model-2")})
    time.sleep(1.1)  # blobs know whole seconds
    azurite.put(container, {"project/results/model/b": b"12", "project/other": b"1"})
    names = ("a", "model", "model/b", "model/deep", "model/deep/c", "model-2", "mod", "nothing/at/all")
    files = {name: stored(mended, container, f"project/results/{name}", tmp_path) for name in names}
    asked = {name: (one.exists(), one.mtime(), one.size()) for name, one in files.items() if one.exists()}

    cache = IOCache(0)
    asyncio.run(stored(as_it_is, container, "project/results/a", tmp_path).inventory(cache))
    assert not cache.exists_in_storage, "the plugin has learned it: mend it less"
    # Put back at the end of this test, for those that come after it.
    monkeypatch.setattr(mended.StorageObject, "inventory", mended.StorageObject.inventory)
    monkeypatch.setattr(mended.StorageObject, "get_inventory_parent", mended.StorageObject.get_inventory_parent)
    list_once(f"az://{container}/project/results")
    for one in files.values():
        asyncio.run(one.inventory(cache))
    known, parent = cache.exists_in_storage, files["a"].get_inventory_parent()
    assert list(asked) == list(names[:6])
    assert {files[name].cache_key() for name in asked} == set(known)
    for name, (_, mtime, size) in asked.items():
        key = files[name].cache_key()
        assert (cache.mtime[key].storage(), cache.size[key]) == (mtime, size), name
    assert {one.get_inventory_parent() for one in files.values()} == {parent} == known.has_inventory
    assert stored(mended, container, "project/other", tmp_path).get_inventory_parent() is None


@pytest.fixture
def unpatched_later(monkeypatch) -> None:
    """What this process's Snakemake has learned in a test, others do not know."""
    for owner, names in (
        (_IOFile, ("is_newer", "is_checksum_eligible", "checksum")),
        (Job, ("postprocess",)),
        (FilePersistence, ("finished", "cleanup", "lock", "_read_record", "_write_record", "_delete_record")),
        (installed.StorageObject, ("inventory", "get_inventory_parent")),
    ):
        for name in names:
            monkeypatch.setattr(owner, name, getattr(owner, name))


def test_given_files_are_held_against_what_jobs_of_another_machine_read(
    azurite, container, tmp_path, monkeypatch, unpatched_later
):
    """A fresh clone: the lineage beside the blobs is all that it knows of them. Times say nothing in either direction."""
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path / "model", weights="1")
    write_files(tmp_path, rows="a,b")
    sha256 = hash_file(Path("rows"))  # also of the blob, as good as any
    record = {
        "record_format_version": 6,
        "rule": "fetch",
        "params": [],
        "input": ["model", "rows"],
        "input_checksums": {"rows": f"sha256:{sha256}"},
    }
    job = {"rule": "fetch", "outputs": {"results/made": sha256}, "record": record}
    job["sources"] = {"model": find_sha256(Path("model"))}  # as an older version wrote it
    text = format_lineage(Lineage({"results/made": job}))
    with azurite.client().get_container_client(container) as folder:
        folder.upload_blob("project/results/made", b"a,b", metadata={"sha256": sha256})
        folder.upload_blob("project/results/lineage.json", text)
    settings = SimpleNamespace(default_storage_provider="azure", default_storage_prefix=f"az://{container}/project")
    workflow = SimpleNamespace(storage_settings=settings)

    def newer() -> list[str]:
        sync_metadata_before_run(workflow, "results", ["rows", "model"])
        return [name for name in ("rows", "model") if asyncio.run(IOFile(name).is_newer(float("inf")))]

    assert newer() == []
    write_files(tmp_path, rows="b,a")
    os.utime("rows", (0, 0))
    assert newer() == ["rows"]
    write_files(tmp_path / "model", weights="2")
    os.utime("model", (0, 0))
    assert newer() == newer() == ["rows", "model"]
