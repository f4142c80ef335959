"""Which code a script runs: its rule is rerun, and its progress is foreign, when that code changes."""

import ast
import hashlib
import re
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

# Import statements, by their lines: parsing all modules would be a tenth of a plan's time. What only looks like one, in
# a docstring, is one file too many; a test parses all modules and finds none missing.
_IMPORTS = re.compile(
    r"^[ \t]*(?:from[ \t]+(lib[\w.]*)[ \t]+import[ \t]+(\([^)]*\)|.*)|import[ \t]+(.*))", re.MULTILINE
)


@cache
def find_code_closure(script: Path) -> list[Path]:
    """Return the `scripts/lib` modules that a script imports, directly or through another, sorted.

    They are inputs of its rule: an edit reruns it, a touch does not. Computed from the source, so no
    list can be forgotten.
    """
    found: set[Path] = set()
    waiting = [script]
    while waiting:
        new = _find_imported_modules(waiting.pop(), script.parent) - found
        found |= new
        waiting += new
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
def _find_imported_modules(path: Path, folder: Path) -> set[Path]:
    """Return the modules below `folder` whose dotted names begin with `lib` and that a file imports."""
    # `from lib.a import b` may mean the module lib.a.b or a name in lib.a.
    names: set[str] = set()
    for package, imported, modules in _IMPORTS.findall(path.read_text(encoding="utf-8")):
        names.update(re.findall(r"[\w.]+", modules))
        names.update((package, *(f"{package}.{name}" for name in re.findall(r"\w+", imported))))
    found = {folder.joinpath(*name.split(".")).with_suffix(".py") for name in names if name.startswith("lib.")}
    return {module for module in found if module.is_file()}
