"""Fixtures that all tests share, and what becomes of tests that need torch where there is none."""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from filelock import FileLock

# Before anything imports them: their asserts then say what they compared, as those of a test do.
pytest.register_assert_rewrite("support")

# Read when torch is loaded, which the first test module may do. Tiny models run slower on several threads, and tests run
# side by side: a thread that waits leaves the core to others.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "0")


HAS_TORCH = find_spec("torch") is not None


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    """Skip a test module that imports torch, itself or through another one, where it is not installed."""
    return skip_without_torch((yield))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Skip a test that imports torch, itself or in a process that it starts, where it is not installed."""
    return skip_without_torch((yield))


LONGEST = ("test_runs", "test_workflow", "test_dvc", "test_distributed", "test_lineage")  # minutes each


def pytest_collection_modifyitems(items):
    """Take the longest files first: no worker ends with one of them alone."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


def skip_without_torch(report):
    from support.torch_imports import misses_torch

    if report.failed and not HAS_TORCH and misses_torch(str(report.longrepr)):
        report.outcome, report.longrepr = "skipped", (__file__, 0, "needs torch, which is not installed")
    return report


@pytest.fixture(scope="session")
def tiny_phi3(tmp_path_factory) -> Path:
    """Folder of a random 2-layer Phi-3 with its manifest, as `fetch_model` would leave it."""
    from support.tiny_models import make_tiny_phi3

    return _with_manifest(make_tiny_phi3(tmp_path_factory.mktemp("phi3") / "base"))


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory) -> Path:
    """Folder of a random 2-layer Llama with tied embeddings, with its manifest."""
    from support.tiny_models import make_tiny_llama

    return _with_manifest(make_tiny_llama(tmp_path_factory.mktemp("llama") / "base"))


@pytest.fixture(scope="session", params=["phi3", "llama"])
def tiny_model(request) -> Path:
    """Both of them, in turn."""
    return request.getfixturevalue(f"tiny_{request.param}")


@pytest.fixture
def hub():
    """A hub on loopback, empty."""
    from support.fake_hub import FakeHub

    with FakeHub() as hub:
        yield hub


@pytest.fixture(scope="session")
def run_script():
    """Run `scripts/<name>.py` as a person would; dicts become JSON arguments."""
    from support.paths import SCRIPTS

    def run(name: str, *args: object, check: bool = True, cwd: Path | None = None) -> subprocess.CompletedProcess:
        words = [json.dumps(arg) if isinstance(arg, (dict, list)) else str(arg) for arg in args]
        done = subprocess.run(
            [sys.executable, str(SCRIPTS / f"{name}.py"), *words], capture_output=True, text=True, cwd=cwd
        )
        if check:
            assert done.returncode == 0, f"{name} exited {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done

    return run


@pytest.fixture(scope="session", params=["classification", "generation"])
def made(request, tmp_path_factory, run_script):
    """A made-up run of each task, with its summary and report."""
    from support.made_run import MadeRun

    return MadeRun(tmp_path_factory.mktemp(request.param), run_script, request.param).finish()


@pytest.fixture(scope="session")
def made_sweep(tmp_path_factory, run_script):
    """A made-up sweep: several settings and seeds, a 4-bit base, runs that were not trained here."""
    from support.made_run import SWEEP, MadeRun

    return MadeRun(tmp_path_factory.mktemp("sweep"), run_script, runs=SWEEP).finish()


@pytest.fixture(scope="session")
def finished(tiny_llama, tmp_path_factory, worker_id) -> Path:
    """A workspace that was run from raw rows to the report, once for all that test side by side."""
    from support.workspaces import HOSTILE, finished_workspace

    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / f"-workspace {HOSTILE}"
    with FileLock(f"{folder}.lock"):
        if not (folder / "results/report.html").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            finished_workspace(folder, tiny_llama)
    return folder


@pytest.fixture
def workspace(finished, tmp_path):
    """The finished workspace, restored: bytes, time stamps and Snakemake's own record."""
    from support.workspaces import HOSTILE, restored

    return restored(finished, tmp_path / HOSTILE)


def _with_manifest(folder: Path) -> Path:
    from lib.provenance.manifests import write_manifest

    write_manifest(folder, inputs={}, settings={"source": {"path": "tiny"}}, extra={"source_format": "safetensors"})
    return folder
