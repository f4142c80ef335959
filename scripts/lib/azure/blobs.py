"""Azure Blob storage, as Snakemake's storage plugin names and reaches it: az://CONTAINER/PATH in one account.

The account stands in SNAKEMAKE_STORAGE_AZURE_ACCOUNT_NAME, as the run tells its jobs; AZURITE_CONNECTION_STRING means
an emulator instead, as for the plugin.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from azure.core.exceptions import (
    ClientAuthenticationError,
    HttpResponseError,
    ResourceNotFoundError,
    ServiceRequestError,
    ServiceResponseError,
)
from azure.storage.blob import BlobServiceClient, ContainerClient

from lib.azure.identity import get_credential
from lib.core.cli import extract_first_line, fail
from lib.core.files import hash_file, publish_file
from lib.core.paths import check_name

ACCOUNT = "SNAKEMAKE_STORAGE_AZURE_ACCOUNT_NAME"
_EMULATOR = "AZURITE_CONNECTION_STRING"
_AT_A_TIME = 4  # parts of a file


class Place(NamedTuple):
    """A folder of blobs. prefix: its path in the container, without a slash at its end; empty for all of it."""

    container: ContainerClient
    prefix: str

    @property
    def url(self) -> str:
        return f"az://{self.container.container_name}/{self.prefix}"

    def name(self, path: str) -> str:
        return f"{self.prefix}/{path}" if self.prefix else path


def place(url: str) -> Place:
    """Return the folder az://CONTAINER/PATH. Raises `UserError` when it is none, or no account is named."""
    scheme, _, rest = url.partition("://")
    container, _, prefix = rest.strip("/").partition("/")
    if scheme.lower() != "az" or not container or not prefix:
        fail(f"{url} is not az://CONTAINER/PATH", "write your profile's default-storage-prefix and a path below it")
    account = os.environ.get(ACCOUNT)
    if not account and _EMULATOR not in os.environ:
        fail("no storage account is named", f"set {ACCOUNT}, or give --account")
    return Place(
        open_service(f"https://{account}.blob.core.windows.net", get_credential()).get_container_client(container),
        prefix,
    )


def open_service(url: str, key: Any) -> BlobServiceClient:
    """Return the storage account of that address, opened by `key`, or the emulator."""
    if emulator := os.environ.get(_EMULATOR):
        return BlobServiceClient.from_connection_string(emulator)
    return BlobServiceClient(url, credential=key)


@contextmanager
def explain_storage_errors(where: str) -> Iterator[None]:
    """Turn the errors of the storage into `UserError`s that say what to do."""
    try:
        yield
    except ResourceNotFoundError as error:
        fail(f"the storage has no such container or blob ({extract_first_line(error)})", "check the path", at=where)
    except ClientAuthenticationError as error:
        fail(f"the storage could not authenticate you ({extract_first_line(error)})", "run: az login", at=where)
    except (ServiceRequestError, ServiceResponseError) as error:
        fail(f"the storage does not answer ({extract_first_line(error)})", "check account name and network", at=where)
    except HttpResponseError as error:
        hint = "you need the role Storage Blob Data Contributor" if error.status_code == 403 else "start again later"
        fail(f"the storage refuses the request ({extract_first_line(error)})", hint, at=where)


def list_blobs(folder: Place, below: Iterable[str] = ("",)) -> dict[str, int]:
    """Return sizes in bytes by path relative to the folder, of all blobs whose path begins with one of `below`.

    Whoever may write to the storage chooses the names. Raises `UserError` for one that leads out of the folder.
    """
    found = {}
    for start in below:
        for blob in folder.container.list_blobs(name_starts_with=folder.name(start), include=["metadata"]):
            # Accounts with folders list each of them as an empty blob; so do some programs.
            if not blob.name.endswith("/") and "hdi_isfolder" not in (blob.metadata or {}):
                found[make_relative_name(folder, blob.name)] = blob.size
    return found


def make_relative_name(folder: Place, blob: str) -> str:
    """Return a blob's path relative to its folder. Raises `UserError` when a file of that path would lie outside."""
    return check_name(blob.removeprefix(f"{folder.prefix}/" if folder.prefix else ""), at=folder.url)


def download(folder: Place, path: str, target: Path) -> None:
    """Download to `target`, whole or not at all; the file passes through little memory.

    Raises `UserError` when the bytes are not those whose sha256 was stated when they were uploaded.
    """
    with publish_file(target) as partial:
        blob = folder.container.download_blob(folder.name(path), max_concurrency=_AT_A_TIME)
        with open(partial, "wb") as content:
            blob.readinto(content)
        stated = (blob.properties.metadata or {}).get("sha256")
        if stated and hash_file(partial) != stated:
            where = f"az://{folder.container.container_name}/{folder.name(path)}"
            fail(
                "its bytes differ from what was uploaded", "delete it there, and the next run makes it again", at=where
            )


def upload(source: Path, folder: Place, path: str, metadata: dict[str, str] | None = None) -> None:
    with open(source, "rb") as content:
        folder.container.upload_blob(
            folder.name(path), content, overwrite=True, max_concurrency=_AT_A_TIME, metadata=metadata
        )


def delete(folder: Place, path: str) -> None:
    """Delete a blob that may be gone already."""
    try:
        folder.container.delete_blob(folder.name(path))
    except ResourceNotFoundError:
        pass
