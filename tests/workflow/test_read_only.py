"""Plans, summaries, lints and reports leave a workspace as it is: every byte and every time stamp."""

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.workflow

# Snakemake's own, below .snakemake/: what it logs, locks and caches, whatever it is asked for.
OWN = {"log", "locks", "iocache"}


def read_tree(root: Path) -> dict[str, tuple[int, str | None]]:
    """Return time and sha256 of everything in a folder, but what Snakemake or Python keeps there for itself."""
    found: dict[str, tuple[int, str | None]] = {}
    for path in root.rglob("*"):
        parts = path.relative_to(root).parts
        if "__pycache__" in parts or parts == (".snakemake",) or (parts[0] == ".snakemake" and parts[1] in OWN):
            continue
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
        found["/".join(parts)] = (path.lstat().st_mtime_ns, sha256)
    return found


def bring_from_elsewhere(root: Path) -> None:
    """Make it look as after `dvc pull` in a fresh clone, with one file that somebody edited since."""
    shutil.rmtree(root / ".snakemake/metadata")
    (root / ".snakemake/metadata").mkdir()
    for note in (root / ".snakemake/lineage").iterdir():
        note.unlink()
    for path in (root / "results").rglob(".snakemake_timestamp"):
        path.unlink()
    for path in (root / "results").rglob("*"):
        os.utime(path)
    rows = root / "results/corpus/train.jsonl"
    rows.write_bytes(rows.read_bytes().replace(b"Tone?", b"Mood?", 1))


CHANGES = {"as a run left it": lambda root: None, "brought from elsewhere and edited": bring_from_elsewhere}


@pytest.fixture(params=CHANGES.values(), ids=CHANGES)
def changed(request, workspace):
    request.param(workspace.root)
    return workspace


def make_read_only(root: Path) -> None:
    """Take away every write permission but that for what is Snakemake's own; root may write all the same."""
    own = {root / ".snakemake" / name for name in OWN}
    for name in own:
        name.mkdir(exist_ok=True)
    for path in [root, *root.rglob("*")]:
        if not path.is_symlink() and not own & {path, *path.parents}:
            path.chmod(0o555 if path.is_dir() else path.stat().st_mode & 0o555)


@pytest.fixture
def read_only(changed) -> Iterator:
    """The workspace with its answers while it could be written to."""
    changed.answers = answers(changed)
    make_read_only(changed.root)
    yield changed
    for path in [changed.root, *changed.root.rglob("*")]:
        if path.is_dir():
            path.chmod(0o755)


def answers(workspace) -> list[str]:
    """What a plan and a summary say of the files, without times and names of logs."""
    plan, summary = workspace.snakemake("-n"), workspace.snakemake("--summary")
    assert (plan.returncode, summary.returncode) == (0, 0), plan.stderr + summary.stderr
    told = re.findall(
        r"^lineage: .*|^(?:local)?rule \w+:|^    reason: .*|^Nothing to be done", plan.stdout + plan.stderr, flags=re.M
    )
    return [*told, *summary.stdout.splitlines()]


def test_asking_changes_nothing_and_is_answered_as_where_everything_may_be_written(read_only, tmp_path):
    before = read_tree(read_only.root)
    assert len(before) > 500, "metadata, results and code"
    assert answers(read_only) == read_only.answers
    assert read_tree(read_only.root) == before
    for words in (["--lint"], ["--dag"], ["--report", str(tmp_path / "report.html")]):
        done = read_only.snakemake(*words)
        assert done.returncode == 0, done.stderr[-3000:]
        assert read_tree(read_only.root) == before, words


def test_a_run_that_has_nothing_to_do_writes_what_was_found(workspace):
    bring_from_elsewhere(workspace.root)
    (workspace.results / "corpus/train.jsonl").unlink()
    workspace.run("--touch", "results/data/audit.json", "--nolock", "--no-hooks")
    assert not list((workspace.root / ".snakemake/metadata").iterdir()), "neither locked nor started"
    done = workspace.run("results/data/audit.json")
    assert "Nothing to be done" in done.stderr
    assert "came from elsewhere" in done.stderr
    assert list((workspace.root / ".snakemake/metadata").iterdir())
    assert "came from elsewhere" not in workspace.run("-n", "results/data/audit.json").stderr
