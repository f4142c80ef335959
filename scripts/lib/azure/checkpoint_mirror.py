"""A training's progress, kept in Azure Blob storage as well: what a job has on its disk goes with the job.

Blobs below az://CONTAINER/PATH/KEY: `checkpoint-N/...` and `result/...`, their `complete.json` last; and `lock`, whose
lease says that somebody trains. A mounted folder could not promise it: it has no lock that two nodes respect, and how
it renames and when it writes is the mount's affair.
"""

import os
import re
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from azure.core.exceptions import AzureError, HttpResponseError, ResourceExistsError
from azure.storage.blob import BlobLeaseClient

from lib.azure import blobs
from lib.core.checksums import COMPLETE, find_fault, is_finished, remove
from lib.core.cli import Stopped, report_progress
from lib.core.progress_lock import repeat_meanwhile

_LEASE = 60  # seconds until the lease of a holder that died is free again: the longest that Azure has
_RENEW = 15.0  # seconds between two renewals
_POLL = 5.0
_FOLDER = re.compile(r"checkpoint-[0-9]{1,15}|result")


class Mirror:
    """The blobs of one training, held by this process. work: the same on this machine."""

    def __init__(self, folder: blobs.Place, work: Path, lease: BlobLeaseClient) -> None:
        self.folder, self.work, self._lease = folder, work, lease
        self._whole: set[str] = set()  # folders that are there as a whole

    def restore(self) -> None:
        """Bring the result, or else all whole checkpoints: the last one goes on, and the best one may be another.

        What this machine has itself, with the bytes that it was left with, is not brought again.
        """
        paths = set(blobs.list_blobs(self.folder))
        self._whole = {name for name in _folders(paths) if f"{name}/{COMPLETE}" in paths}
        wanted = ["result"] if "result" in self._whole else sorted(self._whole, key=_step)
        for name in wanted:
            if find_fault(self.work / name) is not None:
                self._bring(name, sorted(path for path in paths if path.startswith(f"{name}/")))

    def _bring(self, name: str, paths: Sequence[str]) -> None:
        """Download one folder; one that was cut or changed in the storage is removed there too."""
        remove(self.work / name)
        for path in sorted(paths, key=lambda path: path == f"{name}/{COMPLETE}"):
            blobs.download(self.folder, path, self.work / path)
        if fault := find_fault(self.work / name):
            report_progress(f"train_adapter: {name} of the storage is not used: {fault}")
            remove(self.work / name)
            self._delete(name)
            self._whole.discard(name)
        else:
            report_progress(f"train_adapter: {name} came from the storage")

    def save(self) -> None:
        """Make the blobs those that this machine has. Raises `Stopped` when another process has taken over."""
        try:
            self._lease.renew()
            here = {folder.name: folder for folder in [*self.work.glob("checkpoint-*"), self.work / "result"]}
            here = {name: folder for name, folder in here.items() if is_finished(folder)}
            for name in sorted(here.keys() - self._whole):
                self._upload(here[name])
            for name in self._whole - here.keys():
                self._delete(name)
            self._whole = set(here)
        except HttpResponseError as error:
            if error.status_code in (409, 412):
                raise Stopped("another process has taken over this adapter's progress") from None
            raise

    def _upload(self, folder: Path) -> None:
        files = [path for path in folder.rglob("*") if path.is_file()]
        for path in sorted(files, key=lambda path: path == folder / COMPLETE):
            blobs.upload(path, self.folder, path.relative_to(self.work).as_posix())

    def _delete(self, name: str) -> None:
        blobs.delete(self.folder, f"{name}/{COMPLETE}")  # first: what is left is whole no more
        for path in blobs.list_blobs(self.folder, [f"{name}/"]):
            blobs.delete(self.folder, path)


def _folders(paths: Iterable[str]) -> set[str]:
    """Return the folders of progress; what else lies there is nobody's."""
    names = {path.partition("/")[0] for path in paths if "/" in path}
    return {name for name in names if _FOLDER.fullmatch(name)}


def _step(name: str) -> int:
    return int(name.rpartition("-")[2])


@contextmanager
def mirror_checkpoints(url: str, work: Path, deadline: float | None = None) -> Iterator[Mirror]:
    """Hold the progress az://CONTAINER/PATH/KEY and restore it into `work`; wait while another process holds it.

    deadline: time of the monotonic clock from which on waiting is in vain. Raises `Stopped` then, and `UserError` when
    the storage refuses or does not answer.
    """
    folder = blobs.place(url)
    with blobs.explain_storage_errors(url):
        lease = _acquire_lease(folder, deadline)
        with _renew_lease(lease):
            mirror = Mirror(folder, work, lease)
            mirror.restore()
            yield mirror


def _acquire_lease(folder: blobs.Place, deadline: float | None) -> BlobLeaseClient:
    lock = folder.container.get_blob_client(folder.name("lock"))
    try:
        lock.upload_blob(b"", overwrite=False)
    except ResourceExistsError:
        pass
    said = False
    while True:
        try:
            lease = lock.acquire_lease(_LEASE)
            lock.set_blob_metadata({"holder": _holder()}, lease=lease)
            return lease
        except HttpResponseError as error:
            if error.status_code not in (409, 412):
                raise
        if not said:
            holder = lock.get_blob_properties().metadata.get("holder", "unknown")
            report_progress(f"another process holds this adapter's progress; waiting for it: {holder}")
            said = True
        if deadline is not None and time.monotonic() > deadline:
            raise Stopped("another process still holds this adapter's progress, and the time is up")
        time.sleep(_POLL)


def _holder() -> str:
    return f"{os.environ.get('AZUREML_RUN_ID', socket.gethostname())} process {os.getpid()}"


@contextmanager
def _renew_lease(lease: BlobLeaseClient) -> Iterator[None]:
    def renew() -> None:
        with suppress(AzureError):  # away for a moment, or lost: the next save tells
            lease.renew()

    try:
        with repeat_meanwhile(renew, _RENEW):
            yield
    finally:
        with suppress(AzureError):  # it ends by itself
            lease.release()
