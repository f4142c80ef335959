"""Run a program on GPUs that nobody else uses: wait for `GPUS` free ones, show it no others, become it.

    python scripts/with_gpus.py 1 python scripts/train_adapter.py --help

The GPUs are free again when the program ends, however it ends.
"""

import argparse
import os
import shutil

from lib.core.cli import call_or_exit, die_with_parent, fail, report_progress
from lib.hardware.gpu_locks import claim


def main(args: argparse.Namespace) -> None:
    gpus = claim(args.gpus)
    report_progress(f"runs on {', '.join(gpus)}")
    program = shutil.which(args.program) or fail("no such program", at=args.program)
    os.execv(program, [args.program, *args.arguments])


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("gpus", type=int, help="how many")
    arguments.add_argument("program")
    arguments.add_argument("arguments", nargs=argparse.REMAINDER, help="of the program")
    die_with_parent()  # also while it waits
    call_or_exit(main, arguments.parse_args())
