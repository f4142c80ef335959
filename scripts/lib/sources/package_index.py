"""What package indexes offer, read as their public format says (PEP 503), with the settings of pip.

To learn the dependencies of an sdist pip runs code of it. Here no code of a package runs: pages are read for links, and
files are bytes. Index, extra indexes, find-links, proxy, certificates, trusted hosts and time-outs are those that the
machine has set for pip; user and password stand in an address of an index or in `~/.netrc`.
"""

import ast
import hashlib
import io
import re
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote, urldefrag, urljoin, urlsplit
from urllib.request import url2pathname

import requests
import truststore
from packaging.utils import (
    InvalidSdistFilename,
    InvalidWheelFilename,
    canonicalize_name,
    parse_sdist_filename,
    parse_wheel_filename,
)
from packaging.version import Version
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError, ReadTimeoutError
from urllib3.util.retry import Retry

from lib.core.cli import fail

# Those of requests are OSErrors, of addresses ValueErrors; while a body is read they are urllib3's.
_ERRORS = (OSError, ValueError, HTTPError)
_REASONS = (
    (requests.exceptions.ProxyError, "the proxy cannot be reached or refuses"),
    (requests.exceptions.SSLError, "its certificate is not trusted; pip's setting cert names another"),
    ((requests.Timeout, ReadTimeoutError), "no answer in time"),
    (requests.exceptions.InvalidURL, "no valid address"),
    (requests.RequestException, "no connection"),
)
_PYPI = "https://pypi.org/simple"
_PIECE = 1 << 20
DOWNLOADED = "download"  # name of a file that was downloaded, whatever it is called elsewhere
_LONGEST_PAGE = 64 << 20
_LOOPBACK = re.compile(r"localhost|127(\.\d+){3}|::1")
# As pip: what a moment later may succeed.
_TRY_AGAIN = [500, 502, 503, 520, 524, 527]


@dataclass(frozen=True)
class PackageFile:
    """A wheel or an sdist, as an index or a folder offers it."""

    name: str
    version: Version
    url: str
    sha256: str | None


class PackageIndex:
    """The indexes and folders that pip is set to take packages from."""

    def __init__(self) -> None:
        self._settings = read_pip_settings()
        self._session = _open_session(self._settings)
        self._timeout = float(self._settings.get("timeout") or self._settings.get("default-timeout") or 15)

    def list_files(self, project: str) -> tuple[list[PackageFile], list[str]]:
        """Return the wheels and sdists of a project in all versions, and why places that count could not be read."""
        found: dict[tuple[str, str], PackageFile] = {}
        problems: list[str] = []
        for place, is_index in _places(self._settings, canonicalize_name(project)):
            try:
                links = self._read_links(place, is_index)
            except _ERRORS as error:
                problems.append(f"{redact_address(place)}: {_reason(error)}")
                continue
            for url, sha256 in links:
                file = _as_package_file(url, sha256, project)
                if file is not None:
                    found.setdefault((file.name, sha256 or url), file)
        return list(found.values()), problems

    def download(self, file: PackageFile, folder: Path) -> tuple[Path, str]:
        """Copy a file into `folder`; returns its path and sha256. Raises `UserError`."""
        target, digest = folder / DOWNLOADED, hashlib.sha256()
        with BoundedOutput(target, file.name) as output:
            for piece in self._pieces(file):
                digest.update(piece)
                output.write(piece)
        return target, digest.hexdigest()

    def _pieces(self, file: PackageFile) -> Iterator[bytes]:
        try:
            if (path := _local_path(file.url)) is not None:
                with open(path, "rb") as stream:
                    yield from iter(lambda: stream.read(_PIECE), b"")
                return
            with self._get(file.url, "*/*") as response:
                response.raise_for_status()
                yield from response.raw.stream(_PIECE, decode_content=False)
        except _ERRORS as error:
            fail(f"{file.name} cannot be downloaded from {redact_address(file.url)}: {_reason(error)}", REMEDY)

    def _read_links(self, place: str, is_index: bool) -> list[tuple[str, str | None]]:
        if (path := _local_path(place)) is not None:
            return [] if is_index and not path.exists() and path.parent.is_dir() else _local_links(path)
        with self._get(place, "text/html") as response:
            if is_index and response.status_code == 404:  # it does not have the project
                return []
            response.raise_for_status()
            page = response.raw.read(_LONGEST_PAGE + 1, decode_content=True)
            if len(page) > _LONGEST_PAGE:
                raise ValueError(f"a page of more than {_LONGEST_PAGE >> 20} MB")
            links = parse_links(page.decode("utf-8", "replace"), response.url)
        return [(_with_login(url, place), sha256) for url, sha256 in links if urlsplit(url).scheme in ("http", "https")]

    def _get(self, url: str, accept: str) -> requests.Response:
        verify: bool | str = self._settings.get("cert") or True
        address = urlsplit(url)
        if _is_trusted(address, self._settings):
            verify = False
        elif address.scheme == "http" and not _LOOPBACK.fullmatch(address.hostname or ""):
            raise ValueError("http without encryption; use https, or name the host in pip's trusted-host")
        headers = {"Accept": accept, "Accept-Encoding": "identity"}
        proxy = self._settings.get("proxy")
        proxies = {"http": proxy, "https": proxy} if proxy else None
        return self._session.get(
            url, headers=headers, timeout=self._timeout, verify=verify, proxies=proxies, stream=True
        )


class BoundedOutput(io.BufferedWriter):
    """A file to write that stops before the disk is full: a package may claim any size."""

    def __init__(self, path: Path, name: str) -> None:
        self._left = shutil.disk_usage(path.parent).free // 2
        self._package_name = name
        super().__init__(io.FileIO(path, "w"))

    def write(self, piece: Any) -> int:
        """Write one piece. Raises `UserError` when more than half of what was free would be taken."""
        self._left -= memoryview(piece).nbytes
        if self._left < 0:
            what = f"{self._package_name} takes more than half of the free disk"
            fail(what, "free some space, if it is meant to be that large")
        return super().write(piece)


REMEDY = "check the network and pip's settings (pip config list), then start again"


def read_pip_settings() -> dict[str, str]:
    """Return the settings of `pip download` by option, from pip's files and variables. Raises `UserError`."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if "No module named pip" in done.stderr:
        fail("this Python has no pip whose settings name the package index", "run: python -m ensurepip")
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        fail(f"pip cannot read its settings: {last[:300]}", "mend the file of pip's settings")
    sections: dict[str, dict[str, str]] = {"global": {}, "download": {}, ":env:": {}}  # later ones win
    for line in done.stdout.splitlines():
        name, _, value = line.partition("=")
        section, _, option = name.rpartition(".")
        if section in sections:
            sections[section][option.replace("_", "-")] = str(ast.literal_eval(value))
    return {option: value for section in sections.values() for option, value in section.items() if value}


def parse_links(html: str, address: str) -> list[tuple[str, str | None]]:
    """Return address and sha256, if it is stated, of each link of a page as PEP 503 has it."""
    page = _Page(address)
    page.feed(html)
    return page.links


class _Page(HTMLParser):
    def __init__(self, address: str) -> None:
        super().__init__()
        self._base = address
        self.links: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        address = dict(attrs).get("href")
        if address and tag == "base":
            self._base = urljoin(self._base, address)
        elif address and tag == "a":
            url, fragment = urldefrag(urljoin(self._base, address.strip()))
            stated = re.match(r"sha256=([0-9a-fA-F]{64})(&|$)", fragment)
            self.links.append((url, stated[1].lower() if stated else None))


def redact_address(url: str) -> str:
    """Return an address without user, password and query, for messages."""
    address = urlsplit(url)
    return address._replace(netloc=address.netloc.rpartition("@")[2], query="", fragment="").geturl()


def _places(settings: dict[str, str], project: str) -> Iterator[tuple[str, bool]]:
    """Yield where pip would look for a project: its pages on indexes (True), then what find-links names (False)."""
    if settings.get("no-index", "").lower() not in ("1", "true", "yes", "on", "y", "t"):
        indexes = [settings.get("index-url", _PYPI), *settings.get("extra-index-url", "").split()]
        yield from ((f"{index.rstrip('/')}/{project}/", True) for index in indexes)
    yield from ((place, False) for place in settings.get("find-links", "").split())


def _local_path(url: str) -> Path | None:
    address = urlsplit(url)
    if address.scheme == "file":
        return Path(url2pathname(address.path))
    return None if address.scheme in ("http", "https") else Path(url).expanduser()


def _local_links(path: Path) -> list[tuple[str, str | None]]:
    """Return the links of a folder of packages, or of a page on disk: those of an index are named index.html."""
    page = path / "index.html" if path.is_dir() else path
    if page.is_file():
        return parse_links(page.read_text(encoding="utf-8", errors="replace"), page.absolute().as_uri())
    return [(file.absolute().as_uri(), None) for file in sorted(path.iterdir()) if file.is_file()]


def _as_package_file(url: str, sha256: str | None, project: str) -> PackageFile | None:
    name = unquote(urlsplit(url).path.rpartition("/")[2])
    try:
        parsed: tuple[Any, ...] = parse_wheel_filename(name) if name.endswith(".whl") else parse_sdist_filename(name)
    except (InvalidWheelFilename, InvalidSdistFilename):
        return None
    return PackageFile(name, parsed[1], url, sha256) if parsed[0] == canonicalize_name(project) else None


def _open_session(settings: dict[str, str]) -> requests.Session:
    session = requests.Session()
    retries = Retry(total=int(settings.get("retries", 5)), backoff_factor=0.25, status_forcelist=_TRY_AGAIN)
    session.mount("https://", _SystemCertificates(max_retries=retries))
    session.mount("http://", HTTPAdapter(max_retries=retries))
    session.cert = settings.get("client-cert")
    return session


class _SystemCertificates(HTTPAdapter):
    """Accept what the system's certificates vouch for, too, as pip does."""

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        context = truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        super().init_poolmanager(*args, ssl_context=context, **options)


def _is_trusted(address: SplitResult, settings: dict[str, str]) -> bool:
    hosts = settings.get("trusted-host", "").split()
    return address.hostname in hosts or address.netloc.rpartition("@")[2] in hosts


def _with_login(url: str, place: str) -> str:
    """Return the address of a file with user and password of its page, when it lies on the same host."""
    file, page = urlsplit(url), urlsplit(place)
    login, at, host = page.netloc.rpartition("@")
    same = file.scheme == page.scheme and file.netloc == host
    return file._replace(netloc=f"{login}@{host}").geturl() if at and same else url


def _reason(error: Exception) -> str:
    """Return what went wrong, without addresses, in which passwords may stand."""
    if isinstance(error, requests.HTTPError) and error.response is not None:
        code = error.response.status_code
        login = ", a login: it belongs into the index's address in pip's settings or into ~/.netrc"
        return f"HTTP {code}" + (login if code in (401, 403) else "")
    for kind, reason in _REASONS:
        if isinstance(error, kind):
            return reason
    return "broken connection" if isinstance(error, HTTPError) else str(getattr(error, "strerror", "") or error)[:200]
