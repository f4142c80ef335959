"""Under a Python without torch the tests that need it are skipped, and no other failure is."""

import shutil
import subprocess
import sys

import pytest

from support.paths import ROOT

# pytest where torch cannot be imported; with "broken" it is installed all the same.
BLOCKED = """
import importlib.util, sys
found, find = (sys.argv[2] == "broken") or None, importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: found if name == "torch" else find(name, *rest)

class Nothing:
    def find_spec(name, path=None, target=None):
        if name == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Nothing)
import pytest
options = ["-q", "--continue-on-collection-errors", "-p", "no:cacheprovider", "-p", "no:xdist"]
sys.exit(pytest.main([*options, sys.argv[1]]))
"""
TESTS = """
import subprocess, sys

def test_a_late_import():
    import torch

def test_a_process():
    done = subprocess.run([sys.executable, "-c", "exit(\\"No module named 'torch'\\")"], stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr

def test_another_fault():
    assert 1 == 2

def test_another_module():
    import torchless

def test_nothing():
    pass
"""


@pytest.fixture
def outcome(tmp_path):
    """Run tests that need torch in three ways, and others, with the hooks of the project."""
    shutil.copy(ROOT / "tests/conftest.py", tmp_path)
    shutil.copytree(ROOT / "tests/support", tmp_path / "support")
    (tmp_path / "helper.py").write_text("import torch\n")
    (tmp_path / "test_early.py").write_text("import helper\ndef test(): pass\n")
    (tmp_path / "test_broken.py").write_text("import torchless\n")
    (tmp_path / "test_late.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\npythonpath = .\n")

    def run(how: str) -> str:
        command = [sys.executable, "-c", BLOCKED, str(tmp_path), how]
        return subprocess.run(command, capture_output=True, text=True).stdout.splitlines()[-1]

    return run


def test_what_needs_torch_is_skipped_and_nothing_else(outcome):
    assert outcome("missing").startswith("2 failed, 1 passed, 3 skipped, 1 error ")


def test_a_torch_that_is_installed_and_fails_is_no_reason_to_skip(outcome):
    assert outcome("broken").startswith("4 failed, 1 passed, 2 errors ")
