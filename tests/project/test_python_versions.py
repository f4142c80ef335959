"""Which Python an environment is made with, and what a person reads who has none that fits."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from support.paths import ROOT, SCRIPTS

# Answers as Python does to what make_venv.sh asks; {version}: as in cpython-312, {venv}: 0 if it can make environments.
FAKE = """#!/bin/sh
case "$*" in
*cache_tag*) echo {version} ;;
*ensurepip*) exit {venv} ;;
--version) echo Python {version} ;;
"-m pip"*) exit 0 ;;
"-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && touch "$3/pyvenv.cfg" ; exit {made} ;;
esac
"""
SHIM = "#!/bin/sh\necho 'pyenv: not found' >&2\nexit 127\n"


class Machine:
    """A machine with a folder of programs of its own, and a project folder to make an environment in."""

    def __init__(self, folder: Path) -> None:
        self.programs, self.project = folder / "bin", folder / "project"
        self.programs.mkdir()
        self.project.mkdir()
        for name in ("sh", "rm", "rmdir", "mkdir", "cp", "touch"):
            (self.programs / name).symlink_to(str(shutil.which(name)))

    @property
    def venv(self) -> Path:
        return self.project / ".venv"

    def add(self, name: str, version: str, *, venv: int = 0, made: int = 0) -> Path:
        return self.add_program(name, FAKE.format(version=version, venv=venv, made=made))

    def add_program(self, name: str, text: str) -> Path:
        path = self.programs / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def make(self, *words: str) -> subprocess.CompletedProcess:
        command = ["sh", str(SCRIPTS / "make_venv.sh"), *(words or (".venv",))]
        return subprocess.run(
            command, cwd=self.project, env={"PATH": str(self.programs)}, capture_output=True, text=True
        )

    def made_version(self) -> str:
        code = ["sh", str(self.venv / "bin/python"), "-c", "cache_tag"]
        return subprocess.run(code, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def machine(tmp_path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize(
    ("here", "taken"), [("11 12 13", "11"), ("12 13", "12"), ("13", "13"), ("10 13 14", "13"), ("11", "11")]
)
def test_the_first_python_of_three_is_taken(machine, here, taken):
    for minor in here.split():
        machine.add(f"python3.{minor}", f"cpython-3{minor}")
    assert machine.make().returncode == 0
    assert machine.made_version() == f"cpython-3{taken}"


def test_a_shim_that_starts_no_python_is_passed_over(machine):
    machine.add_program("python3.11", SHIM)
    machine.add("python3.12", "cpython-312")
    assert machine.make().returncode == 0
    assert machine.made_version() == "cpython-312"


def one_line(done: subprocess.CompletedProcess) -> str:
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_without_a_python_that_fits_one_line_says_what_to_install(machine):
    machine.add("python3", "cpython-314")
    line = one_line(machine.make())
    for system in (
        "apt install python3.11-venv (Debian 12)",
        "python3.12-venv (Ubuntu 24.04)",
        "python3.13-venv (Debian 13)",
        "dnf install python3.12 (Fedora)",
        "brew install python@3.12 or python.org (macOS)",
    ):
        assert system in line
    assert not machine.venv.exists()


def test_a_python_without_venv_names_the_package_of_its_version(machine):
    machine.add("python3.12", "cpython-312", venv=1)
    assert "sudo apt install python3.12-venv" in one_line(machine.make())
    assert not machine.venv.exists()


def test_a_python_that_can_make_environments_goes_before_one_that_cannot(machine):
    machine.add("python3.11", "cpython-311", venv=1)
    machine.add("python3.12", "cpython-312")
    assert machine.make().returncode == 0
    assert machine.made_version() == "cpython-312"


@pytest.mark.parametrize(
    ("version", "venv", "message"),
    [
        ("cpython-310", 0, "mine is Python cpython-310; give a Python 3.11, 3.12 or 3.13"),
        ("cpython-313t", 0, "mine is Python cpython-313t; give"),
        ("pypy311", 0, "mine is Python pypy311; give"),
        (
            "cpython-313",
            1,
            "mine cannot make virtual environments; on Debian or Ubuntu: sudo apt install python3.13-venv",
        ),
        ("", 0, "mine does not run; give a Python 3.11, 3.12 or 3.13"),
    ],
)
def test_a_given_python_that_does_not_fit_is_refused(machine, version, venv, message):
    machine.add("python3.11", "cpython-311")
    machine.make()
    mine = machine.add("mine", version, venv=venv)
    assert message in one_line(machine.make(".venv", str(mine)))
    assert machine.made_version() == "cpython-311", "what was there stays"


def test_nothing_half_made_stays(machine):
    machine.add("python3.11", "cpython-311", made=1)
    assert "could not make the virtual environment .venv" in machine.make().stderr
    assert not machine.venv.exists()


def test_an_environment_that_works_stays(machine):
    machine.add("python3.12", "cpython-312")
    machine.make()
    (machine.venv / "installed package").touch()
    machine.add("python3.11", "cpython-311")
    assert machine.make().returncode == 0
    assert machine.make(".venv", str(machine.programs / "python3.12")).returncode == 0
    assert (machine.venv / "installed package").exists()


def test_another_python_makes_the_environment_anew(machine):
    machine.add("python3.11", "cpython-311")
    machine.make()
    (machine.venv / "installed package").touch()
    other = machine.add("python3.13", "cpython-313")
    assert machine.make(".venv", str(other)).returncode == 0
    assert machine.made_version() == "cpython-313"
    assert not (machine.venv / "installed package").exists()


def test_an_environment_whose_python_is_gone_is_made_anew(machine):
    machine.add("python3.11", "cpython-311")
    machine.make()
    (machine.venv / "bin/python").unlink()
    assert machine.make().returncode == 0
    assert machine.made_version() == "cpython-311"


def test_a_folder_that_is_no_environment_stays(machine):
    machine.add("python3.11", "cpython-311")
    (machine.venv / "notes").mkdir(parents=True)
    assert ".venv is not a virtual environment; move it away" in one_line(machine.make())
    assert (machine.venv / "notes").exists()


# What make does


def dry_run(machine: Machine, *words: str) -> str:
    shutil.copytree(SCRIPTS, machine.project / "scripts", ignore=lambda folder, names: [n for n in names if n == "lib"])
    for name in ("Makefile", "requirements.lock", "envs/cuda/torch.lock", "src/pyproject.toml"):
        (machine.project / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, machine.project / name)
    (machine.venv / "installed").touch()
    environment = {"PATH": f"{machine.programs}:{os.environ['PATH']}"}
    command = ["make", "--dry-run", *words]
    return subprocess.run(
        command, cwd=machine.project, env=environment, capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.parametrize(
    ("words", "is_made"), [("run", False), ("run PYTHON=python3.11", False), ("run PYTHON=other", True)]
)
def test_make_sets_up_anew_for_another_python_alone(machine, words, is_made):
    machine.add("python3.11", "cpython-311")
    machine.add("other", "cpython-312")
    machine.make()
    assert ("set_up.py" in dry_run(machine, *words.split())) == is_made


def test_the_tests_of_another_python_have_a_folder_of_their_own(machine):
    machine.add("python3.13", "cpython-313")
    machine.make()
    text = dry_run(machine, "test-python", "PYTHON=python3.13")
    assert ".venv-python3.13/bin/python scripts/set_up.py --without-torch" in text
    assert not re.search(r"\.venv/", text)


def test_all_files_name_the_same_pythons():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["requires-python"] == ">=3.11,<3.14"
    assert project["tool"]["ruff"]["target-version"] == "py311"
    script = (SCRIPTS / "make_venv.sh").read_text()
    assert 'NAMES="python3.11 python3.12 python3.13"' in script
    assert "cpython-311 | cpython-312 | cpython-313)" in script
