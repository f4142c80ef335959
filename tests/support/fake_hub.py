"""A small Hugging Face hub on loopback: real HTTP, the few endpoints that down- and uploads use, and faults.

with FakeHub() as hub:
    hub.add("owner/name", {"config.json": b"{}"})
    hub.environment(cache)     # HF_ENDPOINT and HF_HOME for a script
"""

import base64
import hashlib
import json
import os
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".safetensors", ".gguf", ".bin", ".parquet")  # what a hub keeps in large file storage


@dataclass
class Repository:
    """Files of one commit, and what goes wrong with them.

    token: the repository is gated and this token opens it. corrupt: names of files that arrive with
    a changed byte. cut: bytes after which the connection breaks, by file name; the hub then answers
    503 for that file until `mend` is called. cut_once: the same, without the 503 afterwards.
    """

    files: dict[str, bytes]
    commit: str = COMMIT
    token: str | None = None
    corrupt: set[str] = field(default_factory=set)
    cut: dict[str, int] = field(default_factory=dict)
    cut_once: dict[str, int] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)

    def mend(self) -> None:
        for faults in (self.corrupt, self.cut, self.cut_once, self.broken):
            faults.clear()


class FakeHub:
    """requests: (method, path, Range header or None) in order of arrival."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.private: dict[str, bool] = {}
        self.large: dict[str, bytes] = {}  # uploaded, by sha256
        self.token: str | None = None  # that opens it for uploads
        self.requests: list[tuple[str, str, str | None]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def add(self, id_: str, files: dict[str, bytes] | Path, **options) -> Repository:
        """Publish a model (a dataset under "datasets/owner/name"), from bytes or from a folder."""
        if isinstance(files, Path):
            files = {path.name: path.read_bytes() for path in files.iterdir() if path.is_file()}
        self.repositories[id_] = Repository(files, **options)
        return self.repositories[id_]

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """Environment of a process that knows this hub and no other, and no token of its user."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        return {**kept, "HF_ENDPOINT": self.url, "HF_HOME": str(home), **more}

    def fetched(self, name: str) -> int:
        """How often the content of a file was asked for."""
        return sum(method == "GET" and path.endswith(f"/{name}") for method, path, _ in self.requests)

    def __enter__(self) -> "FakeHub":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            """Take an upload: large files by LFS's basic transfer, small ones within the commit."""
            path, body = self.path.partition("?")[0], self.rfile.read(int(self.headers.get("Content-Length", 0)))
            hub.requests.append((self.command, path, self.headers.get("Authorization")))
            if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
                return self._refuse(403, "")
            if path == "/api/validate-yaml":  # of a README.md
                return self._json({"errors": [], "warnings": []})
            if path == "/api/repos/create":
                asked = json.loads(body)
                id_ = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
                hub.private[id_] = asked.get("visibility") == "private" or asked.get("private", False)
                hub.repositories.setdefault(id_, Repository({}))
                return self._json({"url": f"{hub.url}/{id_}", "id": id_})
            if match := re.fullmatch(r"/api/models/(.+?)/preupload/main", path):
                files = [
                    {"path": one["path"], "uploadMode": "lfs" if one["path"].endswith(LARGE) else "regular",
                     "shouldIgnore": False, "oid": None}
                    for one in json.loads(body)["files"]
                ]  # fmt: skip
                return self._json({"files": files})
            if re.fullmatch(r"/.+\.git/info/lfs/objects/batch", path):
                objects = [
                    {**one, "actions": {"upload": {"href": f"{hub.url}/lfs/{one['oid']}", "header": {}}}}
                    for one in json.loads(body)["objects"]
                ]
                return self._json({"transfer": "basic", "objects": objects})
            if match := re.fullmatch(r"/api/models/(.+?)/commit/main", path):
                files = hub.repositories[match[1]].files
                for line in body.splitlines():
                    entry = json.loads(line)
                    if entry["key"] == "file":
                        files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
                    elif entry["key"] == "lfsFile":
                        files[entry["value"]["path"]] = hub.large[entry["value"]["oid"]]
                url = f"{hub.url}/{match[1]}/commit/{COMMIT}"
                return self._json({"success": True, "commitOid": COMMIT, "commitUrl": url})
            return self._refuse(404, "")

        def do_PUT(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            hub.large[self.path.rpartition("/")[2]] = content
            self._start(200, {"Content-Length": "0"})

        def _answer(self) -> None:
            path = self.path.partition("?")[0]
            hub.requests.append((self.command, path, self.headers.get("Range")))
            if match := re.fullmatch(r"/api/(models|datasets)/(.+?)(?:/(revision|tree)/([^/]+)(?:/.*)?)?", path):
                kind, id_, what, revision = match.groups()
                prefix = "" if kind == "models" else "datasets/"
                if repository := self._repository(prefix + id_, revision):
                    self._json(_tree(repository) if what == "tree" else _info(id_, repository))
            elif match := re.fullmatch(r"/((?:datasets/)?.+?)/resolve/([^/]+)/(.+)", path):
                id_, revision, name = match.groups()
                if repository := self._repository(id_, revision):
                    self._file(repository, name)
            else:
                self._refuse(404, "")

        def _repository(self, id_: str, revision: str | None) -> Repository | None:
            repository = hub.repositories.get(id_)
            if repository is None:
                self._refuse(401, "RepoNotFound")  # the status does not tell a stranger that it is only private
            elif revision not in (None, "main", repository.commit):
                self._refuse(404, "RevisionNotFound")
            else:
                return repository
            return None

        def _file(self, repository: Repository, name: str) -> None:
            if repository.token and self.headers.get("Authorization") != f"Bearer {repository.token}":
                return self._refuse(403 if "Authorization" in self.headers else 401, "GatedRepo")
            if name not in repository.files:
                return self._refuse(404, "EntryNotFound")
            if name in repository.broken:
                return self._refuse(503, "")
            content = repository.files[name]
            headers = {"X-Repo-Commit": repository.commit, "ETag": f'"{_git_sha1(content)}"', "Accept-Ranges": "bytes"}
            if name.endswith(LARGE):
                sha256 = hashlib.sha256(content).hexdigest()
                headers |= {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(content))}
            if name in repository.corrupt:
                content = content[:-1] + bytes([content[-1] ^ 1])
            start = int(re.sub(r"\D", "", self.headers["Range"].partition("-")[0])) if "Range" in self.headers else 0
            if start:
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self._start(206 if start else 200, {**headers, "Content-Length": str(len(content) - start)})
            if self.command == "GET":
                self._send(repository, name, content, start)

        def _send(self, repository: Repository, name: str, content: bytes, start: int) -> None:
            for faults in (repository.cut, repository.cut_once):
                if name in faults:
                    end = faults.pop(name)
                    if faults is repository.cut:
                        repository.broken.add(name)
                    self.wfile.write(content[start:end])
                    self.wfile.flush()
                    self.close_connection = True
                    return
            self.wfile.write(content[start:])

        def _json(self, value: object) -> None:
            body = json.dumps(value).encode()
            self._start(200, {"Content-Type": "application/json", "Content-Length": str(len(body))})
            if self.command != "HEAD":
                self.wfile.write(body)

        def _refuse(self, status: int, code: str) -> None:
            self._start(status, {"Content-Length": "0", **({"X-Error-Code": code} if code else {})})

        def _start(self, status: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.end_headers()

    return Handler


def _git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _tree(repository: Repository) -> list[dict]:
    entries = []
    for name, content in sorted(repository.files.items()):
        entry = {"type": "file", "path": name, "size": len(content), "oid": _git_sha1(content)}
        if name.endswith(LARGE):
            sha256 = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 134}
        entries.append(entry)
    return entries


def _info(id_: str, repository: Repository) -> dict:
    siblings = [{"rfilename": name} for name in sorted(repository.files)]
    return {"id": id_, "sha": repository.commit, "private": False, "tags": [], "siblings": siblings}
