"""Adopt results that DVC brought: pulled into a fresh clone, or checked out with an older commit.

    python scripts/adopt.py            results that are here already
    python scripts/adopt.py --pull     fetches them from the DVC remote first

Refuses with exit code 1 when DVC says that they are not those of dvc.lock, and when they are not what the configuration
describes; else Snakemake takes them as its own, and a later run makes again only what changes from here on. Nothing is
computed, and no results are changed.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import yaml

from lib.cli import fail, or_exit

STAGE = "pipeline"


def main(args: argparse.Namespace) -> str:
    if not Path("dvc.lock").is_file():
        fail(
            "no such file",
            "commit results with DVC first (dvc repro), or check out a commit that has them",
            at="dvc.lock",
        )
    if args.pull and tool("dvc", "pull").returncode:
        fail("dvc pull did not bring everything", "see its lines above")
    status = tool("dvc", "status", STAGE, quiet=True)
    if status.returncode or "up to date" not in status.stdout:
        print(status.stdout, end="", file=sys.stderr)
        fail(
            "the files here are not those of dvc.lock",
            "dvc checkout brings these; dvc repro makes new ones",
            at="dvc.lock",
        )
    plan = tool("snakemake", "--cores", "1", "--dry-run", "--quiet", "rules", "--", "evidence", quiet=True)
    if plan.returncode or "Nothing to be done" not in plan.stdout:
        print(plan.stdout, end="", file=sys.stderr)
        fail("the results are not what the configuration describes", "run the workflow: it makes again what differs")
    outs = yaml.safe_load(Path("dvc.lock").read_text(encoding="utf-8"))["stages"][STAGE]["outs"]
    return f"adopted: {len(outs)} outputs, {sum(out['size'] for out in outs) / 1e6:.0f} MB; nothing to be done"


def tool(module: str, *words: str, quiet: bool = False) -> "subprocess.CompletedProcess[str]":
    """Run a tool of this interpreter; quiet: what it says is returned and not shown."""
    command = [sys.executable, "-m", module, *words]
    if not quiet:
        return subprocess.run(command, text=True)
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--pull", action="store_true", help="dvc pull first")
    print(or_exit(main, arguments.parse_args()))
