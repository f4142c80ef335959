"""Start-up of every script: seconds from the start of the process until its `main` would begin.

    python benchmarks/startup.py --table benchmarks/startup.md

Each script runs with --help: imports and command line, nothing else. The CPU seconds stand beside the wall
seconds, since these are only true on a quiet machine.
"""

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

from bench import SCRIPTS, machine, markdown_table, write_table


def start_up(script: Path) -> tuple[float, float]:
    """Wall and CPU seconds of one start."""
    begin = os.times()
    subprocess.run([sys.executable, str(script), "--help"], check=True, stdout=subprocess.DEVNULL)
    end = os.times()
    cpu = end.children_user + end.children_system - begin.children_user - begin.children_system
    return end.elapsed - begin.elapsed, cpu


def main(args: argparse.Namespace) -> None:
    lines = []
    for script in sorted(SCRIPTS.glob("*.py")):
        start_up(script)  # fills the file cache
        wall, cpu = zip(*(start_up(script) for _ in range(args.repeats)), strict=True)
        spread = f"{min(wall):.2f} to {max(wall):.2f}"
        lines.append([script.stem, f"{statistics.median(wall):.2f}", spread, f"{statistics.median(cpu):.2f}"])
    head = ["script", f"wall s, median of {args.repeats}", "lowest to highest", "CPU s, median"]
    title = f"# Start-up of the scripts\n\n`python benchmarks/startup.py`\n\n{machine()}\n"
    note = f"\n{args.note}\n" if args.note else ""
    write_table(args.table, f"{title}{note}\n{markdown_table(head, lines)}\n")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--repeats", type=int, default=5)
    arguments.add_argument("--table", type=Path, default=Path("benchmarks/startup.md"), help="file to write")
    arguments.add_argument("--note", default="", help="a sentence to put above the table")
    main(arguments.parse_args())
