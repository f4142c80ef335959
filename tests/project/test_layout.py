"""The walls of the house: which package may import which, what no rule's script may know, where tests lie."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from lib.provenance.code_closure import find_code_closure
from support.paths import ROOT, SCRIPTS
from support.rules import RULE_SCRIPTS, TEXT

LIB, TESTS = SCRIPTS / "lib", ROOT / "tests"
# A package imports only from itself and from those before it.
PACKAGES = [
    "core",
    "provenance",
    "hardware",
    "azure",
    "data",
    "sources",
    "models",
    "training",
    "onnx",
    "evaluation",
    "serving",
    "config",
    "olive",
    "report",
    "tracking",
    "workflow",
]
# What the rules start: their own scripts, and those that stand before them or beside them in a command.
STARTED = sorted(set(re.findall(r'\bscript\("(\w+)"\)', TEXT)))


def find_imports(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the place and the full name of everything that a file imports; `from .a import b` gives `.a.b`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names]
        for name in names:
            yield f"{path.relative_to(ROOT)}:{node.lineno}", name


def package_of(path: Path) -> str:
    return path.relative_to(LIB).parts[0]


def is_module(name: str) -> bool:
    return SCRIPTS.joinpath(*name.split(".")).with_suffix(".py").is_file()


def test_every_module_lies_in_a_package():
    assert {package_of(path) for path in LIB.rglob("*.py")} == {"__init__.py", *PACKAGES}


def test_init_files_are_empty():
    """An import of one module would run what another one needs, and the closure of a script would miss it."""
    assert [str(path) for path in LIB.rglob("__init__.py") if path.read_bytes()] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_from_packages_before_it(package):
    allowed = PACKAGES[: PACKAGES.index(package) + 1]
    imports = [found for path in (LIB / package).rglob("*.py") for found in find_imports(path)]
    ours = [(place, name) for place, name in imports if name.split(".")[0] == "lib"]
    assert [(place, name) for place, name in ours if name.split(".")[1] not in allowed] == []


def test_imports_are_written_so_that_the_closure_finds_them():
    """Each names its module in full: `code_closure` knows neither relative imports nor attributes of a package."""
    imports = [found for path in SCRIPTS.rglob("*.py") for found in find_imports(path)]
    assert [(place, name) for place, name in imports if name.startswith(".")] == []
    ours = [(place, name) for place, name in imports if name.split(".")[0] == "lib"]
    assert [
        (place, name) for place, name in ours if not is_module(name) and not is_module(name.rpartition(".")[0])
    ] == []


def test_only_the_package_workflow_imports_snakemake():
    files = [path for path in SCRIPTS.rglob("*.py") if LIB / "workflow" not in path.parents]
    imports = [found for path in files for found in find_imports(path)]
    assert [(place, name) for place, name in imports if name.startswith("snakemake")] == []


def test_the_walls_know_every_script_that_a_rule_starts():
    assert {*RULE_SCRIPTS, "with_gpus", "fetch_results"} <= set(STARTED)


@pytest.mark.parametrize("name", STARTED)
def test_no_script_of_a_rule_knows_the_workflow_the_configuration_or_the_resources(name):
    """An edit to how runs are planned, checked or given memory must retrain nothing."""
    closure = find_code_closure(SCRIPTS / f"{name}.py")
    assert closure
    assert [path.name for path in closure if package_of(path) in ("workflow", "config")] == []
    assert LIB / "hardware" / "resources.py" not in closure


def test_no_test_module_imports_another():
    """What tests share lies in tests/support: importing a test module would collect its fixtures and run its set-up."""
    imports = [found for path in TESTS.rglob("*.py") for found in find_imports(path)]
    assert [(place, name) for place, name in imports if "test_" in {part[:5] for part in name.split(".")}] == []


def test_tests_lie_in_folders_like_the_packages():
    own = {"on_azure", "conda", "faults", "project", "slurm"}
    assert {path.parent.name for path in TESTS.rglob("test_*.py")} == {*PACKAGES, *own}
    hiding = [name for name in PACKAGES if (TESTS / name / "__init__.py").exists()]
    assert hiding == [], "as packages, tests/onnx and tests/azure would hide the libraries of these names"
