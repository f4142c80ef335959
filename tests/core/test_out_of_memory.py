"""When memory runs out there is still enough of it for the line that says so."""

import subprocess
import sys

from support.paths import SCRIPTS

SCRIPT = f"""
import resource, sys
sys.path.insert(0, {str(SCRIPTS)!r})
from lib.core.cli import build_parser, run

kept = []

def main(args):
    used = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, ((used + 40_000) * 1024,) * 2)
    for size in (1_000_000, 1_000, 10):  # to the last byte, and it stays taken
        try:
            while True:
                kept.append(bytearray(size))
        except MemoryError:
            pass
    while True:
        kept.append(object())

run(build_parser(""), main)
"""


def test_the_line_is_written_when_the_last_byte_is_taken(tmp_path):
    (tmp_path / "fill.py").write_text(SCRIPT)
    command = [sys.executable, tmp_path / "fill.py", "--log", tmp_path / "log.txt"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "error: fill: out of memory (); use a smaller batch or a machine with more memory\n"
