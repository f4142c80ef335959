"""Which code a script runs: its rule is rerun, and its progress is foreign, when that code changes."""

import ast
import hashlib
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path


@cache
def find_code_closure(script: Path) -> list[Path]:
    """Return the `scripts/lib` modules that a script imports, directly or through another, sorted.

    They are inputs of its rule: an edit reruns it, a touch does not. Computed from the source, so no
    list can be forgotten.
    """
    folder = script.parent
    found: set[Path] = set()
    waiting = [script]
    while waiting:
        for name in _find_imports(waiting.pop()):
            module = folder.joinpath(*name.split(".")).with_suffix(".py")
            if module not in found and module.is_file():
                found.add(module)
                waiting.append(module)
    return sorted(found)


def hash_code(paths: Iterable[Path]) -> str:
    """Return the sha256 of what these modules do: comments, docstrings and layout do not count.

    Python's minor version is part of it: it decides what the same code does, and how its syntax tree is written.
    """
    digest = hashlib.sha256(repr(sys.version_info[:2]).encode())
    for path in paths:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and _has_docstring(
                node
            ):
                node.body = node.body[1:] or [ast.Pass()]
        digest.update(ast.dump(tree).encode())
    return digest.hexdigest()


def _has_docstring(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Return whether a module, class or function begins with a docstring."""
    return ast.get_docstring(node, clean=False) is not None


@cache
def _find_imports(path: Path) -> set[str]:
    """Return dotted names that begin with `lib`. `from lib.a import b` may mean the module lib.a.b or a name in
    lib.a.
    """
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.update((node.module, *(f"{node.module}.{alias.name}" for alias in node.names)))
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
    return {name for name in names if name.startswith("lib.")}
