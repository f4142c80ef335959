"""The lock files: every file that set-up installs is known by its hash, and another one is refused."""

import hashlib
import json
import re
import zipfile
from pathlib import Path

import lock_hashes
import pytest
import render_generated
import set_up
from packaging.requirements import Requirement
from packaging.version import Version

from lib.core.cli import UserError
from lib.sources.lock_file import LOCKS, Entry, format_lock, read_lock
from lib.sources.package_index import PackageFile
from lib.workflow.helpers import read_locked_versions
from support.paths import ROOT
from support.rules import pip_lines

CPU_BUILD = "6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b"  # of torch, for CPython 3.11 on x86_64


def test_all_lock_files_are_known():
    found = {str(path.relative_to(ROOT)) for folder in ("envs", "tests") for path in (ROOT / folder).rglob("*.lock")}
    assert set(LOCKS) == {"requirements.lock", *found}


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_pins_every_package_by_version_and_hashes(lock):
    text = (ROOT / lock).read_text()
    comments, entries = read_lock(text, lock)
    assert all(entry.hashes for entry in entries)
    assert len({entry.name for entry in entries}) == len(entries)
    assert "://" not in text, "where packages lie is up to the settings of pip"
    assert format_lock(comments, entries, [entry.hashes for entry in entries]) == text


def test_the_lock_knows_torch_of_pypi_and_of_pytorchs_page():
    locked = read_locked_versions(ROOT / "requirements.lock")
    asked = ["snakemake", "torch", "transformers", "peft", "bitsandbytes", "datasets", "onnxruntime-genai", "dvc"]
    assert {*asked, "setuptools"} <= set(locked)
    torch = render_generated.parse_hashed_pins("requirements.lock")["torch"]
    cpu = render_generated.parse_hashed_pins("envs/torch-cpu.lock")["torch"]
    assert len(cpu.hashes) == 6, "CPython 3.11 to 3.13 on x86_64 and aarch64"
    assert CPU_BUILD in cpu.hashes
    assert set(cpu.hashes) < set(torch.hashes)
    assert cpu.pin == f"{torch.pin}+cpu"


@pytest.mark.parametrize("environment", render_generated.ENVIRONMENTS)
def test_pip_takes_nothing_of_an_environment_without_a_hash(environment):
    """Each requirement has hashes, and a package without a wheel, whose build would need others, is none or named."""
    lines = pip_lines(ROOT / environment)
    pins = [line for line in lines if not line.startswith("--")]
    assert lines[0] == "--require-hashes"
    assert all(
        re.fullmatch(r"[^ ]+={2,3}[^ ]+( ; sys_platform .= 'linux')?( --hash=sha256:[0-9a-f]{64})+", pin)
        for pin in pins
    )
    built = {line.split()[1] for line in lines if line.startswith("--no-binary")}
    assert built == ({"connection-pool"} if environment.startswith("profiles") else set())


def test_the_environments_follow_from_their_own_python():
    needs = {
        "python_version < '3.12'": True,
        "python_full_version == '3.11.0'": True,
        "python_version >= '3.12'": False,
    }
    assert {marker: render_generated._applies(Requirement(f"packaging ; {marker}")) for marker in needs} == needs


@pytest.mark.parametrize(
    ("chosen", "others"),
    [
        ("py3-none-any py2.py3-none-any py311-none-any", "py2-none-any py315-none-any"),
        ("cp311-cp311-manylinux_2_28_x86_64", "cp310-cp310-manylinux_2_28_x86_64 cp314-cp314-manylinux_2_28_x86_64"),
        ("cp313-cp313-manylinux2014_aarch64", "cp313-cp313t-manylinux2014_aarch64 pp311-pypy311_pp73-linux_x86_64"),
        ("cp38-abi3-macosx_11_0_arm64 cp311-abi3-linux_x86_64", "cp314-abi3-macosx_11_0_arm64 cp311-abi3-win_amd64"),
        ("cp312-cp312-macosx_10_9_universal2 cp312-cp312-macosx_10_9_x86_64", "cp312-cp312-musllinux_1_2_x86_64"),
        ("py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64", "py3-none-manylinux1_i686 cp312-none-linux_ppc64le"),
    ],
)
def test_wheels_count_that_one_of_the_pythons_can_take(chosen, others):
    wheels = [PackageFile(f"a-1-{tag}.whl", Version("1"), "", "0" * 64) for tag in f"{chosen} {others}".split()]
    sdist = PackageFile("a-1.tar.gz", Version("1"), "", "1" * 64)
    expected = wheels[: len(chosen.split())]
    assert lock_hashes.choose_files([sdist, *wheels]) == expected
    assert lock_hashes.choose_files([sdist, *(wheel for wheel in wheels if wheel not in expected)]) == [sdist]


def test_two_files_of_one_name_stop_the_lock():
    files = [PackageFile("a-1-py3-none-any.whl", Version("1"), "", digit * 64) for digit in "01"]
    with pytest.raises(UserError, match=r"a-1-py3-none-any\.whl: two indexes offer different files"):
        lock_hashes.check_agreement(files)


@pytest.mark.parametrize("line", ["a>=1", "a==1 --hash=md5:0", "--index-url https://x", "a @ file:///x", "a==1 b==2"])
def test_a_line_that_pins_nothing_is_named(line):
    with pytest.raises(UserError, match=r"x\.lock:2: .* pins no package; write name==version"):
        read_lock(f"# text\n{line}\n", "x.lock")


# Set-up


@pytest.fixture
def shelf(tmp_path, monkeypatch) -> Path:
    """A folder with a torch of somebody else's, the only place where pip looks; and what it installs goes elsewhere."""
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(tmp_path), "TARGET": str(tmp_path / "site")}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    metadata = {
        "METADATA": "Metadata-Version: 2.1\nName: torch\nVersion: 2.13.0+mine\n",
        "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "",
    }
    with zipfile.ZipFile(tmp_path / "torch-2.13.0+mine-py3-none-any.whl", "w") as wheel:
        for name, text in metadata.items():
            wheel.writestr(f"torch-2.13.0+mine.dist-info/{name}", text)
    return tmp_path


def test_a_torch_whose_hash_is_not_locked_is_not_installed(shelf):
    sha256 = hashlib.sha256(next(shelf.glob("*.whl")).read_bytes()).hexdigest()
    with pytest.raises(UserError, match=rf"torch 2\.13\.0\+mine has sha256 {sha256}, .*; if you trust it, install it"):
        set_up.install_torch(Entry("torch==2.13.0", "torch", "==2.13.0", [CPU_BUILD]))
    assert not (shelf / "site").exists()


def test_another_hash_stops_pip(shelf, capfd):
    with pytest.raises(SystemExit):
        set_up.install_entry(Entry("torch==2.13.0", "torch", "==2.13.0", []), [CPU_BUILD])
    assert f"Expected sha256 {CPU_BUILD}" in capfd.readouterr().err
    assert not (shelf / "site").exists()


# Without torch


NEEDS = {
    "PEFT": ["numpy>=1.17", "torch>=1.13.0", "accelerate>=0.21.0"],
    "accelerate": ["torch>=2.0.0"],
    "auto_round": ["Accelerate"],
    "transformers": ["torch>=2.6 ; extra == 'torch'", "regex"],
    "torchless": ["torch-like"],
    "numpy": [],
}


def test_what_needs_torch_is_left_out_with_it_and_nothing_else():
    assert set_up.find_dependents("torch", NEEDS) == {"peft", "accelerate", "auto-round"}


def test_set_up_without_torch_installs_all_else_with_hashes(monkeypatch, capsys):
    entries = [Entry(f"{name}==1", name, "==1", [CPU_BUILD]) for name in ("torch", *NEEDS)]
    runs = []

    def pip(*words: str) -> None:
        runs.append((words, Path(words[-1]).read_text()))
        if "--report" in words:
            install = [{"metadata": {"name": name, "requires_dist": lines}} for name, lines in NEEDS.items()]
            Path(words[words.index("--report") + 1]).write_text(json.dumps({"install": install}))

    monkeypatch.setattr(set_up, "run_pip", pip)
    set_up.install_without_torch(entries)
    (dry, _), (words, text) = runs
    assert "--dry-run" in dry
    assert "--dry-run" not in words
    assert {"--require-hashes", "--no-deps"} <= {*words}
    assert [entry.name for entry in read_lock(text, "")[1]] == ["transformers", "torchless", "numpy"]
    assert all(entry.hashes == [CPU_BUILD] for entry in read_lock(text, "")[1])
    assert "accelerate auto-round peft" in capsys.readouterr().out
