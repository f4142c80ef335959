"""Adopt results that DVC brought: pulled into a fresh clone, or checked out with an older commit.

    python scripts/adopt.py            results that are here already
    python scripts/adopt.py --pull     fetches them from the DVC remote first

Refuses with exit code 1 when DVC says that they are not those of dvc.lock, and when they are not what the configuration
describes; else Snakemake takes them as its own, and a later run makes again only what changes from here on. Nothing is
computed, and no results are changed.
"""

import argparse
import hashlib
import subprocess
import sys
from pathlib import Path

import yaml

from lib.core.cli import call_or_exit, fail
from lib.core.files import read_json
from lib.core.forms import INTEGER, allow_open_object, check_form, list_of
from lib.core.paths import check_name

STAGE = "pipeline"
_HINT = "check out a commit that has it whole, or run: dvc repro"


def main(args: argparse.Namespace) -> str:
    if not Path("dvc.lock").is_file():
        fail(
            "no such file",
            "commit results with DVC first (dvc repro), or check out a commit that has them",
            at="dvc.lock",
        )
    if args.pull:
        pull()
    status = run_tool("dvc", "status", STAGE, quiet=True)
    if status.returncode or "up to date" not in status.stdout:
        print(status.stdout, end="", file=sys.stderr)
        fail(
            "the files here are not those of dvc.lock",
            "dvc checkout brings these; dvc repro makes new ones",
            at="dvc.lock",
        )
    words = ("--cores", "1", "--quiet", "rules", "--", "evidence")
    plan = run_tool("snakemake", "--dry-run", *words, quiet=True)
    if plan.returncode or "Nothing to be done" not in plan.stdout:
        print(plan.stdout, end="", file=sys.stderr)
        fail("the results are not what the configuration describes", "run the workflow: it makes again what differs")
    if run_tool("snakemake", *words, quiet=True).returncode:  # writes what the plan has found, and does nothing else
        fail("Snakemake could not note that these results are its own", "run the workflow: it says why")
    sizes = read_sizes(Path("dvc.lock"))
    return f"adopted: {len(sizes)} outputs, {sum(sizes) / 1e6:.0f} MB; nothing to be done"


def pull() -> None:
    """Fetch everything from the DVC remote, and put it in place once all names lead into the folders of results.

    `dvc pull` alone writes where a listing in the remote says, also outside of the project, and hashes no listing.
    """
    if run_tool("dvc", "fetch").returncode:
        fail("dvc fetch did not bring everything", "see its lines above")
    check_listings(Path(run_tool("dvc", "cache", "dir", quiet=True).stdout.splitlines()[-1]))
    if run_tool("dvc", "checkout").returncode:
        fail("dvc checkout did not put everything in place", "see its lines above")


def check_listings(cache: Path) -> None:
    """Check the listings of folders in a DVC cache, `files/md5/AB/CDEF….dir`, by name and by hash.

    Raises `UserError` for one that is not what its name says, and for a name in it that leads out of its folder.
    """
    hint = "remove it, and ask who may write to the DVC remote"
    for file in sorted((cache / "files/md5").glob("??/*.dir")):
        content = file.read_bytes()
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != file.parent.name + file.stem:
            fail("its content is not that of its name", hint, at=file)
        for entry in check_form(read_json(file), list_of(allow_open_object()), at=file, hint=hint):
            check_name(entry.get("relpath"), at=file)


def read_sizes(lock: Path) -> list[int]:
    """Return the sizes of the results that `dvc.lock` names, in bytes. Raises `UserError` unless it is one of DVC's."""
    try:
        value = yaml.safe_load(lock.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError):
        fail("not YAML", _HINT, at=lock)
    stage = allow_open_object({"outs": list_of(allow_open_object({"size": INTEGER}))})
    check_form(value, allow_open_object({"stages": allow_open_object({STAGE: stage})}), at=lock, hint=_HINT)
    return [out["size"] for out in value["stages"][STAGE]["outs"]]


def run_tool(module: str, *words: str, quiet: bool = False) -> "subprocess.CompletedProcess[str]":
    """Run a tool of this interpreter; quiet: what it says is returned and not shown."""
    command = [sys.executable, "-m", module, *words]
    if not quiet:
        return subprocess.run(command, text=True)
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--pull", action="store_true", help="dvc pull first")
    print(call_or_exit(main, arguments.parse_args()))
