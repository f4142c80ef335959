"""Cleaning says what it removes, and never takes what a running job holds."""

import fcntl
import os
import time
from pathlib import Path

import pytest

from lib.cli import UserError


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("work/train/old", "work/train/new", "results/runs", "results-tones/runs", ".snakemake/metadata"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file").write_text("x" * 1000)
        (tmp_path / name / "lock").touch()
    ago = time.time() - 40 * 86400
    for path in ("file", "lock"):
        os.utime(tmp_path / "work/train/old" / path, (ago, ago))
    (tmp_path / "config.yaml").touch()
    return tmp_path


def left(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.glob("*")} | {
        path.relative_to(folder).as_posix() for path in folder.glob("work/train/*")
    }


def test_progress_goes_by_age(folder, run_script):
    done = run_script("clean", "work", "--days", 30, cwd=folder)
    assert "removed  work/train/old: 0.0 MB" in done.stdout
    assert "work/train/new" in left(folder)
    assert "work/train/old" not in left(folder)


def test_progress_that_a_job_holds_stays(folder, run_script):
    with open(folder / "work/train/old/lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = run_script("clean", "work", cwd=folder)
    assert "kept     work/train/old: a job holds it" in done.stdout
    assert "work/train/old" in left(folder)
    assert "work/train/new" not in left(folder)


def test_results_go_and_progress_stays(folder, run_script):
    run_script("clean", "results", cwd=folder)
    assert left(folder) >= {"work", ".snakemake", "config.yaml", "work/train/new"}
    assert not left(folder) & {"results", "results-tones"}


def test_all_leaves_what_is_not_made(folder, run_script):
    done = run_script("clean", "all", "--dry-run", cwd=folder)
    assert "would remove  results-tones" in done.stdout
    assert (folder / "results").is_dir()
    run_script("clean", "all", cwd=folder)
    assert left(folder) == {"config.yaml"}
    assert "nothing to remove" in run_script("clean", "all", cwd=folder).stdout


@pytest.mark.parametrize("what", ["results", "all"])
def test_a_running_workflow_is_left_alone(folder, run_script, what):
    with open(folder / ".snakemake/slmflow.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = run_script("clean", what, cwd=folder, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: .snakemake: a run goes on in this folder; wait")
    (folder / ".snakemake/locks").mkdir()
    (folder / ".snakemake/locks/0.input.lock").touch()
    done = run_script("clean", what, cwd=folder, check=False)
    assert "snakemake --unlock" in done.stderr
    assert (folder / "results").is_dir()


def test_a_training_starts_afresh_where_its_folder_was_removed(folder):
    """The lock of a folder that is gone holds nothing."""
    from lib import lock

    work = folder / "work/train/new"
    with lock.held(work):
        assert (work / "lock").is_file()
    removed = open(work / "lock")  # noqa: SIM115
    (work / "lock").unlink()
    assert not lock._is_there(work / "lock", removed)
    removed.close()


def test_what_a_training_on_another_machine_holds_is_left_alone(folder, run_script):
    holder = folder / "work/train/new/holder.json"
    holder.write_text('{"host": "n7", "process": 1, "job": null}')
    assert "kept     work/train/new: a job holds it" in run_script("clean", "work", cwd=folder).stdout
    assert holder.is_file()


def test_what_cannot_be_removed_is_one_line(folder, monkeypatch):
    import clean

    def refused(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path / "file"))

    monkeypatch.chdir(folder)
    monkeypatch.setattr(clean.shutil, "rmtree", refused)
    with pytest.raises(UserError, match="work/train/new/file: Permission denied; mend the permissions"):
        clean.remove(Path("work/train/new"))
    assert (folder / "work/train/new").is_dir()
