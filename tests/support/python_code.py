"""Code that a Python of its own runs as the main function of a script."""

import subprocess
import sys

from support.paths import SCRIPTS


def script_with(body: str, *args: str) -> subprocess.CompletedProcess:
    code = f"import sys; sys.path.insert(0, {str(SCRIPTS)!r})\nfrom lib.core.cli import *\n{body}\nrun(build_parser('x'), main)"
    return subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True)
