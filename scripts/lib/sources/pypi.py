"""Files inside Python packages, fetched by name, version and hash.

Among the wheels and sdists of that version, where pip is set to look, the file with this sha256 is taken. Nothing
whose hash differs is opened, nothing is installed, and no code of a package runs.
"""

import difflib
import os
import re
import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeVar

from packaging.specifiers import SpecifierSet

from lib.core.cli import fail, report_progress
from lib.core.files import hash_file, publish_directory
from lib.core.paths import find_fault
from lib.core.progress_lock import hold_progress
from lib.sources.package_index import DOWNLOADED, REMEDY, BoundedOutput, PackageFile, PackageIndex

_Member = TypeVar("_Member")


def fetch_package_file(name: str, version: str, sha256: str, file: str, into: Path, cache: Path | None = None) -> Path:
    """Download the package and extract one file of it into the folder `into`; returns its path.

    file: path inside the wheel or sdist; `a/b.tar.gz!c.txt` reaches into an archive inside it.
    cache: a folder that keeps the package, so that it is downloaded once.
    Raises `UserError` when there is no such package, version or file, when no file of that version
    has this sha256, when an index is out of reach, and when the disk is too small.
    """
    _check_names(name, version, file)
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=into) as scratch:
        extracted = Path(scratch) / "extracted"
        with (
            _open_package(name, version, sha256.lower(), cache, Path(scratch)) as stream,
            BoundedOutput(extracted, f"{file} in package {name} {version}") as output,
        ):
            _extract(stream, file.split("!"), output, f"{name} {version}")
        return extracted.rename(into / Path(file.rpartition("!")[2]).name)


@contextmanager
def _open_package(name: str, version: str, sha256: str, cache: Path | None, scratch: Path) -> Iterator[IO[bytes]]:
    """Open a package: that of the cache, if it has this hash, or the one that is downloaded."""
    if cache is None:
        with open(_download(name, version, sha256, scratch), "rb") as stream:
            yield stream
        return
    kept = cache / sha256[:16] / "package"
    archive = kept / DOWNLOADED
    with hold_progress(kept.parent):  # another run may be downloading it
        if not archive.is_file() or hash_file(archive) != sha256:
            with publish_directory(kept) as folder:
                _download(name, version, sha256, folder)
        os.utime(archive)  # `make clean-work DAYS=` keeps what is in use
        with open(archive, "rb") as stream:
            yield stream


def _check_names(name: str, version: str, file: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) or not re.fullmatch(
        r"[A-Za-z0-9][A-Za-z0-9.!+_-]*", version
    ):
        fail(f"{name!r} {version!r} is not a package name and an exact version", "write name: abc, version: 1.2.3")
    for part in file.split("!"):
        if find_fault(part) is not None:
            fail(f"{file!r} is not a path inside a package", "write it as the package lists it: folder/file")


def _download(name: str, version: str, sha256: str, folder: Path) -> Path:
    """Copy the file with this hash into `folder`; of files whose hash no index states, each is tried."""
    report_progress(f"downloading package {name} {version}")
    index = PackageIndex()
    files, problems = index.list_files(name)
    wanted = [file for file in files if _is_version(file, version)]
    if not wanted:
        _explain_absence(f"{name} {version}", files, problems)
    offered = {}
    for file in [file for file in wanted if file.sha256 == sha256] or [file for file in wanted if not file.sha256]:
        path, found = index.download(file, folder)
        if found == sha256:
            return path
        offered[file.name] = found
    offered |= {file.name: file.sha256 for file in wanted if file.sha256 and file.name not in offered}
    what = ", ".join(f"{file} {found}" for file, found in list(offered.items())[:2])
    unread = f"; out of reach: {problems[0]}" if problems else ""
    fail(
        f"package {name} {version} has no file with sha256 {sha256} (offered: {what}{unread})",
        "compare the sha256 with the package's page: if the file was changed there, do not use it",
    )


def _is_version(file: PackageFile, version: str) -> bool:
    return SpecifierSet(f"=={version}").contains(file.version, prereleases=True)


def _explain_absence(package: str, files: list[PackageFile], problems: list[str]) -> None:
    if problems:
        fail(f"package {package} is not found, and a package index is out of reach ({problems[0]})", REMEDY)
    if files:
        versions = [str(version) for version in sorted({file.version for file in files})]
        fail(f"there is no package {package}", f"existing versions end with {', '.join(versions[-5:])}")
    fail(f"there is no package {package}", "check its name, and the index that pip is set to use")


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
    """Return whether a member of a zip archive is no folder, and no link as Unix writes them."""
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
