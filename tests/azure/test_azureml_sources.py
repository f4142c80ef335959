"""Rows and models of Azure Machine Learning: addresses, MLflow's layouts, and inputs as a job of Azure finds them."""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import fetch_model
import pytest
import yaml
from permuted_label_control import derive_configuration

from lib.azure.machine_learning import (
    ModelVersion,
    StoredPath,
    Workspace,
    build_job_address,
    choose_job_type,
    parse_data,
    parse_model,
)
from lib.config.schema import Config
from lib.core.cli import UserError
from lib.core.files import hash_file, read_json
from lib.models.mlflow import flatten_model_folder
from lib.provenance.lineage import find_sha256
from lib.report.choice import _base_name
from snakemake_executor_plugin_azureml.specification import parse_inputs
from support.fetching import no_tokenizer
from support.gguf_files import write_gguf
from support.paths import ROOT, SCRIPTS
from support.workspaces import parameters_of, tiny_config, tiny_workspace

REGISTRY = "azureml://registries/azureml/models/Phi-3-mini-4k-instruct/versions/11"
FILE = "azureml://datastores/workspaceblobstore/paths/train/tickets.jsonl"
LONG = "azureml://subscriptions/s/resourcegroups/g/workspaces/w/"
LONG_UPPER = "azureml://subscriptions/S/resourcegroups/G/workspaces/W/"


# Addresses


def test_addresses_of_files():
    assert parse_data(FILE) == StoredPath(None, "workspaceblobstore", "train/tickets.jsonl")
    assert parse_data(f"{LONG}datastores/d/paths/a/b.csv") == StoredPath(Workspace("s", "g", "w"), "d", "a/b.csv")
    assert parse_data(f"{LONG.upper().replace('AZUREML', 'azureml')}Datastores/d/Paths/B.csv").path == "B.csv"
    assert parse_data(FILE.replace("datastores", "Datastores")).datastore == "workspaceblobstore"


def test_addresses_of_models():
    assert parse_model(REGISTRY) == ModelVersion("azureml", None, "Phi-3-mini-4k-instruct", "11")
    assert parse_model("azureml://models/mine/versions/2") == ModelVersion(None, None, "mine", "2")
    assert parse_model(f"{LONG}models/mine/versions/2") == ModelVersion(None, Workspace("s", "g", "w"), "mine", "2")
    assert parse_model("azureml://datastores/d/paths/model/") == StoredPath(None, "d", "model")


def test_a_job_names_a_model_of_its_workspace_in_azures_own_way():
    assert build_job_address("azureml://models/mine/versions/2") == "azureml:mine:2"
    assert build_job_address(REGISTRY) == REGISTRY
    assert build_job_address(f"{LONG}models/mine/versions/2") == f"{LONG}models/mine/versions/2"


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("AZUREML://Registries/R/MODELS/Phi-3/Versions/11", "azureml://registries/R/models/Phi-3/versions/11"),
        ("AzureML://DataStores/D/Paths/Train/A.JSONL", "azureml://datastores/D/paths/Train/A.JSONL"),
        (f"{LONG.upper()}MODELS/Mine/VERSIONS/2B", f"{LONG_UPPER}models/Mine/versions/2B"),
        (f"{LONG.upper()}DATASTORES/D/PATHS/Models/Paths/", f"{LONG_UPPER}datastores/D/paths/Models/Paths/"),
        ("AZUREML://Models/Models/Versions/Versions", "azureml:Models:Versions"),
    ],
)
def test_an_address_that_the_configuration_takes_is_one_that_a_job_takes(written, address):
    """The words of an address in any case; names keep theirs."""
    assert build_job_address(written) == address
    assert parse_model(written)
    (given,) = parse_inputs(f"model=uri_file:download:{build_job_address(written)}", "here").values()
    assert given.uri == address


@pytest.mark.parametrize(
    ("section", "changes", "said"),
    [
        ("data", {"source": FILE}, "source: needs sha256:"),
        ("data", {"source": "https://x/y.json", "sha256": "0" * 64}, "is not azureml://datastores/NAME/paths/FILE"),
        (
            "data",
            {"source": FILE, "sha256": "0" * 64, "files": ["a.json"]},
            r"give exactly one of files, .*\(found files and source\)",
        ),
        ("data", {"files": ["a.json"], "sha256": "0" * 64}, "sha256: belongs to source:"),
        ("base_model", {"source": "azureml://registries/r/models/m"}, "names no version, and a label moves"),
        (
            "base_model",
            {"source": "azureml://registries/r/models/m/labels/latest"},
            "names no version, and a label moves",
        ),
        ("base_model", {"source": "azureml://models/m/versions/Latest"}, "names no version, and a label moves"),
        ("base_model", {"source": "azureml://models/m/versions/"}, "names no version, and a label moves"),
        ("base_model", {"source": "azureml:m@latest"}, "names no version, and a label moves"),
        ("base_model", {"source": "azureml://models/my model/versions/1"}, "holds white space"),
        ("data", {"source": FILE.replace(".jsonl", ".txt"), "sha256": "0" * 64}, "use .json, .jsonl, .ndjson, .csv"),
        (
            "data",
            {"source": "azureml://datastores/d/paths/train/", "sha256": "0" * 64},
            "has a format that cannot be read",
        ),
        ("data", {"source": FILE, "sha256": "abc"}, "should match pattern"),
        ("base_model", {"source": "azureml:m:1"}, "is not azureml://registries/R/models/NAME/versions/N"),
        ("base_model", {"source": "azureml://datastores/d/paths/model"}, "source: needs sha256:"),
        ("base_model", {"path": "base", "asset_type": "custom_model"}, "asset_type: belongs to source:"),
        ("base_model", {"source": REGISTRY, "asset_type": "model"}, "'mlflow_model' or 'custom_model'"),
    ],
)
def test_wrong_sources_are_told(section, changes, said):
    config = tiny_config(Path("base"))
    config[section] = {key: value for key, value in config[section].items() if key not in ("files", "path")} | changes
    with pytest.raises(ValueError, match=said):
        Config.model_validate(config)


def test_only_what_is_used_is_a_parameter(tmp_path, tiny_llama):
    """The keys for Azure make nothing again for those who do not use them."""
    workspace = tiny_workspace(tmp_path, tiny_llama)
    done = workspace.snakemake("-n", "-p", "--until", "fetch_model", "fetch_data")
    assert '"source":{"path":' in done.stdout + done.stderr
    assert "azureml_inputs=" not in done.stdout + done.stderr or "azureml_inputs=," in done.stdout + done.stderr


# Models


def packed(base: Path, folder: Path, layout: str) -> Path:
    """The files of a model as MLflow packs them."""
    flavors: dict[str, dict] = {"python_function": {"loader_module": "mlflow.pyfunc"}}
    root = folder / "mlflow_model_folder" if layout.endswith("below") else folder
    if layout.startswith("hftransformers"):
        name = layout.split("-")[0]
        flavors[name] = {"model_data": "data", "task_type": "chat-completion"}
        places = {"config": "data/config", "tokenizer": "data/tokenizer", "model": "data/model"}
    else:
        flavors["transformers"] = {"model_binary": "model", "task": "text-generation"}
        places = {"config": "model", "tokenizer": "components/tokenizer", "model": "model"}
    for file in base.iterdir():
        kind = (
            "model"
            if file.suffix == ".safetensors"
            else "tokenizer"
            if "token" in file.name or "template" in file.name
            else "config"
        )
        for place in {places[kind], places["model"]} if layout == "hftransformersv2-whole" else {places[kind]}:
            (root / place).mkdir(parents=True, exist_ok=True)
            shutil.copy(file, root / place)
    if layout == "hftransformersv2-whole":
        shutil.rmtree(root / "data/config")
        shutil.rmtree(root / "data/tokenizer")
    (root / "MLmodel").write_text(yaml.safe_dump({"flavors": flavors, "mlflow_version": "3.17.2"}))
    return folder


def test_what_a_job_takes_the_model_for():
    assert choose_job_type(REGISTRY, "mlflow_model") == "mlflow_model"
    assert choose_job_type("azureml://models/mine/versions/2", "custom_model") == "custom_model"
    assert choose_job_type("azureml://Datastores/d/paths/model", "mlflow_model") == "uri_folder"
    assert choose_job_type("azureml://datastores/d/paths/model.gguf", "mlflow_model") == "uri_file"


@pytest.fixture
def fetch(monkeypatch, tmp_path):
    """Fetch a model that a job has at `given`, in this process: each new one imports torch. Returns the manifest."""

    def fetched(source: dict, model: Path, name: str, given: Path | None = None) -> dict:
        monkeypatch.setenv("AZUREML_INPUT_MODEL", str(given or model))
        settings = {"source": source, "parameters": parameters_of(model), "versions": {}}
        places = {"path": None, "cache": None, "tokenizer": no_tokenizer(tmp_path), "output": tmp_path / name}
        fetch_model.main(argparse.Namespace(settings=settings, **places))
        return read_json(tmp_path / f"{name}.manifest.json")

    return fetched


LAYOUTS = [
    "hftransformersv2",
    "hftransformers",
    "hftransformersv2-whole",
    "hftransformersv2-below",
    "transformers",
    "transformers-below",
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_packed_model_is_the_model_that_was_packed(tiny_model, tmp_path, layout, fetch):
    plain = fetch({"source": REGISTRY}, tiny_model, "plain")
    unpacked = fetch({"source": REGISTRY}, tiny_model, "unpacked", packed(tiny_model, tmp_path / "packed", layout))
    assert plain["files"] == unpacked["files"]
    assert not any(path.is_symlink() for path in (tmp_path / "unpacked").iterdir()), "it outlives the job's inputs"


@pytest.mark.parametrize("layout", ["hftransformersv2", "transformers", "plain"])
def test_the_hash_is_that_of_the_model_wherever_it_lies(tiny_llama, tmp_path, layout, fetch):
    """Of a model `registered/folder` a job may be given either folder; a download gives what is in the second."""
    folder = tmp_path / "job/registered/folder"
    shutil.copytree(tiny_llama, folder) if layout == "plain" else packed(tiny_llama, folder, layout)
    found = [fetch({"source": REGISTRY}, tiny_llama, f"base-{up}", place) for up, place in enumerate(
        (folder, folder.parent, folder.parent.parent)
    )]  # fmt: skip
    assert found[0] == found[1] == found[2]
    assert found[0]["source_sha256"] == find_sha256(folder)


@pytest.mark.parametrize("as_folder", [False, True])
def test_a_model_that_is_one_gguf_file(tiny_llama, tmp_path, as_folder, fetch):
    (tmp_path / "model").mkdir()
    file = write_gguf(tiny_llama, tmp_path / "model/tiny.gguf")
    found = fetch({"source": REGISTRY}, tiny_llama, "base", file.parent if as_folder else file)
    assert found["source_format"] == "gguf"
    assert found["source_sha256"] == find_sha256(file.parent)


def test_the_manifest_tells_where_it_came_from_and_which_files(tiny_llama, fetch):
    manifest = fetch({"source": REGISTRY}, tiny_llama, "base")
    assert manifest["settings"]["source"] == {"source": REGISTRY}
    assert manifest["source_sha256"] == find_sha256(tiny_llama)
    stated = fetch({"source": REGISTRY, "sha256": manifest["source_sha256"]}, tiny_llama, "again")
    assert stated == manifest, "to state the hash afterwards makes nothing else again"


def test_other_files_than_the_configuration_states_are_refused(tiny_llama, tmp_path, fetch):
    source = {"source": REGISTRY, "sha256": find_sha256(tiny_llama)}
    changed = shutil.copytree(tiny_llama, tmp_path / "changed")
    (changed / "generation_config.json").write_text("{}")
    with pytest.raises(UserError) as error:
        fetch(source, tiny_llama, "base", changed)
    assert str(error.value) == (
        f"{REGISTRY}: has sha256 {find_sha256(changed)}, the configuration states {source['sha256']};"
        " if it may have changed, write the new one into base_model.sha256"
    )
    assert not (tmp_path / "base").exists()


def test_an_input_that_the_job_has_not_is_told(tiny_llama, tmp_path, fetch):
    with pytest.raises(UserError, match="which AZUREML_INPUT_MODEL names, does not exist; unset it outside"):
        fetch({"source": REGISTRY}, tiny_llama, "base", tmp_path / "gone")


@pytest.mark.parametrize(
    ("mlmodel", "said"),
    [
        ({"flavors": {"python_function": {}}}, "has only python_function, which is code of its own"),
        (
            {"flavors": {"transformers": {"model_binary": "../outside"}}},
            "names the file '../outside', which does not lie below",
        ),
        ({"flavors": {"hftransformersv2": {"model_data": "/etc"}}}, "names the file '/etc/config', which is absolute"),
        ({"flavors": {"hftransformersv2": {"model_data": "nowhere"}}}, "names folders that are not there"),
        ({"no": "flavors"}, "its MLmodel cannot be read"),
        ("!!python/object/apply:os.system ['touch executed']", "its MLmodel cannot be read"),
    ],
)
def test_packages_without_a_model_are_told(tmp_path, mlmodel, said, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, scratch = tmp_path / "model", tmp_path / "scratch"
    folder.mkdir()
    scratch.mkdir()
    (folder / "MLmodel").write_text(mlmodel if isinstance(mlmodel, str) else yaml.safe_dump(mlmodel))
    with pytest.raises(UserError, match=said) as error:
        flatten_model_folder(folder, scratch, REGISTRY)
    assert str(error.value).startswith(f"{REGISTRY}: ")
    assert not (tmp_path / "executed").exists()


def test_weights_that_can_run_code_are_refused(tiny_llama, tmp_path, fetch):
    folder = packed(tiny_llama, tmp_path / "packed", "hftransformersv2")
    (folder / "data/model/model.safetensors").rename(folder / "data/model/pytorch_model.bin")
    with pytest.raises(UserError, match="only in pytorch_model.bin; only safetensors and GGUF are loaded"):
        fetch({"source": REGISTRY}, tiny_llama, "base", folder)


# Rows


def fetch_data(source: dict, output: Path, given: Path) -> subprocess.CompletedProcess:
    settings = {"source": source, "unreadable": "error", "versions": {}}
    command = [sys.executable, SCRIPTS / "fetch_data.py", "--settings", json.dumps(settings), "--output", output]
    env = {**os.environ, "AZUREML_INPUT_DATA": str(given)}
    return subprocess.run(command, env=env, capture_output=True, text=True)


def test_rows_of_a_datastore_know_their_address_and_line(tmp_path):
    rows = ROOT / "data/tones.json"
    source = {"source": FILE, "sha256": hash_file(rows)}
    done = fetch_data(source, tmp_path / "rows.jsonl", rows)
    assert done.returncode == 0, done.stderr
    first = json.loads((tmp_path / "rows.jsonl").read_text().splitlines()[0])
    assert first["file"] == FILE
    assert first["line"] == 2
    assert first["row"] == json.loads(rows.read_text())[0]


def test_another_file_than_the_configuration_states_is_refused(tmp_path):
    rows = ROOT / "data/tones.json"
    done = fetch_data({"source": FILE, "sha256": "0" * 64}, tmp_path / "rows.jsonl", rows)
    assert done.returncode == 1
    said = done.stderr.splitlines()[-1]
    assert said.startswith(f"error: {FILE}: has sha256 {hash_file(rows)}, the configuration states 000")
    assert not (tmp_path / "rows.jsonl").exists()


def test_a_broken_file_is_told_by_its_address(tmp_path):
    rows = tmp_path / "rows.json"
    rows.write_text('[{"a": 1},\n{"a"')
    done = fetch_data({"source": FILE, "sha256": hash_file(rows)}, tmp_path / "rows.jsonl", rows)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"error: {FILE}:2: ")


def test_a_folder_is_no_file(tmp_path):
    done = fetch_data({"source": FILE, "sha256": "0" * 64}, tmp_path / "rows.jsonl", tmp_path)
    assert done.returncode == 1
    assert done.stderr == f"error: {FILE}: it is not a file; name the one file that holds the rows\n"


def test_without_a_workspace_a_person_is_told_what_to_set(tmp_path):
    settings = {"source": {"source": FILE, "sha256": "0" * 64}, "unreadable": "error", "versions": {}}
    command = [
        sys.executable,
        SCRIPTS / "fetch_data.py",
        "--settings",
        json.dumps(settings),
        "--output",
        tmp_path / "rows",
    ]
    env = {name: value for name, value in os.environ.items() if not name.startswith(("AZUREML", "SNAKEMAKE"))}
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "the workspace is not known" in done.stderr.splitlines()[-1]
    assert "set SNAKEMAKE_AZUREML_SUBSCRIPTION_ID, SNAKEMAKE_AZUREML_RESOURCE_GROUP" in done.stderr.splitlines()[-1]


# Who else reads the sources of a configuration


def test_the_control_takes_the_place_of_azures_sources():
    config = tiny_config(Path("base"))
    del config["data"]["files"], config["base_model"]["path"]
    config["data"] |= {"source": FILE, "sha256": "0" * 64}
    config["base_model"] |= {"source": REGISTRY, "sha256": "0" * 64, "asset_type": "custom_model"}
    changed = Config.model_validate(
        derive_configuration(Config.model_validate(config), "results-control", Path("rows.jsonl"))
    )
    assert (changed.data.files, changed.base_model.path) == (["rows.jsonl"], "results/base")


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        (REGISTRY, "Phi-3-mini-4k-instruct"),
        ("azureml://models/mine/versions/2", "mine"),
        ("azureml://datastores/d/paths/models/tiny/", "tiny"),
        ("azureml://datastores/d/paths/tiny.gguf", "tiny"),
    ],
)
def test_the_report_names_the_model(uri, name):
    assert _base_name({"path": None, "hub": None, "package": None, "source": uri}) == name
