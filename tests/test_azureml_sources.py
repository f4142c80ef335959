"""Rows and models of Azure Machine Learning: addresses, MLflow's layouts, and inputs as a job of Azure finds them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, SCRIPTS
from workspaces import parameters_of, tiny_config, tiny_workspace

from lib.azureml import ModelVersion, StoredPath, Workspace, job_address, job_type, parse_data, parse_model
from lib.cli import UserError
from lib.config import Config
from lib.files import read_json, sha256_file
from lib.lineage import sha256_of
from lib.mlflow_layout import flat_folder

REGISTRY = "azureml://registries/azureml/models/Phi-3-mini-4k-instruct/versions/11"
FILE = "azureml://datastores/workspaceblobstore/paths/train/tickets.jsonl"
LONG = "azureml://subscriptions/s/resourcegroups/g/workspaces/w/"


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
    assert job_address("azureml://models/mine/versions/2") == "azureml:mine:2"
    assert job_address(REGISTRY) == REGISTRY
    assert job_address(f"{LONG}models/mine/versions/2") == f"{LONG}models/mine/versions/2"


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
        ("data", {"source": FILE.replace(".jsonl", ".txt"), "sha256": "0" * 64}, "use .json, .jsonl, .ndjson, .csv or"),
        ("data", {"source": "azureml://datastores/d/paths/train/", "sha256": "0" * 64}, "is not a file that is read"),
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
    assert job_type(REGISTRY, "mlflow_model") == "mlflow_model"
    assert job_type("azureml://models/mine/versions/2", "custom_model") == "custom_model"
    assert job_type("azureml://Datastores/d/paths/model", "mlflow_model") == "uri_folder"
    assert job_type("azureml://datastores/d/paths/model.gguf", "mlflow_model") == "uri_file"


def fetch_model(source: dict, parameters: int, output: Path, given: Path) -> subprocess.CompletedProcess:
    settings = {"source": source, "parameters": parameters, "versions": {}}
    command = [sys.executable, SCRIPTS / "fetch_model.py", "--settings", json.dumps(settings), "--output", output]
    env = {**os.environ, "AZUREML_INPUT_MODEL": str(given)}
    return subprocess.run(command, env=env, capture_output=True, text=True)


LAYOUTS = [
    "hftransformersv2",
    "hftransformers",
    "hftransformersv2-whole",
    "hftransformersv2-below",
    "transformers",
    "transformers-below",
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_packed_model_is_the_model_that_was_packed(tiny_model, tmp_path, layout):
    parameters = parameters_of(tiny_model)
    plain, unpacked = tmp_path / "plain", tmp_path / "unpacked"
    assert fetch_model({"source": REGISTRY}, parameters, plain, tiny_model).returncode == 0
    done = fetch_model({"source": REGISTRY}, parameters, unpacked, packed(tiny_model, tmp_path / "packed", layout))
    assert done.returncode == 0, done.stderr
    hashes = [read_json(path.with_name(f"{path.name}.manifest.json"))["files"] for path in (plain, unpacked)]
    assert hashes[0] == hashes[1]
    assert not any(path.is_symlink() for path in unpacked.iterdir()), "what is fetched outlives the job's inputs"


def test_the_manifest_tells_where_it_came_from_and_which_files(tiny_llama, tmp_path):
    done = fetch_model({"source": REGISTRY}, parameters_of(tiny_llama), tmp_path / "base", tiny_llama)
    assert done.returncode == 0, done.stderr
    manifest = read_json(tmp_path / "base.manifest.json")
    assert manifest["settings"]["source"] == {"source": REGISTRY}
    assert manifest["source_sha256"] == sha256_of(tiny_llama)


def test_other_files_than_the_configuration_states_are_refused(tiny_llama, tmp_path):
    source = {"source": REGISTRY, "sha256": sha256_of(tiny_llama)}
    assert fetch_model(source, parameters_of(tiny_llama), tmp_path / "base", tiny_llama).returncode == 0
    changed = shutil.copytree(tiny_llama, tmp_path / "changed")
    (changed / "generation_config.json").write_text("{}")
    done = fetch_model(source, parameters_of(tiny_llama), tmp_path / "again", changed)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"error: {REGISTRY}: has sha256 {sha256_of(changed)}, the configuration states {source['sha256']};"
        " if it may have changed, write the new one into base_model.sha256"
    )
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("mlmodel", "said"),
    [
        ({"flavors": {"python_function": {}}}, "has only python_function, which is code of its own"),
        ({"flavors": {"transformers": {"model_binary": "../outside"}}}, "points outside of it: ../outside"),
        ({"flavors": {"hftransformersv2": {"model_data": "/etc"}}}, "points outside of it: /etc/config"),
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
        flat_folder(folder, scratch, REGISTRY)
    assert str(error.value).startswith(f"{REGISTRY}: ")
    assert not (tmp_path / "executed").exists()


def test_weights_that_can_run_code_are_refused(tiny_llama, tmp_path):
    folder = packed(tiny_llama, tmp_path / "packed", "hftransformersv2")
    (folder / "data/model/model.safetensors").rename(folder / "data/model/pytorch_model.bin")
    done = fetch_model({"source": REGISTRY}, parameters_of(tiny_llama), tmp_path / "base", folder)
    assert done.returncode == 1
    assert "its weights are only in pytorch_model.bin; only safetensors and GGUF are loaded" in done.stderr


# Rows


def fetch_data(source: dict, output: Path, given: Path) -> subprocess.CompletedProcess:
    settings = {"source": source, "unreadable": "error", "versions": {}}
    command = [sys.executable, SCRIPTS / "fetch_data.py", "--settings", json.dumps(settings), "--output", output]
    env = {**os.environ, "AZUREML_INPUT_DATA": str(given)}
    return subprocess.run(command, env=env, capture_output=True, text=True)


def test_rows_of_a_datastore_know_their_address_and_line(tmp_path):
    rows = ROOT / "data/tones.json"
    source = {"source": FILE, "sha256": sha256_file(rows)}
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
    assert said.startswith(f"error: {FILE}: has sha256 {sha256_file(rows)}, the configuration states 000")
    assert not (tmp_path / "rows.jsonl").exists()


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
    assert "it is not known which workspace is meant" in done.stderr.splitlines()[-1]
    assert "set SNAKEMAKE_AZUREML_SUBSCRIPTION_ID, SNAKEMAKE_AZUREML_RESOURCE_GROUP" in done.stderr.splitlines()[-1]
