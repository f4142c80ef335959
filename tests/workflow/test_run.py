"""`make run` ends with the line that says what went wrong, whoever found it."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import run

from support.paths import ROOT
from support.workspaces import HOSTILE


def stand_in(folder: Path, said: str, code: int) -> list[str]:
    """A program in Snakemake's place that says something and ends with an exit code."""
    script = folder / "program.py"
    script.write_text(f"import sys\nprint({said!r})\nsys.exit({code})\n")
    return [sys.executable, str(script)]


@pytest.fixture
def ended(tmp_path, monkeypatch, capfd):
    def with_program(said: str, code: int) -> list[str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(run, "SNAKEMAKE", stand_in(tmp_path, said, code))
        assert run.main([]) == code
        return [line for line in capfd.readouterr().err.splitlines() if line]

    return with_program


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("error: rows.json:3: not JSON\nmore\nerror: rows.json:3: not JSON", ["error: rows.json:3: not JSON"]),
        (
            "OSError: [Errno 30] Read-only file system: '.snakemake/metadata'",
            [
                "error: this machine: Read-only file system; nothing can be written there: mount it for writing or use another folder, then start again"
            ],
        ),
        (
            "OSError: [Errno 24] Too many open files",
            [
                "error: this machine: Too many open files; raise the limit on open files (ulimit -n 4096), then start again"
            ],
        ),
        ("OSError: [Errno 28] No space left on device", ["error: the disk is full; free some space, then start again"]),
        ("Error: Directory cannot be locked.", ["error: another Snakemake runs in this folder; wait for it to end"]),
        ("MissingInputException: x\n", ["error: the workflow stopped: MissingInputException: x; see above"]),
        ("", ["error: the workflow stopped: it said nothing; see above"]),
    ],
)
def test_a_failed_run_ends_with_one_line(ended, said, expected):
    assert ended(said, 1) == expected


def test_a_run_that_went_well_or_was_interrupted_ends_without(ended):
    assert ended("error: of an attempt that was repeated", 0) == []
    assert ended("", 130) == []


def test_arguments_reach_snakemake_as_they_are(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "SNAKEMAKE", [sys.executable, "-c", "import json, sys; print(json.dumps(sys.argv[1:]))"])
    Path(f"{HOSTILE}.yaml").write_text("seed: 0")
    assert run.main(["--configfile", f"{HOSTILE}.yaml"]) == 0
    assert json.loads(capfd.readouterr().out) == ["--cores", "all", "--configfile", f"{HOSTILE}.yaml"]


def test_make_passes_arguments_as_they_were_typed(tmp_path):
    words = f"--configfile '$(shell touch {tmp_path}/OWNED) $x.yaml'"
    command = ["make", "--directory", ROOT, "--dry-run", "run", f"ARGS={words}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert f"scripts/run.py {words}\n" in done.stdout, done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("interrupted", "said", "shown"),
    [
        (True, "done\n{ctrl_c}\ncancelled\n", "done\ncancelled\n"),
        (True, "done\nException ignored in: <module 'threading'>\n{ctrl_c}: \n", "done\n"),
        (True, "{fault}\ndone\n", "ValueError: x\ndone\n"),
        (True, "{cut}\nTerminating\n  more\n{ctrl_c}\n  told\n", "Terminating\n  told\n"),
        (True, "done\n  more\n{cut}\n", "done\n  more\n"),
        (False, "done\n{ctrl_c}\n", "done\n{ctrl_c}\n"),
    ],
)
def test_what_python_says_of_a_ctrl_c_is_not_shown(interrupted, said, shown):
    cut = 'Traceback (most recent call last):\n  File "x.py", line 1\n    f(\n^^^^^^\n'
    says = {"cut": cut, "ctrl_c": f"{cut}\nKeyboardInterrupt", "fault": f"{cut}\nValueError: x"}
    event = threading.Event()
    if interrupted:
        event.set()
    lines = run.drop_interrupts(said.format(**says).splitlines(keepends=True), event)
    assert "".join(lines) == shown.format(**says)


def test_a_folder_that_may_not_be_written_is_one_line(tmp_path, monkeypatch, capfd):
    (tmp_path / ".snakemake").write_text("a file where the folder should be")
    monkeypatch.chdir(tmp_path)
    assert run.main([]) == 1
    assert capfd.readouterr().err.startswith("error: .snakemake: File exists; mend")
