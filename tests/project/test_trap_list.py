"""The lists that name their tests (traps, attacks, inputs that failed, what is trusted): complete, and every place that they name exists."""

import ast
import re
from pathlib import Path

import pytest

from support.paths import ROOT, SCRIPTS

TRAPS = 57
CASES = 45
ATTACKS = [
    *(f"H{number}" for number in range(1, 8)),
    *(f"M{number}" for number in range(1, 13)),
    *(f"L{number}" for number in range(1, 14)),
]
NAME = re.compile(r"`([\w/]+\.py)::(\w+)`")
TEST = re.compile(r"`((?:\w+/)*test_\w+\.py)::(\w+)`")


def rows() -> list[list[str]]:
    """Cells of each trap: number, trap, symptom, tests, checks in every run, more."""
    lines = (ROOT / "tests" / "traps.md").read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if re.match(r"\| \d", line)]


def test_every_trap_is_listed_once_with_a_test():
    assert [row[0] for row in rows()] == [str(number) for number in range(1, TRAPS + 1)]
    for number, trap, symptom, tests, checks, _more in rows():
        assert trap, number
        assert symptom, number
        for cell in (tests, checks):
            assert NAME.sub("", cell).strip() == "", f"{number}: {cell} is more than names"
        assert NAME.findall(tests), number


def test_every_attack_is_listed_once_with_a_test():
    lines = (ROOT / "tests" / "attacks.md").read_text(encoding="utf-8").splitlines()
    attacks = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if re.match(r"\| [HML]\d", line)]
    assert [attack[0] for attack in attacks] == ATTACKS
    for attack in attacks:
        assert TEST.findall(attack[-1]), attack[0]


def test_every_input_that_failed_once_names_a_test():
    lines = (ROOT / "tests" / "cases.md").read_text(encoding="utf-8").splitlines()
    cases = [line.strip("|").split(" | ") for line in lines if line.startswith("| ")][2:]
    assert len({case[0] for case in cases}) == len(cases) == CASES
    for case, _, tests in cases:
        assert TEST.findall(tests), case


def test_every_promise_of_the_security_page_names_a_test():
    lines = (ROOT / "SECURITY.md").read_text(encoding="utf-8").splitlines()
    promises = [line for line in lines if line.startswith("| ") and not line.startswith(("| what", "| ---"))]
    assert len(promises) > 10
    for promise in promises:
        assert TEST.findall(promise), promise


def test_every_test_that_a_list_names_is_there():
    lists = [ROOT / name for name in ("tests/traps.md", "tests/attacks.md", "tests/cases.md", "SECURITY.md")]
    lines = [line for path in lists for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    named = {(f"tests/{file}", name) for line in lines for file, name in TEST.findall(line)}
    assert len(named) > 100
    assert {(file, name) for file, name in named if name not in list_functions(ROOT / file)} == set()


def list_functions(path: Path) -> set[str]:
    """The names of a module's functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_every_function_that_the_list_names_is_there(row):
    for file, name in NAME.findall(row[4]):
        assert name in list_functions(SCRIPTS / file), f"{file}::{name}"
