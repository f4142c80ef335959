"""Rows and models that lie in Azure Machine Learning: azureml:// addresses, and the files behind them.

A job of Azure finds its inputs mounted or downloaded, and their paths in AZUREML_INPUT_DATA and AZUREML_INPUT_MODEL; on
any other machine they are downloaded by the person's own identity.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lib.cli import fail, first_line, progress

_WORKSPACE = (
    r"(?:subscriptions/(?P<subscription>[^/]+)/resourcegroups/(?P<group>[^/]+)/workspaces/(?P<workspace>[^/]+)/)?"
)
_DATASTORE = re.compile(rf"azureml://{_WORKSPACE}datastores/(?P<datastore>[^/]+)/paths/(?P<path>.+)", re.IGNORECASE)
_MODEL = re.compile(
    rf"azureml://(?:registries/(?P<registry>[^/]+)/|{_WORKSPACE})models/(?P<name>[^/]+)/versions/(?P<version>[^/]+)",
    re.IGNORECASE,
)
_VARIABLES = ("SUBSCRIPTION_ID", "RESOURCE_GROUP", "WORKSPACE")  # SNAKEMAKE_AZUREML_..., those of the executor


class Workspace(NamedTuple):
    subscription: str
    group: str
    name: str


class StoredPath(NamedTuple):
    """A file or folder of a datastore. workspace: None for that of the environment."""

    workspace: Workspace | None
    datastore: str
    path: str


class ModelVersion(NamedTuple):
    """A model of a registry, or of a workspace where `registry` is None."""

    registry: str | None
    workspace: Workspace | None
    name: str
    version: str


def parse_data(uri: str) -> StoredPath:
    """The file that an address names. Raises `ValueError` with what a person should write."""
    match = _DATASTORE.fullmatch(uri)
    if match is None:
        raise ValueError(f"{uri} is not azureml://datastores/NAME/paths/FILE")
    return StoredPath(_workspace(match), match["datastore"], match["path"].rstrip("/"))


def parse_model(uri: str) -> ModelVersion | StoredPath:
    """The model that an address names. Raises `ValueError` with what a person should write."""
    if (match := _MODEL.fullmatch(uri)) is not None:
        return ModelVersion(match["registry"], _workspace(match), match["name"], match["version"])
    if _DATASTORE.fullmatch(uri):
        return parse_data(uri)
    if "/labels/" in uri.lower() or re.search(r"/models/[^/]+/?$", uri, re.IGNORECASE):
        raise ValueError(
            f"{uri} names no version, and a label moves: write azureml://registries/R/models/NAME/versions/N"
        )
    raise ValueError(
        f"{uri} is not azureml://registries/R/models/NAME/versions/N, azureml://models/NAME/versions/N or"
        " azureml://datastores/NAME/paths/FOLDER"
    )


def job_address(uri: str) -> str:
    """The address as jobs want it: a model of the workspace that they run in has one of its own."""
    source = parse_model(uri)
    if isinstance(source, ModelVersion) and not source.registry and not source.workspace:
        return f"azureml:{source.name}:{source.version}"
    return uri


def _workspace(match: re.Match[str]) -> Workspace | None:
    if match["subscription"] is None:
        return None
    return Workspace(match["subscription"], match["group"], match["workspace"])


def data_file(uri: str, scratch: Path) -> Path:
    """The file behind a datastore's address: where the job has it, or downloaded into `scratch`.

    Raises `UserError` when it is not there, or Azure refuses or does not answer.
    """
    if given := os.environ.get("AZUREML_INPUT_DATA"):
        return Path(given)
    stored = parse_data(uri)
    with _explained(uri):
        download_stored(stored, scratch)
    return scratch / Path(stored.path).name


def model_folder(uri: str, scratch: Path) -> Path:
    """The folder of a model, in the same way."""
    if given := os.environ.get("AZUREML_INPUT_MODEL"):
        return Path(given)
    source = parse_model(uri)
    with _explained(uri):
        if isinstance(source, StoredPath):
            download_stored(source, scratch)
        else:
            progress(f"downloading {uri}")
            _client(source.workspace, source.registry).models.download(source.name, source.version, str(scratch))
    return scratch


def download_stored(stored: StoredPath, scratch: Path) -> None:
    """A file by its own name, or what is in a folder, into `scratch`."""
    from azure.core.exceptions import ResourceNotFoundError

    from lib import blobs

    container = _container(stored)
    folder = blobs.Place(container, stored.path)
    inside = blobs.listed(folder)
    if inside:
        progress(f"downloading {len(inside)} files, {sum(inside.values()) / 1e6:.0f} MB")
        for path in inside:
            blobs.download(folder, path, scratch / path)
        return
    parent, _, name = stored.path.rpartition("/")
    if not container.get_blob_client(stored.path).exists():
        raise ResourceNotFoundError(f"the datastore {stored.datastore} has no {stored.path}")
    progress(f"downloading {name}")
    blobs.download(blobs.Place(container, parent), name, scratch / name)


def _container(stored: StoredPath) -> Any:
    from azure.core.exceptions import HttpResponseError

    from lib.azure_identity import credential
    from lib.blobs import service

    datastores = _client(stored.workspace).datastores
    try:
        datastore = datastores.get(stored.datastore, include_secrets=True)
    except HttpResponseError as error:
        if error.status_code not in (401, 403):
            raise
        datastore = datastores.get(stored.datastore)  # who may not read its key may still read its files
    kept = datastore.credentials
    key = getattr(kept, "account_key", None) or getattr(kept, "sas_token", None) or credential()
    account = f"{datastore.protocol}://{datastore.account_name}.blob.{datastore.endpoint}"
    return service(account, key).get_container_client(datastore.container_name)


def _client(workspace: Workspace | None, registry: str | None = None) -> Any:
    """A client of a workspace (None: that of the environment, or of config.json as `az ml` keeps it) or a registry."""
    from azure.ai.ml import MLClient

    from lib.azure_identity import credential

    quiet: dict[str, Any] = {"enable_telemetry": False, "show_progress": False}
    if registry:
        return MLClient(credential(), registry_name=registry, **quiet)
    values = workspace or [os.environ.get(f"SNAKEMAKE_AZUREML_{name}") for name in _VARIABLES]
    if all(values):
        return MLClient(credential(), *values, **quiet)
    try:
        return MLClient.from_config(credential(), **quiet)
    except Exception as error:  # it has classes of its own for what is wrong with the file
        names = ", ".join(f"SNAKEMAKE_AZUREML_{name}" for name in _VARIABLES)
        fail(
            f"it is not known which workspace is meant ({first_line(error)})",
            f"set {names}, or write the address with subscription, resource group and workspace",
        )


@contextlib.contextmanager
def _explained(uri: str) -> Iterator[None]:
    """Turn the errors of Azure's clients into `UserError`s that say what to do; their chatter goes into the log."""
    from azure.ai.ml.exceptions import MlException
    from azure.core.exceptions import (
        AzureError,
        ClientAuthenticationError,
        HttpResponseError,
        ResourceNotFoundError,
    )

    try:
        yield
    except ResourceNotFoundError as error:
        fail(f"it is not there ({first_line(error)})", "check the address", at=uri)
    except ClientAuthenticationError as error:
        fail(f"Azure does not know who you are ({first_line(error)})", "run: az login", at=uri)
    except HttpResponseError as error:
        hint = (
            "you need the roles AzureML Data Scientist in the workspace and Storage Blob Data Reader in the storage"
            if error.status_code == 403
            else "start again later"
        )
        fail(f"Azure refuses it ({first_line(error)})", hint, at=uri)
    except AzureError as error:
        kind = "does not answer" if not isinstance(error, MlException) else "does not give it"
        fail(f"Azure {kind} ({first_line(error)})", "check the address and the network", at=uri)
