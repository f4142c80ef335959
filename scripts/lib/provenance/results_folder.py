"""Which folders a run may take for its results: one of its own, which it may fill, walk through and clean."""

import os
from collections.abc import Iterable
from pathlib import Path

from lib.provenance.made_files import is_results_folder

# Of the project, and of the programs that work in it.
_TAKEN = (
    *("data", "scripts", "rules", "work", "envs", "profiles", "tests", "src", "examples", "benchmarks", "docs"),
    *(".git", ".venv", ".snakemake", ".dvc", ".ci", ".cache"),
)
_SYSTEM = ("/bin", "/boot", "/etc", "/lib", "/lib64", "/proc", "/sbin", "/sys", "/usr")


def find_fault(results: str, home: Path, user_paths: Iterable[str]) -> str | None:
    """Return why `results` names no folder of its own, or None.

    home: folder of the project. user_paths: rows and models of the configuration. Links are followed.
    """
    folder, here = Path(results).resolve(), Path.cwd()
    if folder.exists() and not folder.is_dir():
        return "is a file"
    needed = {"this folder": here, "the project": home.resolve(), "your home folder": Path(os.path.expanduser("~"))}
    needed |= {f"{path}, which it is made from": Path(path).resolve() for path in user_paths}
    for what, path in needed.items():
        if path == folder or folder in path.parents:
            return f"is or holds {what}"
    for place in {here, home.resolve()}:
        taken = next((name for name in _TAKEN if _is_in(folder, place / name)), None)
        if taken:
            return f"lies in {taken}, which the project uses itself"
    is_ours = here in folder.parents or home.resolve() in folder.parents
    if not is_ours and (any(_is_in(folder, Path(name)) for name in _SYSTEM) or _is_top(folder)):
        return "is a folder of the system"
    around = next((parent for parent in folder.parents if is_results_folder(parent)), None)
    return None if around is None else f"lies in {around}, which holds the results of a run"


def _is_top(folder: Path) -> bool:
    """Return whether a folder stands in / and was there before any run."""
    return len(folder.parts) == 2 and folder.is_dir() and not is_results_folder(folder)


def _is_in(folder: Path, place: Path) -> bool:
    return folder == place or place in folder.parents
