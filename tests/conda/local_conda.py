"""A `conda` in a folder, with a channel on disk: for tests that build environments through Snakemake."""

import os
import sys
from pathlib import Path

from make_channel import make_channel

_COMMAND = Path(__file__).resolve().parent / "rattler_conda.py"


def install_conda(root: Path) -> dict[str, str]:
    """Write command, activation script and channel below `root`; returns the variables that make them used."""
    make_channel(root / "channels" / "conda-forge")
    _write(root / "bin" / "conda", f'exec "{sys.executable}" "{_COMMAND}" "$@"')
    _write(root / "bin" / "activate", 'export CONDA_PREFIX="$1" PATH="$1/bin:$PATH"')
    return {
        "PATH": f"{root / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "CONDA_ROOT": str(root),
        "CONDA_CHANNEL_ALIAS": (root / "channels").as_uri(),
        "CONDA_PKGS_DIRS": str(root / "packages"),
    }


def _write(path: Path, line: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)
