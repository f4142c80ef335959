"""One storage emulator for all tests of this folder, a container and a control plane for each that asks for one."""

import re
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.workspaces import tiny_workspace

from .azurite import ACCOUNT, Azurite, running_azurite
from .control_plane import ControlPlane
from .nodes import PATH
from .runs import AzureWorkspace, as_checkout, copy_run, running_plane, undisturbed_adapter


@pytest.fixture(scope="session")
def azurite(tmp_path_factory) -> Iterator[Azurite]:
    with running_azurite(tmp_path_factory.mktemp("azurite")) as azurite:
        yield azurite


@pytest.fixture
def plane(azurite, tmp_path, monkeypatch) -> Iterator[ControlPlane]:
    """With two computes, an empty registry folder and a client's environment in this process."""
    registries = tmp_path / "registries"
    registries.mkdir()
    options = {"blob": azurite.connection_string, "registries": registries, "grace": 1}
    with ControlPlane(tmp_path / "plane", path=PATH, **options) as plane:
        for name, value in plane.environment().items():
            monkeypatch.setenv(name, value)
        yield plane


@pytest.fixture
def container(azurite, request) -> str:
    """The name of an empty container."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower())[:40].strip("-")
    name = f"{name}-{uuid.uuid4().hex[:8]}"  # names that begin alike stay apart
    azurite.client().create_container(name)
    return name


@pytest.fixture
def in_storage(azurite, monkeypatch) -> None:
    """This process reaches the storage as a job does."""
    monkeypatch.setenv("AZURITE_CONNECTION_STRING", azurite.connection_string)
    monkeypatch.setenv("SNAKEMAKE_STORAGE_AZURE_ACCOUNT_NAME", ACCOUNT)


@pytest.fixture(scope="session")
def to_train(azurite, tiny_llama, tmp_path_factory) -> Iterator[AzureWorkspace]:
    """A workspace with all that the training needs, which takes 108 steps."""
    root = tmp_path_factory.mktemp("to-train") / "workspace"
    root.mkdir()
    workspace = tiny_workspace(root, tiny_llama)
    workspace.configure(lambda config: config["finetune"].update(num_train_epochs=6))
    as_checkout(root)
    azurite.client().create_container("to-train")
    with running_plane(azurite, root.parent / "plane") as plane:
        workspace = AzureWorkspace(root, azurite, plane, "to-train")
        workspace.run("--", "results/corpus/leakage.json", "results/base.manifest.json")
        yield workspace


@pytest.fixture(scope="session")
def undisturbed(to_train, tmp_path_factory) -> str:
    return undisturbed_adapter(to_train.root, tmp_path_factory.mktemp("undisturbed") / "copy")


@pytest.fixture
def workspace(to_train, container, tmp_path) -> Iterator[AzureWorkspace]:
    """A copy of `to_train`, with a workspace of Azure Machine Learning of its own."""
    with running_plane(to_train.azurite, tmp_path / "plane") as plane:
        yield copy_run(to_train, tmp_path / "copy", plane, container)


def write_files(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(content)
    return folder
