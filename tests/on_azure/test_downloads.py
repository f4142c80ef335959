"""Rows and models of Azure on a workstation: the real clients download them, from Azurite by way of made-up services."""

import json
import re
import socket
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from azure.ai.ml import _azure_environments as environments
from azure.identity import ClientSecretCredential
from azure.storage.blob import ContainerSasPermissions, PublicAccess, generate_container_sas

from lib.azure import identity, machine_learning
from lib.azure.machine_learning import fetch_data_file, fetch_model_files, parse_data
from lib.core.cli import UserError
from lib.core.files import dump_canonical_json, hash_text, read_json
from lib.provenance.manifests import hash_files
from support.workspaces import parameters_of

from .azurite import ACCOUNT, KEY
from .control_plane import GROUP, SUBSCRIPTION, WORKSPACE

pytestmark = pytest.mark.azure

ROWS = b'{"phrase": "a", "tone": "joy"}\n'
REGISTRY = "azureml://registries/company/models/tiny/versions/3"
REFUSAL = {"error": {"code": "AuthorizationFailed", "message": "The client does not have authorization."}}


class Service:
    """What Azure Machine Learning says of datastores and models: status and body by method and end of the path."""

    def __init__(self, certificate: Path) -> None:
        self.answers: dict[str, tuple[int, object]] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self.answers))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, certificate.with_suffix(".key"))
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"https://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "Service":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, request: str, properties: dict | None = None, status: int = 200, **body: object) -> None:
        """A resource by its properties, or any other body."""
        path = request.partition(" ")[2]
        id_ = f"azureml:/{path}" if path.startswith("/registries") else f"{SCOPE}{path}"
        resource = {"id": id_, "name": path.rpartition("/")[2], "properties": properties}
        self.answers[request] = status, resource if properties is not None else body


SCOPE = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}/providers/Microsoft.MachineLearningServices"
SCOPE += f"/workspaces/{WORKSPACE}"


def _handler(answers: dict[str, tuple[int, object]]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            request = f"{self.command} {urlsplit(self.path).path}"
            missing = 404, {"error": {"code": "NotFound", "message": "There is nothing of that name."}}
            found = (one for key, one in answers.items() if re.fullmatch(key.replace(" ", " .*"), request))
            status, body = next(found, missing)
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@pytest.fixture
def service(plane, azurite, monkeypatch, tmp_path) -> Iterator[Service]:
    """The services, and this process as that of a person who is known to them. Storage accounts have names there."""
    resolve = socket.getaddrinfo

    def named_accounts(host, *rest, **more):
        return resolve("127.0.0.1" if str(host).endswith(".localhost") else host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", named_accounts)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost,.localhost")
    for name, value in {"SUBSCRIPTION_ID": SUBSCRIPTION, "RESOURCE_GROUP": GROUP, "WORKSPACE": WORKSPACE}.items():
        monkeypatch.setenv(f"SNAKEMAKE_AZUREML_{name}", value)
    monkeypatch.chdir(tmp_path)
    identity.get_credential.cache_clear()
    with Service(plane.folder / "certificate.pem") as service:
        monkeypatch.setenv("AZUREML_DEV_URL_MFE", service.url)
        cloud = environments._environments["AzureCloud"]
        monkeypatch.setitem(cloud, environments.EndpointURLS.REGISTRY_DISCOVERY_ENDPOINT, f"{service.url}/")
        yield service
    identity.get_credential.cache_clear()


@pytest.fixture
def scratch(tmp_path) -> Path:
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


def account(azurite) -> str:
    """The host of the account after its name, with a port."""
    return f"localhost:{urlsplit(azurite.endpoint).port}"


def signature(container: str) -> str:
    permission = ContainerSasPermissions(read=True, list=True)
    until = datetime.now(UTC) + timedelta(hours=1)
    return generate_container_sas(ACCOUNT, container, account_key=KEY, permission=permission, expiry=until)


CREDENTIALS = {
    "AccountKey": {"credentialsType": "AccountKey"},
    "Sas": {"credentialsType": "Sas"},
    "None": {"credentialsType": "None"},
    "ServicePrincipal": {
        "credentialsType": "ServicePrincipal",
        "tenantId": SUBSCRIPTION,
        "clientId": SUBSCRIPTION,
        "authorityUrl": "https://login.microsoftonline.com",
    },
}


def add_datastore(service, azurite, container: str, kept: str = "AccountKey", kind: str = "AzureBlob", **secret) -> str:
    """A datastore of that container; how it is opened, and by what. Its address."""
    names = {"AzureBlob": "containerName", "AzureDataLakeGen2": "filesystem", "AzureFile": "fileShareName"}
    protocol = "http" if kept in ("AccountKey", "Sas") else "https"  # tokens are sent over no other
    place = {"accountName": ACCOUNT, names[kind]: container, "endpoint": account(azurite), "protocol": protocol}
    service.answer("GET /datastores/store", {"datastoreType": kind, "credentials": CREDENTIALS[kept], **place})
    service.answer("POST /datastores/store/listSecrets", secretsType=kept, **(secret or {"key": KEY}))
    return "azureml://datastores/store/paths/"


def inside(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# How a datastore is opened


@pytest.mark.parametrize("kept", ["AccountKey", "Sas"])
@pytest.mark.parametrize("path", ["rows.jsonl", "train/a/rows.jsonl"])
def test_rows_by_key_or_signature(service, azurite, container, scratch, kept, path, capsys):
    azurite.put(container, {path: ROWS, f"{path}.old": b"other"})
    secret = {"key": KEY} if kept == "AccountKey" else {"sasToken": signature(container)}
    file = fetch_data_file(add_datastore(service, azurite, container, kept, **secret) + path, scratch)
    assert (file.name, inside(scratch)) == ("rows.jsonl", {"rows.jsonl": ROWS})
    assert capsys.readouterr().out == "", "nothing but the progress, which goes to the terminal"


def test_a_datastore_that_keeps_nothing_is_opened_by_who_asks(service, azurite, container):
    uri = add_datastore(service, azurite, container, "None")
    assert machine_learning._container(parse_data(f"{uri}rows.jsonl")).credential is identity.get_credential()


def test_who_may_not_read_the_key_may_still_read_files(service, azurite, container):
    uri = add_datastore(service, azurite, container)
    service.answer("POST /datastores/store/listSecrets", status=403, **REFUSAL)
    service.answers["GET /datastores/store"][1]["properties"]["protocol"] = "https"
    assert machine_learning._container(parse_data(f"{uri}rows.jsonl")).credential is identity.get_credential()


def test_a_data_lake_is_read_as_blobs_by_its_service_principal(service, azurite, container):
    kind = {"kind": "AzureDataLakeGen2", "clientSecret": "s"}
    place = machine_learning._container(
        parse_data(add_datastore(service, azurite, container, "ServicePrincipal", **kind) + "a")
    )
    assert place.url == f"https://{ACCOUNT}.blob.{account(azurite)}/{container}"
    assert isinstance(place.credential, ClientSecretCredential)


# Models


MODEL = {"MLmodel": b"flavors: {}", "data/model/config.json": b"{}"}


def test_a_folder_of_a_datastore(service, azurite, container, scratch):
    uri = add_datastore(service, azurite, container)
    azurite.put(container, {f"m/{name}": content for name, content in MODEL.items()})
    azurite.put(container, {"m2/config.json": b"of another", "m/data/": b"", "m": b""})
    blobs = azurite.client().get_container_client(container)  # as accounts with folders list each of these
    for folder in ("m/data", "m/data/model"):
        blobs.upload_blob(folder, b"", metadata={"hdi_isfolder": "true"})
    assert inside(fetch_model_files(f"{uri}m/", scratch)) == MODEL


def test_the_workspace_of_a_config_json(service, azurite, container, scratch, monkeypatch):
    for name in ("SUBSCRIPTION_ID", "RESOURCE_GROUP", "WORKSPACE"):
        monkeypatch.delenv(f"SNAKEMAKE_AZUREML_{name}")
    known = {"subscription_id": SUBSCRIPTION, "resource_group": GROUP, "workspace_name": WORKSPACE}
    Path("config.json").write_text(json.dumps(known))
    azurite.put(container, {"rows.jsonl": ROWS})
    assert fetch_data_file(add_datastore(service, azurite, container) + "rows.jsonl", scratch).read_bytes() == ROWS


def test_a_single_file_of_a_datastore(service, azurite, container, scratch):
    azurite.put(container, {"m/tiny.gguf": b"GGUF"})
    assert inside(fetch_model_files(add_datastore(service, azurite, container) + "m/tiny.gguf", scratch)) == {
        "tiny.gguf": b"GGUF"
    }


def test_a_model_of_the_workspace(service, azurite, container, scratch):
    add_datastore(service, azurite, container)
    azurite.put(container, {f"models/x/{name}": content for name, content in MODEL.items()})
    long = f"azureml:/{SCOPE.partition('/providers')[0]}/workspaces/{WORKSPACE}/datastores/store/paths/models/x"
    service.answer("GET /models/tiny/versions/3", {"modelType": "mlflow_model", "modelUri": long, "flavors": {}})
    assert inside(fetch_model_files("azureml://models/tiny/versions/3", scratch)) == MODEL


def add_registry(service, azurite, container: str, signed: bool = True) -> None:
    """A registry, whose storage is that container."""
    azurite.put(container, {f"x/mlflow_model_folder/{name}": content for name, content in MODEL.items()})
    address = f"http://{ACCOUNT}.blob.{account(azurite)}/{container}"
    discovery = {"registryName": "company", "subscriptionId": SUBSCRIPTION, "resourceGroup": GROUP}
    discovery["primaryRegionResourceProviderUri"] = f"{service.url}/"
    service.answer("GET /registries/company/discovery", **discovery)
    properties = {"modelType": "mlflow_model", "modelUri": f"{address}/x/mlflow_model_folder", "flavors": {}}
    service.answer("GET /registries/company/models/tiny/versions/3", properties)
    lent = {"credentialType": "SAS", "sasUri": f"{address}?{signature(container)}"}
    lent = lent if signed else {"credentialType": "NoCredentials"}
    answer = {"blobUri": properties["modelUri"], "credential": lent}
    service.answer("POST /registries/company/datarefs/tiny/versions/3", blobReferenceForConsumption=answer)


@pytest.mark.parametrize("signed", [True, False])
def test_a_model_of_a_registry(service, azurite, container, scratch, signed):
    add_registry(service, azurite, container, signed)
    if not signed:
        blobs = azurite.client().get_container_client(container)
        blobs.set_container_access_policy({}, public_access=PublicAccess.CONTAINER)
    assert inside(fetch_model_files(REGISTRY, scratch)) == MODEL


def test_a_big_file_does_not_pass_through_memory(service, azurite, container, scratch):
    size = 256 << 20
    with open(scratch.parent / "big", "wb") as file:
        file.truncate(size)
    azurite.put(container, {})
    with open(scratch.parent / "big", "rb") as file:
        azurite.client().get_container_client(container).upload_blob("m/model.safetensors", file)
    uri = add_datastore(service, azurite, container)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = peak_mb()
    fetch_model_files(f"{uri}m", scratch)
    assert (scratch / "model.safetensors").stat().st_size == size
    assert peak_mb() - before < 128


def peak_mb() -> float:
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


# The rules' own scripts


def test_a_downloaded_model_is_the_one_that_a_job_is_given(
    plane, azurite, container, tiny_llama, run_script, tmp_path, monkeypatch
):
    """By its hash as well, which the configuration may state."""
    azurite.put(container, {f"models/tiny/{name}": content for name, content in inside(tiny_llama).items()})
    source = {
        "source": f"azureml:/{SCOPE.partition('/providers')[0]}/workspaces/{WORKSPACE}/datastores/{container}/paths/models",
        "sha256": hash_text(dump_canonical_json(hash_files(tiny_llama))),
    }
    settings = {"source": source, "parameters": parameters_of(tiny_llama), "versions": {}}
    monkeypatch.setenv("AZURITE_CONNECTION_STRING", azurite.connection_string)
    of_tokenizer = {key: value for key, value in settings.items() if key != "parameters"}
    done = run_script("fetch_tokenizer", "--settings", of_tokenizer, "--output", tmp_path / "tokenizer")
    assert re.fullmatch(r"downloading [56] files, 0.[01] MB\n", done.stderr), "no weights"
    command = ["fetch_model", "--settings", settings, "--tokenizer", tmp_path / "tokenizer", "--output"]
    done = run_script(*command, tmp_path / "downloaded")
    assert re.fullmatch(r"downloading \d files, 0.\d MB\n", done.stderr), done.stderr
    monkeypatch.setenv("AZUREML_INPUT_MODEL", str(tiny_llama))
    run_script(*command, tmp_path / "given")
    assert read_json(tmp_path / "downloaded.manifest.json") == read_json(tmp_path / "given.manifest.json")


# What goes wrong


def refused(uri: str, scratch: Path) -> str:
    """What a person is told: one line, which begins with the address."""
    with pytest.raises(UserError) as error:
        fetch_model_files(uri, scratch)
    said = str(error.value)
    assert "\n" not in said
    return said


def test_what_is_not_there_is_told(service, azurite, container, scratch):
    uri = add_datastore(service, azurite, container)
    assert refused(f"{uri}gone", scratch).startswith(f"{uri}gone: it is not there (")
    service.answers["GET /datastores/store"][1]["properties"]["containerName"] = "gone"
    assert refused(f"{uri}m", scratch).startswith(f"{uri}m: it is not there (")
    gone = uri.replace("store/", "gone/") + "m"
    assert refused(gone, scratch).startswith(f"{gone}: it is not there (")
    for address in ("azureml://models/tiny/versions/4", REGISTRY):
        assert refused(address, scratch).startswith(f"{address}: it is not there (")
    add_registry(service, azurite, container)
    assert "it is not there (" in refused(REGISTRY.replace("/3", "/4"), scratch)


def test_who_may_not_is_told_the_roles(service, azurite, container, scratch):
    uri = add_datastore(service, azurite, container)
    service.answer("GET /datastores/store", status=403, **REFUSAL)
    said = refused(f"{uri}m", scratch)
    assert said.startswith(f"{uri}m: Azure refuses the request (")
    assert said.endswith(
        "you need the roles AzureML Data Scientist (workspace) and Storage Blob Data Reader (its storage)"
    )


def test_who_is_not_logged_in_is_told_to(service, scratch, monkeypatch):
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "EnvironmentCredential")
    for uri in ("azureml://datastores/store/paths/m", REGISTRY):
        said = refused(uri, scratch)
        assert said.startswith(f"{uri}: Azure refuses the request (")
        assert said.endswith("Azure could not authenticate you: run az login")


def test_a_key_that_was_renewed_elsewhere_is_told(service, azurite, container, scratch):
    uri = add_datastore(service, azurite, container, key=KEY.replace("Eby8", "aaaa"))
    assert "renew the key that the datastore keeps in the workspace" in refused(f"{uri}m", scratch)


def test_a_network_that_does_not_lead_there_is_told(service, scratch, monkeypatch):
    monkeypatch.setenv("AZUREML_DEV_URL_MFE", "https://127.0.0.1:9")
    said = refused("azureml://datastores/store/paths/m", scratch)
    assert "Azure does not answer (" in said
    assert said.endswith("check the address and the network")


def test_a_file_share_is_told(service, azurite, container, scratch):
    uri = add_datastore(service, azurite, container, kind="AzureFile")
    said = refused(f"{uri}m", scratch)
    assert "the datastore store is of the kind " in said
    assert said.endswith("use one of Blob storage or Data Lake Gen2")


def test_files_that_would_leave_their_folder_are_refused(service, azurite, container, scratch):
    azurite.put(container, {f"m/{scratch.parent}/outside": b"x", "m/config.json": b"{}"})
    said = refused(add_datastore(service, azurite, container) + "m", scratch)
    assert "which is absolute" in said
    assert not (scratch.parent / "outside").exists()


def test_a_model_that_lies_elsewhere_is_told(service, scratch):
    service.answer("GET /models/tiny/versions/3", {"modelType": "custom_model", "modelUri": "runs:/1/m", "flavors": {}})
    assert "runs:/1/m, which is not the path of a datastore" in refused("azureml://models/tiny/versions/3", scratch)
