"""What Snakemake calls of `conda`, on py-rattler, the solver and installer of pixi.

Only what `--sdm conda` uses. Channels are found below the URL in CONDA_CHANNEL_ALIAS, as conda finds them.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml
from rattler import Channel, ChannelConfig, MatchSpec, Platform, VirtualPackage, install, solve

_ANSWERS = {
    "--version": "conda 25.1.0",
    "info --json": json.dumps({"conda_prefix": str(Path(os.environ["CONDA_ROOT"])), "platform": "linux-64"}),
    "config --get channel_priority --json": json.dumps({"get": {"channel_priority": "strict"}}),
    "clean -y --tarballs": "",
}


def main(words: list[str]) -> None:
    if (question := " ".join(words)) in _ANSWERS:
        print(_ANSWERS[question])
    else:
        assert words[:2] == ["env", "create"], f"conda {question}: not known here"
        arguments = argparse.ArgumentParser()
        for flag in ("--quiet", "--no-default-packages"):
            arguments.add_argument(flag, action="store_true")
        arguments.add_argument("--file", type=Path, required=True)
        arguments.add_argument("--prefix", type=Path, required=True)
        asked = arguments.parse_args(words[2:])
        create(asked.prefix, yaml.safe_load(asked.file.read_text(encoding="utf-8")))


def create(prefix: Path, environment: dict) -> None:
    """Solve and link the conda packages, then let the environment's own pip install the others, as conda does."""
    packages = [one for one in environment["dependencies"] if isinstance(one, str)]
    asyncio.run(_link(prefix, packages, environment["channels"]))
    pins = [line for one in environment["dependencies"] if isinstance(one, dict) for line in one["pip"]]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(pins))
        file.flush()
        python = [prefix / "bin/python", "-m", "pip"]
        subprocess.run([*python, "install", "-U", "-r", file.name, "--exists-action=b"], check=True)


async def _link(prefix: Path, packages: list[str], channels: list[str]) -> None:
    config = ChannelConfig(channel_alias=os.environ["CONDA_CHANNEL_ALIAS"].rstrip("/") + "/")
    records = await solve(
        sources=[Channel(name, config) for name in channels],
        specs=[MatchSpec(package) for package in packages],
        platforms=[Platform("linux-64"), Platform("noarch")],
        virtual_packages=VirtualPackage.detect(),
    )
    await install(records, prefix, cache_dir=os.environ["CONDA_PKGS_DIRS"], show_progress=False)


if __name__ == "__main__":
    code = 0
    try:
        main(sys.argv[1:])
    except Exception as error:
        print(f"error: conda: {error}", file=sys.stderr)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # the interpreter's own exit would abort in rattler's threads
