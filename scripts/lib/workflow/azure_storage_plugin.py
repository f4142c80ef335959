"""Corrections of faults in `snakemake-storage-plugin-azure` 0.4.4.

1. A directory is never found: `exists` looks for a blob with exactly its name.
2. `remove` leaves the blobs of a directory behind, and an upload leaves those that the new directory lacks: old shards
   of a model would be mixed with new ones.
3. A download holds the whole file in memory. Here several parts at a time go from the network to the disk.
4. Asking for the size or time of a missing blob takes 12 seconds, for three attempts. The client retries failed
   requests itself; that a blob is missing is known at once.
5. A plan sends several requests for each file, because `inventory`, which should list them all once, does nothing.

The Snakefile applies them in the main process and in each job; only the main process lists the storage.
`tests/on_azure/test_storage.py` demonstrates each fault in the unpatched plugin, and fails once a new version has fixed
it.
"""

import errno
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from azure.core.exceptions import ResourceNotFoundError
from snakemake_interface_storage_plugins.io import IOCacheStorageInterface, Mtime
from snakemake_storage_plugin_azure import StorageObject

from lib.azure import blobs
from lib.core.files import hash_file


def mend_storage_plugin() -> None:
    methods = {
        "exists": has_blob,
        "mtime": read_mtime,
        "size": measure_size,
        "retrieve_object": retrieve_object,
        "remove": remove,
        "store_object": store_object,
        "download_blob_from_storage": download_blob_from_storage,
        "upload_blob_to_storage": upload_blob_to_storage,
    }
    for name, method in methods.items():
        setattr(StorageObject, name, method)


def list_once(folder: str) -> None:
    """Make a plan learn everything below az://CONTAINER/PATH from one listing."""
    place = blobs.place(folder)
    container, prefix = place.container.container_name, place.prefix

    def get_inventory_parent(self: StorageObject) -> str | None:
        within = self.container_name == container and self.blob_path.startswith(f"{prefix}/")
        return self.cache_key(f"{container}/{prefix}") if within else None

    async def inventory(self: StorageObject, cache: IOCacheStorageInterface) -> None:
        parent, known = self.get_inventory_parent(), cache.exists_in_storage
        if parent is None or parent in known.has_inventory:
            return
        for blob in place.container.list_blobs(name_starts_with=f"{prefix}/"):
            time, path = blob.last_modified.timestamp(), PurePosixPath(blob.name.removeprefix(f"{prefix}/"))
            for each in (path, *path.parents[:-1]):  # and the directories that it lies in
                key = self.cache_key(f"{container}/{prefix}/{each}")
                newest = cache.mtime[key].storage() if key in known else time
                cache.mtime[key] = Mtime(storage=max(time, newest))
                cache.size[key] = cache.size.get(key, 0) + blob.size
                known[key] = True
        known.has_inventory.add(parent)

    StorageObject.get_inventory_parent = get_inventory_parent
    StorageObject.inventory = inventory


def has_blob(self: StorageObject) -> bool:
    """Return whether there is a blob of that name, or any below it."""
    try:
        return self.blob_client().exists() or any(self.get_prefix_blobs())
    except ResourceNotFoundError:  # no such container
        return False


def read_mtime(self: StorageObject) -> float:
    """Return the Unix time of a blob, or of the newest blob in a directory. Raises `FileNotFoundError`."""
    return max(blob.last_modified.timestamp() for blob in _blobs(self))


def measure_size(self: StorageObject) -> int:
    """Return the bytes of a blob, or of all blobs in a directory. Raises `FileNotFoundError`."""
    return sum(blob.size for blob in _blobs(self))


def retrieve_object(self: StorageObject) -> None:
    """Download the file, or the directory without anything that was there before. Raises `FileNotFoundError`.

    Raises `UserError` when a blob's name leads out of the directory.
    """
    local = self.local_path()
    shutil.rmtree(local, ignore_errors=True)
    folder = blobs.Place(self.container_client(), self.blob_path)
    for name in [blob.name for blob in _blobs(self) if not blob.name.endswith("/")]:
        target = local if name == self.blob_path else local / blobs.make_relative_name(folder, name)
        self.download_blob_from_storage(name, target)


def remove(self: StorageObject) -> None:
    """Remove the blob, or all blobs below it."""
    for name in [self.blob_path, *(blob.name for blob in self.get_prefix_blobs())]:
        _delete(self, name)


def store_object(self: StorageObject) -> None:
    """Upload the file, or replace the directory; its old manifest goes first, since it describes other contents."""
    local = self.local_path()
    if not local.is_dir():
        self.upload_blob_to_storage(local, self.blob_path)
        return
    _delete(self, f"{self.blob_path}.manifest.json")
    files = {f"{self.blob_path}/{path.relative_to(local).as_posix()}": path for path in _files(local)}
    for name in [blob.name for blob in self.get_prefix_blobs() if blob.name not in files]:
        _delete(self, name)
    for name, path in files.items():
        self.upload_blob_to_storage(path, name)


def upload_blob_to_storage(self: StorageObject, local_path: Path, remote_path: str) -> None:
    facts = {"sha256": hash_file(local_path)}  # so that the lineage needs no download
    blobs.upload(local_path, blobs.Place(self.container_client(), ""), remote_path, facts)


def download_blob_from_storage(self: StorageObject, blob_path: str, local_path: Path) -> None:
    blobs.download(blobs.Place(self.container_client(), ""), blob_path, local_path)


def _blobs(self: StorageObject) -> list[Any]:
    """Return the blob of that name, or those below it. Raises `FileNotFoundError` when there is none."""
    try:
        if found := list(self.get_prefix_blobs()):
            return found
        return [self.blob_client().get_blob_properties()]
    except ResourceNotFoundError:
        raise FileNotFoundError(errno.ENOENT, f"{self.query} is not there", str(self.local_path())) from None


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def _delete(self: StorageObject, name: str) -> None:
    blobs.delete(blobs.Place(self.container_client(), ""), name)
