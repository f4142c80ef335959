"""Remove what can be made again, and say what that is.

    python scripts/clean.py work --days 30     progress of trainings and imported base models, unused for 30 days
    python scripts/clean.py results            all results folders; work/ stays, so a later run trains nothing again
    python scripts/clean.py all                results, progress and Snakemake's record

Only what a run made is removed: other files in these folders stay, links too, and are named. Nothing that a running job
holds is removed; while a workflow runs in this folder, results and all are refused.
"""

import argparse
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from lib.core.cli import call_or_exit, fail
from lib.core.escaping import escape_controls
from lib.core.locks import WORKSPACE_LOCK, open_lock, try_lock
from lib.core.progress_lock import find_living
from lib.provenance.made_files import Contents, is_results_folder, sort_results_contents, sort_work_contents

_DAY = 86400
_SHOWN = 5  # names of other files in a folder
_STATE = WORKSPACE_LOCK.parent


class Found(NamedTuple):
    """A folder, and the files below it. kept: why all of it stays, if it does."""

    folder: Path
    contents: Contents = Contents([], [])
    kept: str = ""

    def locks(self) -> list[Path]:
        """Return those of trainings and of imported base models."""
        if self.folder == _STATE:
            return []
        return [self.folder / name for name in self.contents.made if Path(name).name == "lock"]


def main(args: argparse.Namespace) -> None:
    with hold_workspace(refuse=args.what != "work"):
        found = find_folders(args.what)
        living = find_living(lock.parent for one in found for lock in one.locks())
        gone = Counter[tuple[int, int]]()
        sizes = [
            clean(one, living, gone, args)
            for one in found
            if not args.days or measure_age(one.folder) >= args.days * _DAY
        ]
        freed = [size for size in sizes if size is not None]
        print(f"{sum(freed) / 1e6:.1f} MB" if freed else "nothing to remove")


def clean(found: Found, living: set[Path], gone: Counter[tuple[int, int]], args: argparse.Namespace) -> int | None:
    """Remove what a run made in a folder, and say what goes and stays.

    gone: as for `measure_freed`. Returns the bytes that this frees; None when nothing goes.
    """
    folder, contents, kept = found
    with hold_free_locks(found.locks()) as free:
        if not free or any(lock.parent in living for lock in found.locks()):
            kept = "a job holds it"
        if kept:
            print(escape_controls(f"kept     {folder}: {kept}"))
            return None
        size = measure_freed(folder, contents.made, gone if args.dry_run else Counter())
        if contents.made and not args.dry_run:
            remove(folder, contents.made)
        if contents.made:
            done = "would remove" if args.dry_run else "removed"
            print(escape_controls(f"{done}  {folder}: {size / 1e6:.1f} MB"))
        for name in contents.others[:_SHOWN]:
            print(escape_controls(f"kept     {folder / name}: no run made it"))
        if len(contents.others) > _SHOWN:
            more = len(contents.others) - _SHOWN
            print(escape_controls(f"kept     {folder}: {more} more files that no run made"))
        return size if contents.made else None


def measure_freed(folder: Path, names: list[str], gone: Counter[tuple[int, int]]) -> int:
    """Return the bytes that removing files frees: those of a base model only with the last of its links.

    gone: how many links to each file would be removed by now, where none is; counts these.
    """
    size = 0
    for name in names:
        status = (folder / name).lstat()
        file = (status.st_dev, status.st_ino)
        gone[file] += 1
        size += status.st_size if gone[file] == status.st_nlink else 0
    return size


def remove(folder: Path, names: list[str]) -> None:
    """Remove files of a folder, and then every folder that is empty."""
    try:
        if folder == _STATE:
            shutil.rmtree(folder)
            return
        for name in names:
            (folder / name).unlink()
        for place, _, _ in os.walk(folder, topdown=False):
            if not os.listdir(place):
                os.rmdir(place)
        if folder.parent != Path() and not os.listdir(folder.parent):  # results-control, work/train, work
            os.removedirs(folder.parent)
    except OSError as error:
        fail(error.strerror or str(error), "mend the permissions, then clean again", at=error.filename or folder)


def find_folders(what: str) -> list[Found]:
    """Return the folders of this kind below the working directory."""
    if what == "work":
        return find_progress_folders()
    results = find_results_folders()
    return results if what == "results" else [*results, *find_progress_folders(), *find_state_folder()]


def find_progress_folders() -> list[Found]:
    """Return `work/train/KEY`, `work/base/KEY`, and what else lies there."""
    work = Path("work")
    if work.is_symlink():
        return [Found(work, kept="it is a link")]
    found = []
    for folder in sorted(path for path in work.glob("*/*") if path.is_dir()):
        linked = folder.is_symlink() or folder.parent.is_symlink()
        if linked or folder.parent.name == "tracking":
            found.append(Found(folder, kept="it is a link" if linked else "it has the numbers of earlier runs"))
        else:
            found.append(Found(folder, sort_work_contents(folder, work)))
    return found


def find_results_folders() -> list[Found]:
    """Return `results` and all `results-*`; of one that holds results of several runs, as of the control's, these."""
    found = []
    for top in sorted(path for path in (Path("results"), *Path().glob("results-*")) if path.is_dir()):
        if top.is_symlink():
            found.append(Found(top, kept="it is a link"))
            continue
        inside = [] if is_results_folder(top) else [path for path in sorted(top.iterdir()) if not path.is_symlink()]
        runs = [path for path in inside or [top] if is_results_folder(path)]
        found += [Found(folder, sort_results_contents(folder)) for folder in runs]
        if not runs:
            found.append(Found(top, kept="no run made it"))
    return found


def find_state_folder() -> list[Found]:
    """Return Snakemake's own folder, of which all goes."""
    if not _STATE.is_dir():
        return []
    if _STATE.is_symlink():
        return [Found(_STATE, kept="it is a link")]
    return [Found(_STATE, Contents([path.relative_to(_STATE).as_posix() for path in walk_files(_STATE)], []))]


def walk_files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file() or path.is_symlink())


def measure_age(folder: Path) -> float:
    """Return seconds since anything in it was written."""
    newest = max((file.lstat().st_mtime for file in walk_files(folder)), default=folder.lstat().st_mtime)
    return time.time() - newest


@contextmanager
def hold_workspace(*, refuse: bool) -> Iterator[None]:
    """Hold the lock that `make run` holds. Raises `UserError` when a run has it, or Snakemake's own, and `refuse`."""
    if refuse and any((_STATE / "locks").glob("*")):
        hint = "wait for it; after a dead one: snakemake --unlock"
        fail("a run is in progress in this folder, or died in it", hint, at=_STATE)
    if not refuse or not _STATE.is_dir():
        yield
        return
    lock = open_lock(WORKSPACE_LOCK)
    try:
        if not try_lock(lock, WORKSPACE_LOCK):
            fail("a run is in progress in this folder", "wait for it to end", at=_STATE)
        yield
    finally:
        os.close(lock)


@contextmanager
def hold_free_locks(locks: list[Path]) -> Iterator[bool]:
    """Hold the locks of progress, if all are free, so that no training starts while it is removed."""
    with ExitStack() as stack:
        free = True
        for path in locks:
            lock = open_lock(path)
            stack.callback(os.close, lock)
            free = free and try_lock(lock, path, needs_locks=False)
        yield free


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("what", choices=("work", "results", "all"))
    arguments.add_argument("--days", type=float, default=0, help="only what has not been written to for so many days")
    arguments.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    call_or_exit(main, arguments.parse_args())
