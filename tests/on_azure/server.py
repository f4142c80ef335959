"""The server under the control plane: requests noted and disturbed, tokens asked for, a certificate for TLS."""

import ipaddress
import json
import re
import socket
import ssl
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

_KINDS = [("submit", "PUT", r".*/jobs/[^/]+"), ("poll", "GET", r".*/jobs/[^/]+"), ("cancel", "POST", r".*/cancel")]
_OPEN = ("/discovery", "/logs/", "/msi/")  # what needs no token of Azure, and has no faults


@dataclass
class Request:
    """status: what was answered, None if the connection was closed instead. kind: submit, poll, cancel or other."""

    method: str
    path: str
    kind: str
    time: float
    status: int | None = None


@dataclass
class Fault:
    """What the next `left` requests of a kind get: a status, or no answer at all (None).

    late: the request is carried out first.
    """

    kind: str
    left: int
    status: int | None
    retry_after: float | None = None
    late: bool = False


class RefusalError(Exception):
    def __init__(self, status: int, message: str, code: str = "UserError") -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_) -> None:
        """A client that goes away is no news."""


def handler(plane: Any) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_) -> None:
            pass

        def do_GET(self) -> None:
            self._answer()

        def do_PUT(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self._answer()

        def do_PATCH(self) -> None:
            self._answer()

        def _answer(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = urlsplit(self.path)
            guarded = not parts.path.startswith(_OPEN)
            request = Request(self.command, parts.path, self._kind(parts.path), time.time())
            plane.requests.append(request)
            fault = plane.fault(request.kind) if guarded else None
            if fault and not fault.late:
                return self._fail(request, fault)
            try:
                if guarded and not re.fullmatch(r"Bearer \S+", self.headers.get("Authorization") or ""):
                    raise RefusalError(401, "The request has no token.", "AuthenticationFailed")
                query = {key: values[0] for key, values in parse_qs(parts.query).items()}
                headers = {key.lower(): value for key, value in self.headers.items()}
                answer = plane.answer(self.command, parts.path, query, headers, _parsed(content))
            except RefusalError as refusal:
                answer = refusal.status, {"error": {"code": refusal.code, "message": refusal.message}}, {}
            if fault:
                return self._fail(request, fault)
            self._send(request, *answer)

        def _kind(self, path: str) -> str:
            for kind, method, pattern in _KINDS:
                if self.command == method and re.fullmatch(pattern, path):
                    return kind
            return "other"

        def _fail(self, request: Request, fault: Fault) -> None:
            if fault.status is None:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            headers = {} if fault.retry_after is None else {"Retry-After": f"{fault.retry_after:g}"}
            error = {"error": {"code": str(fault.status), "message": "The service is not available for now."}}
            self._send(request, fault.status, error, headers)

        def _send(self, request: Request, status: int, body: object, headers: dict[str, str]) -> None:
            request.status = status
            text = isinstance(body, str)
            content = b"" if body is None else body.encode() if text else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain; charset=utf-8" if text else "application/json")
            self.send_header("Content-Length", str(len(content)))
            for key, value in headers.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(content)

    return Handler


def _parsed(content: bytes) -> object:
    try:
        return json.loads(content) if content else None
    except ValueError as error:
        raise RefusalError(400, f"The body is no JSON: {error}", "InvalidRequestContent") from error


def certified_context(file: Path) -> ssl.SSLContext:
    """A certificate for this address, for a day."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file = file.with_suffix(".key")
    pem = serialization.PrivateFormat.PKCS8
    key_file.write_bytes(key.private_bytes(serialization.Encoding.PEM, pem, serialization.NoEncryption()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file, key_file)
    return context
