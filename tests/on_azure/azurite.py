"""Azure storage on this machine: Azurite, Microsoft's own emulator, on a free port and with a folder of its own."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from azure.storage.blob import BlobServiceClient

ROOT = Path(__file__).resolve().parent.parent.parent
ACCOUNT = "devstoreaccount1"
# The one key that every Azurite has, which its documentation prints: it opens nothing else.
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
PATIENCE = 120


class Azurite:
    def __init__(self, port: int) -> None:
        self.endpoint = f"http://127.0.0.1:{port}/{ACCOUNT}"
        self.connection_string = (
            f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint={self.endpoint};"
        )

    def client(self) -> BlobServiceClient:
        return BlobServiceClient.from_connection_string(self.connection_string)

    def blobs(self, container: str, prefix: str = "") -> dict[str, int]:
        """Names and sizes of what lies in a container under a prefix."""
        with self.client() as client:
            found = client.get_container_client(container).list_blobs(name_starts_with=prefix)
            return {blob.name: blob.size for blob in found}

    def put(self, container: str, files: dict[str, bytes]) -> None:
        """Write blobs, in a container that is made if need be."""
        with self.client() as client:
            folder = client.get_container_client(container)
            if not folder.exists():
                folder.create_container()
            for name, content in files.items():
                folder.upload_blob(name, content, overwrite=True)

    def read(self, container: str, name: str) -> bytes:
        with self.client() as client:
            return client.get_blob_client(container, name).download_blob().readall()


@contextmanager
def running_azurite(folder: Path) -> Iterator[Azurite]:
    program = _program()
    folder.mkdir(parents=True, exist_ok=True)
    port = _free_port()
    command = [program, "--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", str(folder)]
    # The client speaks a newer version of the protocol than the emulator was tested with.
    command += ["--skipApiVersionCheck", "--silent", "--disableTelemetry"]
    with open(folder / "output.txt", "w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    try:
        _wait(process, port, folder / "output.txt")
        yield Azurite(port)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _program() -> str:
    home = Path(os.environ.get("AZURITE_HOME", ROOT / ".azurite"))
    found = shutil.which("azurite-blob", path=home / "node_modules/.bin") or shutil.which("azurite-blob")
    assert found, f"no azurite-blob in {home} or on PATH: run `make azurite`"
    return found


def _wait(process: subprocess.Popen, port: int, output: Path) -> None:
    end = time.monotonic() + PATIENCE
    while True:
        assert process.poll() is None, f"azurite-blob ended: {output.read_text()}"
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            assert time.monotonic() < end, f"azurite-blob does not answer after {PATIENCE} s: {output.read_text()}"
            time.sleep(0.1)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def environment_of_jobs(azurite: Azurite) -> dict[str, str]:
    """What a process needs to reach the storage, without what this machine knows of any other."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AZURE", "SNAKEMAKE", "MSI_"))}
    return {
        **kept,
        "AZURITE_CONNECTION_STRING": azurite.connection_string,
        "SNAKEMAKE_STORAGE_AZURE_ACCOUNT_NAME": ACCOUNT,
    }
