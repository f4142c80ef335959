"""Remove what can be made again, and say what that is.

    python scripts/clean.py work --days 30     progress of trainings that nothing has touched for 30 days
    python scripts/clean.py results            all results folders; progress stays, so a later run trains nothing again
    python scripts/clean.py all                results, progress and Snakemake's record

Nothing that a running job holds is removed; while a workflow runs in this folder, results and all are refused.
"""

import argparse
import fcntl
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lib.cli import fail, or_exit
from lib.core.escaping import escape_controls
from lib.lock import held_elsewhere

_DAY = 86400


def main(args: argparse.Namespace) -> None:
    with no_other_run(refuse=args.what != "work"):
        found = [folder for folder in folders(args.what) if age(folder) >= args.days * _DAY]
        freed = 0
        for folder in found:
            with held_by_nobody(folder) as free:
                if not free:
                    print(escape_controls(f"kept     {folder}: a job holds it"))
                    continue
                size = sum(file.lstat().st_size for file in files(folder))
                if not args.dry_run:
                    remove(folder)
                done = "would remove" if args.dry_run else "removed"
                print(escape_controls(f"{done}  {folder}: {size / 1e6:.1f} MB"))
                freed += size
        print(f"{freed / 1e6:.1f} MB" if freed else "nothing to remove")


def remove(folder: Path) -> None:
    try:
        shutil.rmtree(folder)
    except OSError as error:
        fail(error.strerror or str(error), "mend the permissions, then clean again", at=error.filename or folder)


def folders(what: str) -> list[Path]:
    """Folders of this kind that are here, below the working directory."""
    work = sorted(path for path in Path("work").glob("*/*") if path.is_dir())
    if what == "work":
        return work
    results = sorted(path for path in (Path("results"), *Path().glob("results-*")) if path.is_dir())
    others = [path for path in (Path("work"), Path(".snakemake")) if path.is_dir()]
    return results if what == "results" else [*results, *others]


def files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file() or path.is_symlink())


def age(folder: Path) -> float:
    """Seconds since anything in it was written."""
    newest = max((file.lstat().st_mtime for file in files(folder)), default=folder.lstat().st_mtime)
    return time.time() - newest


@contextmanager
def no_other_run(*, refuse: bool) -> Iterator[None]:
    """Hold the lock that `make run` holds. Raises `UserError` when a run has it, or Snakemake's own, and `refuse`."""
    state = Path(".snakemake")
    if refuse and any((state / "locks").glob("*")):
        fail(
            "a run goes on in this folder, or died in it", "wait for it; after a dead one: snakemake --unlock", at=state
        )
    if not refuse or not state.is_dir():
        yield
        return
    with open(state / "slmflow.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fail("a run goes on in this folder", "wait for it to end", at=state)
        yield


@contextmanager
def held_by_nobody(folder: Path) -> Iterator[bool]:
    """Hold the locks below a folder of progress, if all are free, so that no training starts while it is removed."""
    locks = [open(path, "a") for path in sorted(folder.rglob("lock"))]  # noqa: SIM115 (closed below)
    try:
        for lock in locks:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield not any(held_elsewhere(Path(lock.name).parent) for lock in locks)
    except BlockingIOError:
        yield False
    finally:
        for lock in locks:
            lock.close()


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("what", choices=("work", "results", "all"))
    arguments.add_argument("--days", type=float, default=0, help="only what nothing has written to for so long")
    arguments.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    or_exit(main, arguments.parse_args())
