"""What `azureml://` addresses mean: blobs of Azurite and folders of a made-up registry."""

import re
import shutil
from pathlib import Path

from azure.core.exceptions import ResourceNotFoundError
from azure.storage.blob import BlobServiceClient, ContainerClient

DATASTORE = re.compile(r"azureml://(?:subscriptions/.+?/workspaces/[^/]+/)?datastores/([^/]+)/paths/(.*)")
REGISTRY = re.compile(r"azureml://registries/([^/]+)/models/([^/]+)/versions/([^/]+)")


class DataError(Exception):
    """A job asks for data that is not there."""


class Data:
    """A datastore is the container of its name."""

    def __init__(self, connection_string: str | None, registries: Path | None) -> None:
        self._blobs = BlobServiceClient.from_connection_string(connection_string) if connection_string else None
        self._registries = registries

    def account(self, datastore: str) -> dict[str, str] | None:
        """How to reach a datastore, None if there is none of that name."""
        if self._blobs is None or not self._blobs.get_container_client(datastore).exists():
            return None
        url, credential = self._blobs.url, self._blobs.credential
        address = url.partition("://")[2].partition("/")[0]
        return {"name": credential.account_name, "key": credential.account_key, "endpoint": address}

    def knows(self, uri: str) -> bool:
        """Whether an address has a form that jobs take, and names a model that the registry has."""
        if match := REGISTRY.fullmatch(uri):
            return self._registries is not None and self._registries.joinpath(*match.groups()).is_dir()
        return DATASTORE.fullmatch(uri) is not None

    def fetch(self, uri: str, kind: str, folder: Path) -> Path:
        """Copy an input into a folder of its own: the path that stands for it in the command."""
        if match := REGISTRY.fullmatch(uri):
            return shutil.copytree(self._registries.joinpath(*match.groups()), folder)
        container, path = self._place(uri)
        folder.mkdir(parents=True)
        if kind.endswith("_file"):
            target = folder / path.rpartition("/")[2]
            try:
                _download(container, path, target)
            except ResourceNotFoundError as error:
                raise DataError(f"no blob {path} in {container.container_name}") from error
            return target
        if not _download_all(container, path, folder):
            raise DataError(f"no blobs under {path} in {container.container_name}")
        return folder

    def mount(self, uri: str, mode: str, folder: Path) -> "Mount":
        return Mount(*self._place(uri), mode, folder)

    def _place(self, uri: str) -> tuple[ContainerClient, str]:
        name, path = DATASTORE.fullmatch(uri).groups()
        container = self._blobs.get_container_client(name) if self._blobs else None
        if container is None or not container.exists():
            raise DataError(f"no datastore {name}")
        return container, path


class Mount:
    """A folder of a job whose files are blobs too: a mounted one shows what was there, and follows each change."""

    def __init__(self, container: ContainerClient, path: str, mode: str, folder: Path) -> None:
        self._container, self._path, self._folder = container, path.rstrip("/"), folder
        self.live = mode == "ReadWriteMount"
        self._sent: dict[str, tuple[int, int]] = {}
        folder.mkdir(parents=True)
        if self.live:
            _download_all(container, path, folder)
            self._sent = self._files()

    def sync(self) -> None:
        """Bring the blobs up to the folder."""
        found = self._files()
        for name, state in found.items():
            if self._sent.get(name) != state:
                try:
                    with open(self._folder / name, "rb") as file:
                        self._container.upload_blob(f"{self._path}/{name}", file, overwrite=True)
                except FileNotFoundError:  # its process has just removed or renamed it
                    continue
        for name in self._sent.keys() - found.keys():
            self._container.delete_blob(f"{self._path}/{name}")
        self._sent = found

    def _files(self) -> dict[str, tuple[int, int]]:
        found = {}
        for path in self._folder.rglob("*"):
            try:
                if path.is_file():
                    state = path.stat()
                    found[str(path.relative_to(self._folder))] = (state.st_mtime_ns, state.st_size)
            except FileNotFoundError:
                continue
        return found


def _download_all(container: ContainerClient, path: str, folder: Path) -> int:
    prefix = path.rstrip("/") + "/" if path.strip("/") else ""
    names = list(container.list_blob_names(name_starts_with=prefix))
    for name in names:
        _download(container, name, folder / name.removeprefix(prefix))
    return len(names)


def _download(container: ContainerClient, name: str, target: Path) -> None:
    stream = container.download_blob(name)
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target, "wb") as file:
        stream.readinto(file)
