"""DVC keeps data and models in the storage account that runs use (profiles/azureml/README.md)."""

import shutil
import subprocess
from pathlib import Path

import pytest

from support.paths import ROOT

from .azurite import environment_of_jobs
from .conftest import write_files

pytestmark = pytest.mark.azure


def test_results_go_to_azure_storage_and_come_back(azurite, container, tmp_path):
    env = {**environment_of_jobs(azurite), "AZURE_STORAGE_CONNECTION_STRING": azurite.connection_string}

    def dvc(*words: str) -> str:
        done = subprocess.run([ROOT / ".venv/bin/dvc", *words], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    dvc("init", "-q")
    model = write_files(tmp_path / "results/model", **{"model.onnx": "weights", "genai_config.json": "{}"})
    dvc("add", "-q", "results/model")
    dvc("remote", "add", "--default", "azure", f"azure://{container}/dvc")
    dvc("push")
    assert len(azurite.blobs(container, "dvc/")) == 3, "two files, and the list of them"
    assert "in sync" in dvc("status", "--cloud")

    shutil.rmtree(model)
    shutil.rmtree(tmp_path / ".dvc/cache")
    dvc("pull")
    assert {path.name: path.read_text() for path in Path(model).iterdir()} == {
        "model.onnx": "weights",
        "genai_config.json": "{}",
    }
