"""The hub's token from Key Vault: the real client and identity, against a vault on loopback."""

import json
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from lib.azure import identity
from lib.core.cli import UserError
from lib.sources.huggingface import read_hub_token

pytestmark = pytest.mark.azure

SECRETS = {"hf-token": "hf_from_the_vault", "empty": ""}


class Handler(BaseHTTPRequestHandler):
    """Answers as Key Vault does: who shows no token is told where to get one."""

    def do_GET(self) -> None:
        name = self.path.split("?")[0].split("/")[2]
        if name == "elsewhere":
            challenge = (
                'Bearer authorization="https://login.microsoftonline.com/tenant", resource="https://vault.azure.net"'
            )
            self.answer(401, {}, {"WWW-Authenticate": challenge})
        elif "Authorization" not in self.headers:
            # The client wants a vault to be below the domain it asks tokens for: 127.0.0.1 is below 0.0.1.
            resource = f"https://0.0.1:{self.server.server_port}"
            challenge = f'Bearer authorization="https://login.microsoftonline.com/tenant", resource="{resource}"'
            self.answer(401, {}, {"WWW-Authenticate": challenge})
        elif name == "forbidden":
            self.answer(403, {"error": {"code": "Forbidden", "message": "Caller is not authorized"}})
        elif name not in SECRETS:
            self.answer(404, {"error": {"code": "SecretNotFound", "message": "A secret was not found"}})
        else:
            url = f"https://127.0.0.1:{self.server.server_port}/secrets/{name}/1"
            self.answer(200, {"value": SECRETS[name], "id": url, "attributes": {"enabled": True}})

    def answer(self, status: int, body: dict, headers: dict | None = None) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        for key, value in {
            "Content-Type": "application/json",
            "Content-Length": len(content),
            **(headers or {}),
        }.items():
            self.send_header(key, str(value))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def vault(plane, monkeypatch) -> Iterator[str]:
    """Its address; tokens come from the control plane's identity endpoint, as a job's do."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate = plane.folder / "certificate.pem"
    context.load_cert_chain(certificate, certificate.with_suffix(".key"))
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    identity.get_credential.cache_clear()
    identity.read_vault_secret.cache_clear()
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield f"https://127.0.0.1:{server.server_port}/secrets"
    server.shutdown()
    server.server_close()
    identity.get_credential.cache_clear()


def test_the_token_comes_from_the_vault(vault, plane, monkeypatch):
    monkeypatch.setenv("SLMFLOW_HF_TOKEN_SECRET", f"{vault}/hf-token")
    assert read_hub_token() == "hf_from_the_vault"
    assert plane.tokens, "by the managed identity"
    monkeypatch.setenv("HF_TOKEN", "hf_of_my_own")
    assert read_hub_token() == "hf_of_my_own"


def test_an_identity_that_was_chosen_for_the_job_is_the_one_that_asks(vault, plane, monkeypatch):
    monkeypatch.setenv("DEFAULT_IDENTITY_CLIENT_ID", "5af10000-0000-4000-8000-00000000000a")
    monkeypatch.setenv("SLMFLOW_HF_TOKEN_SECRET", f"{vault}/hf-token")
    assert read_hub_token() == "hf_from_the_vault"
    assert {client for _, client in plane.tokens} == {"5af10000-0000-4000-8000-00000000000a"}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gone", "has no secret gone; check its name"),
        ("forbidden", "refuses to give the secret .*; this identity needs the role Key Vault Secrets User"),
        ("elsewhere", "does not answer as a key vault does .*; check its name"),
        ("empty", "the secret empty of .* is empty; write it again"),
    ],
)
def test_what_the_vault_does_not_give_is_told(vault, name, said, monkeypatch):
    monkeypatch.setenv("SLMFLOW_HF_TOKEN_SECRET", f"{vault}/{name}")
    with pytest.raises(UserError, match=said):
        read_hub_token()


@pytest.mark.parametrize("url", ["hf_secret", "http://vault/secrets/a", "https://vault.vault.azure.net/keys/a"])
def test_what_is_no_secrets_address_is_told(url, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("SLMFLOW_HF_TOKEN_SECRET", url)
    with pytest.raises(UserError, match="this is not a Key Vault secret URL; write https://VAULT") as error:
        read_hub_token()
    assert url not in str(error.value), "it may be the secret itself"
