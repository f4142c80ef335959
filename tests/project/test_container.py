"""The image: from the same lock and commands for Docker and apptainer, not as root, without secrets or leftovers."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from pathspec import GitIgnoreSpec

from support.paths import ROOT

DOCKER = (ROOT / "Dockerfile").read_text()
APPTAINER = (ROOT / "envs/container/apptainer.def").read_text()
SET_UP = "python -m venv .venv && .venv/bin/python scripts/set_up.py"
COPIES = [line.split()[1:] for line in DOCKER.splitlines() if line.startswith("COPY ")]
FILES = re.findall(r"^    (\S+) /opt/slmflow/(\S+)$", APPTAINER, flags=re.MULTILINE)
IGNORED = GitIgnoreSpec.from_lines((ROOT / ".dockerignore").read_text().splitlines())
# What a run needs of the project.
NEEDED = [
    "Snakefile",
    "rules",
    "scripts",
    "envs",
    "profiles",
    "config.yaml",
    "requirements.lock",
    "src",
    "LICENSE",
    "NOTICE",
]


def test_both_images_are_made_by_the_same_commands():
    assert re.findall(r"^FROM (\S+)$", DOCKER, flags=re.MULTILINE) == re.findall(
        r"^From: (\S+)$", APPTAINER, flags=re.MULTILINE
    )
    assert f"RUN {SET_UP}\n" in DOCKER
    assert f"    {SET_UP}\n" in APPTAINER
    words = ["python", "/opt/slmflow/scripts/run.py", "--snakefile", "/opt/slmflow/Snakefile"]
    assert "ENTRYPOINT [" + ", ".join(f'"{word}"' for word in words) + "]" in DOCKER
    assert f'    exec {" ".join(words)} "$@"' in APPTAINER
    page = "PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu"
    assert page in DOCKER
    assert page in APPTAINER


def test_the_image_does_not_run_as_root_and_is_given_no_secret():
    assert re.findall(r"^USER (\S+)$", DOCKER, flags=re.MULTILINE) == ["1000"]
    assert not re.search(r"^(ARG|ENV) .*(TOKEN|KEY|SECRET|PASSWORD)", DOCKER, flags=re.MULTILINE | re.IGNORECASE)


def test_every_file_that_is_copied_is_there_and_every_one_that_a_run_needs_is_copied():
    for source in [*(source for source, _ in COPIES), *(source for source, _ in FILES)]:
        assert (ROOT / source).exists(), source
    assert all(source == target for source, target in FILES)
    tracked = subprocess.run(["git", "ls-files", "data"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    assert {source for source, _ in FILES} >= {*NEEDED, "examples", *tracked}
    assert not any(IGNORED.match_file(name) for name in [*NEEDED, *tracked, "scripts/lib/core/cli.py"])


def test_environments_results_and_secrets_stay_outside():
    outside = [
        ".git/config",
        ".venv/bin/python",
        ".venv-python3.13/x",
        "results/model/model.onnx",
        "results-mine/a",
        "work/base",
    ]
    outside += [
        "data/raw/tweets.json",
        ".env",
        "my.env",
        "deep/.env",
        "key.pem",
        "hf_token.txt",
        ".dvc/config.local",
        ".snakemake/log",
    ]
    assert [name for name in outside if not IGNORED.match_file(name)] == []


def test_what_is_copied_before_the_set_up_is_all_that_it_needs(tmp_path):
    """Otherwise any change of the project would install the environment again, or the image would not be built."""
    for source, target in COPIES[:-1]:
        place = tmp_path / target
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, place, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            place = place / Path(source).name if target.endswith("/") else place
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / source, place)
    assert COPIES[-1] == [".", "."]
    done = subprocess.run([sys.executable, "scripts/set_up.py", "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "requirements.lock").is_file()
    assert (tmp_path / "envs/cuda/torch.lock").is_file()
    assert (tmp_path / "src/pyproject.toml").is_file()
