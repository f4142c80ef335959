"""What `snakemake-storage-plugin-azure` 0.4.4 does wrong, mended in one place.

1. A directory is never found: `exists` asks for a blob of its very name.
2. `remove` leaves the blobs of a directory, and an upload those that the new directory lacks: old shards of a model
   would lie among new ones.
3. A download holds the whole file in memory. Here it goes from the network to the disk in parts, several at a time.

The Snakefile applies it, so it holds for the run and for each of its jobs. `tests/azure/test_storage.py` shows each
fault in the plugin as it is, and says so when a new version no longer has it.
"""

from collections.abc import Iterator
from pathlib import Path

from azure.core.exceptions import ResourceNotFoundError
from snakemake_interface_storage_plugins.storage_object import retry_decorator
from snakemake_storage_plugin_azure import StorageObject

from lib.files import sha256_file

_PARTS_AT_A_TIME = 4


def mend_storage_plugin() -> None:
    for method in (exists, remove, store_object, download_blob_from_storage, upload_blob_to_storage):
        setattr(StorageObject, method.__name__, method)


@retry_decorator
def exists(self: StorageObject) -> bool:
    """Whether there is a blob of that name, or any below it."""
    try:
        return self.blob_client().exists() or any(self.get_prefix_blobs())
    except ResourceNotFoundError:  # no such container
        return False


@retry_decorator
def remove(self: StorageObject) -> None:
    """The blob, or all below it."""
    for name in [self.blob_path, *(blob.name for blob in self.get_prefix_blobs())]:
        _delete(self, name)
    self._is_dir = None


@retry_decorator
def store_object(self: StorageObject) -> None:
    """A file, or a directory and nothing that was there before; an old manifest does not describe what comes now."""
    container = self.container_client()
    if not container.exists():
        container.create_container()
    local = self.local_path()
    if not local.is_dir():
        self.upload_blob_to_storage(local, self.blob_path)
        return
    self._is_dir = True
    _delete(self, f"{self.blob_path}.manifest.json")
    files = {f"{self.blob_path}/{path.relative_to(local).as_posix()}": path for path in _files(local)}
    for name in [blob.name for blob in self.get_prefix_blobs() if blob.name not in files]:
        _delete(self, name)
    for name, path in files.items():
        self.upload_blob_to_storage(path, name)


def upload_blob_to_storage(self: StorageObject, local_path: Path, remote_path: str) -> None:
    facts = {"sha256": sha256_file(local_path)}  # so that the lineage needs no download
    with open(local_path, "rb") as content:
        self.blob_client(blob_path=remote_path).upload_blob(
            content, overwrite=True, max_concurrency=_PARTS_AT_A_TIME, metadata=facts
        )


def download_blob_from_storage(
    self: StorageObject, blob_path: str | None = None, local_path: Path | None = None
) -> None:
    blob = self.blob_client(blob_path=blob_path or self.blob_path)
    with open(local_path or self.local_path(), "wb") as content:
        blob.download_blob(max_concurrency=_PARTS_AT_A_TIME).readinto(content)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def _delete(self: StorageObject, name: str) -> None:
    try:
        self.blob_client(blob_path=name).delete_blob()
    except ResourceNotFoundError:
        pass
