"""Files inside packages: the right one, checked, and one clear line for whatever is wrong.

Wheels and sdists stand in a folder, or on an index on loopback, where the real settings of pip lead.
"""

import base64
import hashlib
import io
import sys
import tarfile
import threading
import venv
import zipfile
from collections import namedtuple
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lib.core.cli import UserError
from lib.sources import package_index
from lib.sources.pypi import fetch_package_file
from support.wheels import METADATA, make_wheel


def tar_gz(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def make_sdist(folder: Path, files: dict[str, bytes]) -> str:
    """Write the sdist of demo-data 1.0, whose setup.py and build backend leave a mark when they run."""
    mark = folder / "backend-ran"
    setup = f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n".encode()
    backend = (
        f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n"
        "def prepare_metadata_for_build_wheel(directory, config_settings=None):\n"
        "    info = pathlib.Path(directory) / 'demo_data-1.0.dist-info'\n"
        "    info.mkdir()\n"
        f"    (info / 'METADATA').write_text({METADATA!r})\n"
        "    return info.name\n"
    )
    build = "[build-system]\nrequires = []\nbuild-backend = 'backend'\nbackend-path = ['.']\n"
    standard = {
        "PKG-INFO": METADATA.encode(),
        "setup.py": setup,
        "pyproject.toml": build.encode(),
        "backend.py": backend.encode(),
    }
    path = folder / "demo_data-1.0.tar.gz"
    path.write_bytes(tar_gz({f"demo_data-1.0/{name}": content for name, content in {**standard, **files}.items()}))
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def pip_settings(monkeypatch, tmp_path):
    """Function that writes its text into the file of settings that pip reads last."""

    def write(text: str) -> None:
        (tmp_path / "pip.conf").write_text(text)
        monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))

    for name in ("INDEX_URL", "EXTRA_INDEX_URL", "FIND_LINKS", "NO_INDEX"):
        monkeypatch.delenv(f"PIP_{name}", raising=False)
    monkeypatch.setenv("PIP_RETRIES", "0")
    return write


class Index(SimpleHTTPRequestHandler):
    """Pages and files of a folder, for who knows user and password; the log stays quiet."""

    def do_GET(self):
        if self.headers.get("Authorization") == "Basic " + base64.b64encode(b"ann:geheim").decode():
            super().do_GET()
        else:
            self.send_error(401)

    def log_message(self, *_):
        pass


@pytest.fixture
def index(tmp_path):
    """A folder that is served on loopback, and its address."""
    (tmp_path / "index/simple/demo-data").mkdir(parents=True)
    (tmp_path / "index/files").mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Index, directory=str(tmp_path / "index")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield tmp_path / "index", f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def shelf(tmp_path, monkeypatch) -> Path:
    """A folder that pip takes packages from, and nowhere else."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_the_hash_chooses_between_wheel_and_sdist(shelf, tmp_path):
    wheel = make_wheel(shelf, {"demo/a.txt": b"from the wheel"})
    sdist = make_sdist(shelf, {"data/a.txt": b"from the sdist"})
    assert fetch_package_file("demo-data", "1.0", wheel, "demo/a.txt", tmp_path / "w").read_bytes() == b"from the wheel"
    found = fetch_package_file("demo-data", "1.0", sdist, "demo_data-1.0/data/a.txt", tmp_path / "s")
    assert found == tmp_path / "s" / "a.txt"
    assert found.read_bytes() == b"from the sdist"
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["a.txt"]  # no scratch left
    assert not (shelf / "backend-ran").exists()


@pytest.mark.parametrize(
    "link", ["../../files/{}#sha256={}", "http://{host}/files/{}#sha256={}&x=1", "../../files/{}", "/files/{}#md5=0"]
)
def test_no_code_of_a_hostile_sdist_runs(index, pip_settings, tmp_path, link):
    folder, host = index
    sha256 = make_sdist(folder / "files", {"data/a.txt": b"a"})
    link = link.format("demo_data-1.0.tar.gz", sha256, host=host)
    (folder / "simple/demo-data/index.html").write_text(f'<!DOCTYPE html><a class="x" href="{link}">demo</a>')
    pip_settings(f"[global]\nindex-url = http://ann:geheim@{host}/simple\n")
    assert fetch_package_file("Demo.Data", "1.0", sha256, "demo_data-1.0/data/a.txt", tmp_path).read_bytes() == b"a"
    assert not (folder / "files/backend-ran").exists()


def test_a_login_is_asked_for_and_never_shown(index, pip_settings, tmp_path):
    _, host = index
    pip_settings(f"[global]\nindex-url = http://ann:falsch@{host}/simple\n")
    with pytest.raises(UserError, match=r"127\.0\.0\.1.*HTTP 401, a login: it belongs into") as caught:
        fetch_package_file("demo-data", "1.0", "0" * 64, "demo/a.txt", tmp_path / "out")
    assert "falsch" not in str(caught.value)


def test_an_index_on_disk_and_a_folder_are_looked_into_too(index, pip_settings, tmp_path):
    folder, host = index
    wheel = make_wheel(folder / "files", {"demo/a.txt": b"a"})
    link = f"../../files/demo_data-1.0-py3-none-any.whl#sha256={wheel}"
    (folder / "simple/demo-data/index.html").write_text(f'<a href="{link}">demo</a>')
    (tmp_path / "shelf").mkdir()
    sdist = make_sdist(tmp_path / "shelf", {"data/a.txt": b"b"})
    pip_settings(
        f"[global]\nindex-url = http://ann:geheim@{host}/none\nfind-links = {tmp_path}/shelf\n"
        f"extra-index-url =\n  {(folder / 'simple').as_uri()}\n  {(folder / 'files').as_uri()}\n"
        "[install]\nno-index = 1\n"
    )
    assert fetch_package_file("demo-data", "1.0", wheel, "demo/a.txt", tmp_path).read_bytes() == b"a"
    assert fetch_package_file("demo-data", "1.0", sdist, "demo_data-1.0/data/a.txt", tmp_path).read_bytes() == b"b"


def test_what_would_fill_the_disk_is_refused(shelf, tmp_path, monkeypatch):
    sha256 = make_wheel(shelf, {"demo/zeros": bytes(10 << 20)})
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(package_index.shutil, "disk_usage", lambda folder: usage(12 << 20))
    with pytest.raises(UserError, match=r"demo-data-1\.0|demo_data-1\.0.* more than half of the free disk"):
        fetch_package_file("demo-data", "1.0", sha256, "demo/zeros", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    monkeypatch.setattr(package_index.shutil, "disk_usage", lambda folder: usage(21 << 20))
    with zipfile.ZipFile(shelf / "demo_data-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("demo/zeros", bytes(20 << 20))
    sha256 = hashlib.sha256((shelf / "demo_data-1.0-py3-none-any.whl").read_bytes()).hexdigest()
    with pytest.raises(UserError, match=r"demo/zeros in package demo-data 1\.0 takes more than half of the free disk"):
        fetch_package_file("demo-data", "1.0", sha256, "demo/zeros", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_without_pip_nobody_knows_where_packages_lie(tmp_path, monkeypatch):
    venv.create(tmp_path / "bare", with_pip=False)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare/bin/python"))
    with pytest.raises(UserError, match=r"no pip whose settings name the package index; run: python -m ensurepip"):
        fetch_package_file("demo-data", "1.0", "0" * 64, "demo/a.txt", tmp_path / "out")


def test_an_archive_inside_the_package_is_reached_into(shelf, tmp_path):
    inner = tar_gz({"in/rows.tsv": b"1\t2\n"})
    sha256 = make_wheel(shelf, {"demo/more.tar.gz": inner})
    assert (
        fetch_package_file("demo-data", "1.0", sha256, "demo/more.tar.gz!in/rows.tsv", tmp_path).read_bytes()
        == b"1\t2\n"
    )


def test_nothing_of_a_package_with_another_hash_is_run(shelf, tmp_path):
    make_sdist(shelf, {"data/a.txt": b"a"})
    with pytest.raises(UserError, match=r"demo-data 1\.0 has no file with sha256 0{64} .*do not use it"):
        fetch_package_file("demo-data", "1.0", "0" * 64, "demo_data-1.0/data/a.txt", tmp_path / "out")
    assert not (shelf / "backend-ran").exists()
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("name", "version", "file", "message"),
    [
        ("demo-data", "2.0", "demo/a.txt", r"no package demo-data 2\.0; existing versions end with 1\.0"),
        ("demo-date", "1.0", "demo/a.txt", r"no package demo-date 1\.0; check its name"),
        ("demo-data", "1.0", "demo/b.txt", r"no file demo/b\.txt in package demo-data 1\.0; .* demo/a\.txt"),
        ("demo-data", "1.0", "demo/a.txt!x", r"demo/a\.txt is not a zip or tar archive"),
        ("demo-data", "1.0", "demo/../../a.txt", "not a path inside a package"),
        ("demo-data", "1.0", "/etc/passwd", "not a path inside a package"),
        ("demo-data --index-url http://x", "1.0", "a", "not a package name"),
        ("demo-data", "1.0\n--pre", "a", "not a package name"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(shelf, tmp_path, name, version, file, message):
    sha256 = make_wheel(shelf, {"demo/a.txt": b"a"})
    with pytest.raises(UserError, match=message) as caught:
        fetch_package_file(name, version, sha256, file, tmp_path / "out")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("index-url = http://127.0.0.1:9/simple", r"127\.0\.0\.1:9/simple/demo-data/: no connection"),
        ("index-url = https://127.0.0.1:9/simple", "no connection"),
        ("index-url = http://index.invalid/simple", "http without encryption; use https, or .*trusted-host"),
        ("index-url = http://index.invalid/simple\ntrusted-host = index.invalid", "no connection"),
        ("index-url = https://index.invalid/simple\nproxy = http://ann:geheim@127.0.0.1:9", "the proxy cannot be"),
        ("no-index = true\nfind-links = /no/such/folder", "/no/such/folder: No such file"),
        ("index-url = file:///no/such/folder", "/no/such/folder/demo-data/: No such file"),
    ],
)
def test_an_index_out_of_reach_is_not_called_an_unknown_package(pip_settings, tmp_path, settings, message):
    pip_settings(f"[global]\n{settings}\n")
    with pytest.raises(UserError, match=rf"out of reach \(.*{message}.*; check the network") as caught:
        fetch_package_file("demo-data", "1.0", "0" * 64, "demo/a.txt", tmp_path)
    assert "geheim" not in str(caught.value)


def test_a_link_in_an_archive_leads_nowhere(shelf, tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        link = tarfile.TarInfo("passwd")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    sha256 = make_wheel(shelf, {"demo/evil.tar.gz": buffer.getvalue()})
    with pytest.raises(UserError, match="no file passwd"):
        fetch_package_file("demo-data", "1.0", sha256, "demo/evil.tar.gz!passwd", tmp_path)


def test_tweets_are_labeled_at_half_a_point():
    from fetch_tweets import parse_tweet

    assert parse_tweet("7\t0.5\tA\ttab &amp; more") == {"id": "7", "text": "A\ttab &amp; more", "sentiment": "positive"}
    assert [parse_tweet(f"1\t{rating}\tx")["sentiment"] for rating in ("-0.5", "-0.49", "0.49", "2")] == [
        "negative",
        "neutral",
        "neutral",
        "positive",
    ]
