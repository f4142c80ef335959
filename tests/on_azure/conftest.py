"""One storage emulator for all tests of this folder, a container and a control plane for each that asks for one."""

import os
import re
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from .azurite import ACCOUNT, Azurite, running_azurite
from .control_plane import ControlPlane

PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"


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


def environment_of_jobs(azurite: Azurite) -> dict[str, str]:
    """What a process needs to reach the storage, without what this machine knows of any other."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AZURE", "SNAKEMAKE", "MSI_"))}
    return {
        **kept,
        "AZURITE_CONNECTION_STRING": azurite.connection_string,
        "SNAKEMAKE_STORAGE_AZURE_ACCOUNT_NAME": ACCOUNT,
    }


def write_files(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(content)
    return folder
