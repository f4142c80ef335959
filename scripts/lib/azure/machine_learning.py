"""Rows and models that lie in Azure Machine Learning: azureml:// addresses, and the files behind them.

A job of Azure finds its inputs mounted or downloaded, and their paths in AZUREML_INPUT_DATA and AZUREML_INPUT_MODEL; on
any other machine they are downloaded by the person's own identity.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from lib.core.cli import extract_first_line, fail, report_progress
from lib.core.paths import check_bare_name

_WORKSPACE = (
    r"(?:subscriptions/(?P<subscription>[^/]+)/resourcegroups/(?P<group>[^/]+)/workspaces/(?P<workspace>[^/]+)/)?"
)
_DATASTORE = re.compile(rf"azureml://{_WORKSPACE}datastores/(?P<datastore>[^/]+)/paths/(?P<path>.+)", re.IGNORECASE)
_MODEL = re.compile(
    rf"azureml://(?:registries/(?P<registry>[^/]+)/|{_WORKSPACE})models/(?P<name>[^/]+)/versions/(?P<version>[^/]+)",
    re.IGNORECASE,
)
# A model without one, and the ways to name a label in its place.
_NO_VERSION = re.compile(r"/labels/|/models/[^/]+(/versions)?/?$|@[^/]+$", re.IGNORECASE)
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
    """Return the file that an address names. Raises `ValueError` with what a person should write."""
    match = _DATASTORE.fullmatch(_one_word(uri))
    if match is None:
        raise ValueError(f"{uri} is not azureml://datastores/NAME/paths/FILE")
    return StoredPath(_workspace(match), match["datastore"], match["path"].rstrip("/"))


def parse_model(uri: str) -> ModelVersion | StoredPath:
    """Return the model that an address names. Raises `ValueError` with what a person should write."""
    match = _MODEL.fullmatch(_one_word(uri))
    if match and match["version"].lower() != "latest":
        return ModelVersion(match["registry"], _workspace(match), match["name"], match["version"])
    if _DATASTORE.fullmatch(uri):
        return parse_data(uri)
    if match or _NO_VERSION.search(uri):
        raise ValueError(
            f"{uri} names no version, and a label moves: write azureml://registries/R/models/NAME/versions/N"
        )
    raise ValueError(
        f"{uri} is not azureml://registries/R/models/NAME/versions/N, azureml://models/NAME/versions/N or"
        " azureml://datastores/NAME/paths/FOLDER"
    )


def build_job_address(uri: str) -> str:
    """Return the address as jobs want it: a model of the workspace that they run in has one of its own."""
    source = parse_model(uri)
    if isinstance(source, ModelVersion) and not source.registry and not source.workspace:
        return f"azureml:{source.name}:{source.version}"
    match = _MODEL.fullmatch(uri) or _DATASTORE.fullmatch(uri)
    assert match is not None
    return _normalize(match)


def _normalize(match: re.Match[str]) -> str:
    """Return an address with its own words in lower case; the names in it stay as they are."""
    text, result, end = match[0], "", 0
    for start, stop in sorted(match.span(group) for group in match.re.groupindex if match[group] is not None):
        result += text[end:start].lower() + text[start:stop]
        end = stop
    return result


def choose_job_type(uri: str, registered_as: str) -> str:
    """Return what a job takes the model for: what a version is registered as; what lies in a datastore is no asset."""
    source = parse_model(uri)
    if isinstance(source, ModelVersion):
        return registered_as
    return "uri_file" if source.path.lower().endswith(".gguf") else "uri_folder"


def _one_word(uri: str) -> str:
    if re.search(r"\s", uri):
        raise ValueError(f"{uri} holds white space, so no job can mount it; rename the file or folder")
    return uri


def _workspace(match: re.Match[str]) -> Workspace | None:
    if match["subscription"] is None:
        return None
    return Workspace(match["subscription"], match["group"], match["workspace"])


def fetch_data_file(uri: str, scratch: Path) -> Path:
    """Return the file behind a datastore's address: where the job has it, or downloaded into `scratch`.

    Raises `UserError` when it is not there, or Azure refuses or does not answer.
    """
    file = _input_of_job("AZUREML_INPUT_DATA", uri)
    if file is None:
        stored = parse_data(uri)
        with _explain_errors(uri):
            file = _download_file(_container(stored), stored.path, scratch)
    if not file.is_file():
        fail("it is not a file", "name the one file that holds the rows", at=uri)
    return file


def fetch_model_files(uri: str, scratch: Path, is_wanted: Callable[[str], bool] | None = None) -> Path:
    """Return the files of a model, in the same way: a folder, or the one file that it is.

    is_wanted: by the path of a file in the folder; others are not downloaded, and empty files bear their names.
    """
    if given := _input_of_job("AZUREML_INPUT_MODEL", uri):
        return given
    with _explain_errors(uri):
        container, path = _place(parse_model(uri))
        _download(container, path, scratch, is_wanted)
    return scratch


def _input_of_job(variable: str, uri: str) -> Path | None:
    given = os.environ.get(variable)
    if given and not Path(given).exists():
        fail(f"{given}, which {variable} names, does not exist", "unset it outside of Azure's jobs", at=uri)
    return Path(given) if given else None


def _download(container: Any, path: str, scratch: Path, is_wanted: Callable[[str], bool] | None) -> None:
    """Download what is in a folder, or a file by its own name, into `scratch`."""
    from lib.azure import blobs

    inside = blobs.list_blobs(blobs.Place(container, path))
    if not inside:
        _download_file(container, path, scratch)
        return
    wanted = {name: size for name, size in inside.items() if is_wanted is None or is_wanted(name)}
    report_progress(f"downloading {len(wanted)} files, {sum(wanted.values()) / 1e6:.1f} MB")
    for name in inside:
        if name in wanted:
            _stream(container, f"{path}/{name}", scratch / name)
        else:
            (scratch / name).parent.mkdir(parents=True, exist_ok=True)
            (scratch / name).touch()


def _download_file(container: Any, path: str, scratch: Path) -> Path:
    folder, _, name = path.rpartition("/")
    file = scratch / check_bare_name(name, at=folder)
    report_progress(
        f"downloading {file.name}, {container.get_blob_client(path).get_blob_properties().size / 1e6:.1f} MB"
    )
    _stream(container, path, file)
    return file


def _stream(container: Any, path: str, target: Path) -> None:
    """Download through little memory, unlike the client's own method."""
    from lib.azure import blobs

    blobs.download(blobs.Place(container, ""), path, target)


def _place(source: ModelVersion | StoredPath) -> tuple[Any, str]:
    """Return the container in which a model lies, and the path of its folder there."""
    if isinstance(source, StoredPath):
        return _container(source), source.path
    models = _client(source.workspace, source.registry).models
    address = models.get(source.name, source.version).path
    if source.registry:
        return _registry_place(models, source.registry, source, address)
    try:
        stored = parse_data(address)
    except ValueError:
        fail(f"its files lie at {address}, which is not the path of a datastore", "register them from a datastore")
    return _container(stored), stored.path


def _registry_place(models: Any, registry: str, source: ModelVersion, address: str) -> tuple[Any, str]:
    """Return the container and path of a model in a registry, which lends a signature for it."""
    from azure.ai.ml._utils._registry_utils import get_storage_details_for_registry_assets
    from azure.storage.blob import ContainerClient

    parts = urlsplit(address)
    url = f"{parts.scheme}://{parts.netloc}/{parts.path.split('/')[1]}"
    with contextlib.suppress(KeyError):  # no signature in the answer: everybody may read it
        url, _ = get_storage_details_for_registry_assets(
            service_client=models._registry_service_client,
            asset_type="models",
            asset_name=source.name,
            asset_version=source.version,
            rg_name=models._resource_group_name,
            reg_name=registry,
            uri=address,
        )
    container = ContainerClient.from_container_url(url)
    return container, parts.path.removeprefix(urlsplit(container.url).path).strip("/")


def _container(stored: StoredPath) -> Any:
    from azure.core.exceptions import HttpResponseError

    from lib.azure.blobs import open_service

    datastores = _client(stored.workspace).datastores
    try:
        datastore = datastores.get(stored.datastore, include_secrets=True)
    except HttpResponseError as error:
        if error.status_code not in (401, 403):
            raise
        datastore = datastores.get(stored.datastore)  # who may not read its key may still read its files
    # A file system of Data Lake Gen2 is a container as well.
    name = getattr(datastore, "container_name", None) or getattr(datastore, "filesystem", None)
    if name is None:
        kind = str(getattr(datastore.type, "value", datastore.type))
        fail(f"the datastore {stored.datastore} is of the kind {kind}", "use one of Blob storage or Data Lake Gen2")
    account = f"{datastore.protocol}://{datastore.account_name}.blob.{datastore.endpoint}"
    return open_service(account, _key(datastore)).get_container_client(name)


def _key(datastore: Any) -> Any:
    """Return what opens a datastore: what it keeps for that, or else the identity of who asks."""
    from lib.azure.identity import get_credential

    kept = datastore.credentials
    if secret := getattr(kept, "client_secret", None):
        from azure.identity import ClientSecretCredential

        return ClientSecretCredential(kept.tenant_id, kept.client_id, secret, authority=kept.authority_url)
    if key := getattr(kept, "account_key", None):
        return {"account_name": datastore.account_name, "account_key": key}  # not every address tells the name
    return getattr(kept, "sas_token", None) or get_credential()


def _client(workspace: Workspace | None, registry: str | None = None) -> Any:
    """Return a client of a workspace (None: that of the environment, or of config.json as `az ml` keeps it) or a
    registry.
    """
    from azure.ai.ml import MLClient

    from lib.azure.identity import get_credential

    quiet: dict[str, Any] = {"enable_telemetry": False, "show_progress": False}
    if registry:
        return MLClient(get_credential(), registry_name=registry, **quiet)
    values = workspace or [os.environ.get(f"SNAKEMAKE_AZUREML_{name}") for name in _VARIABLES]
    if all(values):
        return MLClient(get_credential(), *values, **quiet)
    try:
        return MLClient.from_config(get_credential(), **quiet)
    except Exception as error:  # it has classes of its own for what is wrong with the file
        names = ", ".join(f"SNAKEMAKE_AZUREML_{name}" for name in _VARIABLES)
        fail(
            f"the workspace is not known ({extract_first_line(error)})",
            f"set {names}, or write the address with subscription, resource group and workspace",
        )


@contextlib.contextmanager
def _explain_errors(uri: str) -> Iterator[None]:
    """Turn the errors of Azure's clients into `UserError`s that say what to do; their chatter goes into the log."""
    from azure.ai.ml.exceptions import MlException
    from azure.core.exceptions import (
        AzureError,
        HttpResponseError,
        ResourceNotFoundError,
    )

    try:
        yield
    except ResourceNotFoundError as error:
        fail(f"it is not there ({extract_first_line(error)})", "check the address", at=uri)
    except HttpResponseError as error:
        fail(f"Azure refuses the request ({extract_first_line(error)})", _hint(error), at=uri)
    except AzureError as error:
        kind = "does not answer" if not isinstance(error, MlException) else "does not give it"
        fail(f"Azure {kind} ({extract_first_line(error)})", "check the address and the network", at=uri)


def _hint(error: Any) -> str:
    """Return what to do about a request that was refused."""
    from azure.core.exceptions import ClientAuthenticationError

    said = f"{getattr(error, 'error_code', '')} {error}"
    if "failed to authenticate the request" in said:  # a storage, of keys and signatures
        return "renew the key that the datastore keeps in the workspace; where it keeps none, run: az login"
    if "KeyBasedAuthenticationNotPermitted" in said:
        return "its storage takes no keys: let the datastore use identities instead"
    if "AuthorizationFailure" in said:
        return "the network rules of its storage keep this machine out, or it may not be read with what was given"
    if isinstance(error, ClientAuthenticationError):
        return "Azure could not authenticate you: run az login"
    if error.status_code == 403:
        return "you need the roles AzureML Data Scientist (workspace) and Storage Blob Data Reader (its storage)"
    return "start again later"
