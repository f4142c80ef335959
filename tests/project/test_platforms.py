"""What only Linux has is asked of Linux alone: the stages of the data run on macOS, too, as far as the code tells."""

import ast
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from support.paths import ROOT, SCRIPTS

MODULES = ("os", "time", "signal", "resource", "select", "fcntl", "socket", "errno", "mmap", "termios", "posix")
FOLDERS = ("/proc", "proc/", "/sys/", "sys/fs", "/dev/shm")
C_FUNCTIONS = ("prctl", "mallopt", "malloc_trim", "sched_setaffinity", "sched_getaffinity", "syscall")


def stub_names(module: str, platform: str) -> set[str]:
    """Return what a module of Python has on a platform, as the stubs say that mypy brings."""
    folder = Path(find_spec("mypy").origin).parent / "typeshed/stdlib"
    path = next(p for p in (folder / f"{module}.pyi", folder / module / "__init__.pyi") if p.is_file())
    return set(defined_names(ast.parse(path.read_text(encoding="utf-8")).body, platform))


def defined_names(body: Iterable[ast.stmt], platform: str) -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.If):
            known = {"sys": type("sys", (), {"platform": platform, "version_info": (3, 13)})}
            holds = eval(compile(ast.Expression(node.test), "stub", "eval"), known)
            yield from defined_names(node.body if holds else node.orelse, platform)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from (alias.asname or alias.name for alias in node.names)


LINUX_ONLY = {f"{name}.{one}" for name in MODULES for one in stub_names(name, "linux") - stub_names(name, "darwin")}


def unguarded(text: str) -> list[str]:
    """Return what in a Python text only Linux has, with its line, where nothing asks for the system or for it."""
    return [f"{line}: {what}" for line, what in find_uses(ast.parse(text))]


def find_uses(node: ast.AST, asked: bool = False, caught: bool = False) -> Iterator[tuple[int, str]]:
    """asked: whether the system has been asked for; caught: whether a file that is not there is no error."""
    if not asked:
        yield from calls_of_linux(node)
        if not caught:
            yield from files_of_linux(node)
    for field, value in ast.iter_fields(node):
        children = [child for child in (value if isinstance(value, list) else [value]) if isinstance(child, ast.AST)]
        inside = asked or (isinstance(node, (ast.If, ast.IfExp)) and field != "test" and asks_for_linux(node.test))
        for child in children:
            yield from find_uses(child, inside, caught or (field == "body" and catches_missing_files(node)))
            # What follows `if sys.platform != "linux": return`
            inside = inside or (isinstance(child, ast.If) and asks_for_linux(child.test) and leaves(child.body))


def calls_of_linux(node: ast.AST) -> Iterator[tuple[int, str]]:
    if isinstance(node, ast.Attribute):
        name = ast.unparse(node)
        if name in LINUX_ONLY or node.attr in C_FUNCTIONS:
            yield node.lineno, name
    elif isinstance(node, ast.ImportFrom):
        names = [f"{node.module}.{alias.name}" for alias in node.names]
        yield from ((node.lineno, name) for name in names if name in LINUX_ONLY)


def files_of_linux(node: ast.AST) -> Iterator[tuple[int, str]]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith(FOLDERS):
        yield node.lineno, node.value


def catches_missing_files(node: ast.AST) -> bool:
    handlers = node.handlers if isinstance(node, ast.Try) else []
    return any(
        name in ast.unparse(handler.type)
        for handler in handlers
        if handler.type
        for name in ("OSError", "FileNotFound")
    )


def asks_for_linux(test: ast.expr) -> bool:
    return "sys.platform" in ast.unparse(test) or "hasattr(" in ast.unparse(test)


def leaves(body: list[ast.stmt]) -> bool:
    return isinstance(body[-1], (ast.Return, ast.Raise, ast.Continue))


SOURCES = sorted(path for folder in (SCRIPTS, ROOT / "src") for path in folder.rglob("*.py"))
# Functions that are called where the caller has asked already, or that name a folder and open none.
KNOWN = {
    "scripts/lib/core/limits.py": ["/proc/self/status"],  # _most_memory, called on Linux alone
    # _left_in_groups, called once /proc was there
    "scripts/lib/hardware/memory.py": ["proc/self/cgroup", "sys/fs/cgroup", "sys/fs/cgroup/memory"],
    "scripts/lib/provenance/results_folder.py": ["/proc", "/sys"],  # folders of the system, by their names
}


def test_what_only_linux_has_stands_behind_a_question():
    found = {str(path.relative_to(ROOT)): unguarded(path.read_text(encoding="utf-8")) for path in SOURCES}
    left = {
        path: [use for use in uses if use.split(": ")[1] not in KNOWN.get(path, [])] for path, uses in found.items()
    }
    assert {path: uses for path, uses in left.items() if uses} == {}


def test_the_stubs_tell_what_only_linux_has():
    expected = {"time.CLOCK_BOOTTIME", "os.sched_getaffinity", "os.posix_fallocate", "os.O_TMPFILE", "select.epoll"}
    assert expected <= LINUX_ONLY
    assert not {"os.fork", "os.statvfs", "time.monotonic", "fcntl.flock", "resource.RLIMIT_DATA"} & LINUX_ONLY


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("import os\nos.sched_getaffinity(0)", ["2: os.sched_getaffinity"]),
        ("from os import O_TMPFILE", ["1: os.O_TMPFILE"]),
        ("open('/proc/meminfo')", ["1: /proc/meminfo"]),
        ("ctypes.CDLL(None).prctl(1, 9)", ["1: ctypes.CDLL(None).prctl"]),
        ("if sys.platform == 'linux':\n    os.sched_getaffinity(0)", []),
        ("x = time.CLOCK_BOOTTIME if sys.platform == 'linux' else 0", []),
        ("def f():\n    if sys.platform != 'linux':\n        return 0\n    return os.O_TMPFILE", []),
        ("def f():\n    if x:\n        return 0\n    return os.O_TMPFILE", ["4: os.O_TMPFILE"]),
        ("try:\n    open('/proc/x')\nexcept OSError:\n    open('/proc/y')", ["4: /proc/y"]),
        ("try:\n    os.O_TMPFILE\nexcept OSError:\n    pass", ["2: os.O_TMPFILE"]),
        ("if hasattr(library, 'mallopt'):\n    library.mallopt(1, 2)", []),
    ],
)
def test_a_use_without_a_question_is_found(text, lines):
    assert unguarded(text) == lines
