"""What no rule makes is known by its content: no time lets an old result pass for a new one, or makes a right one again."""

import asyncio
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from snakemake.io import IOFile, _IOFile

from lib.core.cli import UserError
from lib.provenance.lineage import Lineage, find_sha256
from lib.workflow import input_content
from lib.workflow.input_content import ContentHashes, compare_by_content
from lib.workflow.snakemake_metadata import open_metadata
from support import workspaces

pytestmark = pytest.mark.workflow

ROWS, MODEL = Path(workspaces.ROWS), Path(workspaces.BASE)
WEIGHTS, CONFIG = MODEL / "model.safetensors", MODEL / "config.json"
GIVEN = [f"./{ROWS}", f"./{MODEL}"]  # as the rules name them
LONG_AGO = (1_500_000_000 * 10**9,) * 2  # nanoseconds


@pytest.fixture
def records(finished, tmp_path, monkeypatch) -> None:
    """As working directory: rows and base model, and Snakemake's records of the results that were made from them."""
    for name in (".snakemake/metadata", MODEL):
        shutil.copytree(finished / name, tmp_path / name)
    shutil.copy2(finished / ROWS, tmp_path)
    monkeypatch.chdir(tmp_path)
    for method in ("is_newer", "is_checksum_eligible", "checksum"):
        monkeypatch.setattr(_IOFile, method, getattr(_IOFile, method))


@pytest.fixture
def counted(monkeypatch) -> list[str]:
    """The paths that are read, by files that count as settled at once."""
    read: list[str] = []
    monkeypatch.setattr(input_content, "_TICK", -60.0)
    monkeypatch.setattr(input_content, "find_sha256", lambda path: read.append(str(path)) or find_sha256(path))
    return read


def changed(results: str = "results", lineage: Lineage | None = None) -> list[str]:
    """What Snakemake takes for newer than any output."""
    compare_by_content(GIVEN, results, lineage or Lineage({})).save()  # as a run does
    return [path for path in GIVEN if asyncio.run(IOFile(path).is_newer(float("inf")))]


def other(path: Path) -> bytes:
    """As many bytes as it has, and not the same."""
    content = path.read_bytes()
    place = len(content) // 2
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def move_there(path: Path, content: bytes, times: tuple[int, int] = LONG_AGO) -> None:
    """Another file in its place, with the time that it had elsewhere."""
    Path("new").write_bytes(content)
    os.utime("new", ns=times)
    Path("new").replace(path)


def overwrite(path: Path, content: bytes) -> None:
    """Other bytes in the same file, and its old time."""
    times = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def link(path: Path) -> None:
    """A link in its place, to what was there."""
    path.rename("elsewhere")
    path.symlink_to("elsewhere")
    os.utime(path, ns=LONG_AGO, follow_symlinks=False)


def link_hard(path: Path) -> None:
    move_there(Path("elsewhere"), other(path))
    path.unlink()
    path.hardlink_to("elsewhere")


def make_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()
    os.utime(path, ns=LONG_AGO)


def in_old_folder(change: Callable[[], object]) -> None:
    """A change in the model's folder, which keeps its time."""
    times = MODEL.stat()
    change()
    os.utime(MODEL, ns=(times.st_atime_ns, times.st_mtime_ns))


CHANGES = {
    "an older file": (ROWS, lambda: move_there(ROWS, other(ROWS))),
    "a file of the same size and time": (ROWS, lambda: move_there(ROWS, other(ROWS), (ROWS.stat().st_mtime_ns,) * 2)),
    "a row more and the time set back": (ROWS, lambda: overwrite(ROWS, ROWS.read_bytes() + b"\n")),
    "a hard link": (ROWS, lambda: link_hard(ROWS)),
    "a link and its target": (ROWS, lambda: (link(ROWS), move_there(Path("elsewhere"), other(ROWS)))),
    "a directory": (ROWS, lambda: make_directory(ROWS)),
    "weights of the same size and time": (MODEL, lambda: overwrite(WEIGHTS, other(WEIGHTS))),
    "a file added": (MODEL, lambda: in_old_folder(lambda: move_there(MODEL / "chat_template.json", b"{}"))),
    "a file removed": (MODEL, lambda: in_old_folder((MODEL / "generation_config.json").unlink)),
    "a link to another folder": (MODEL, lambda: (link(MODEL), overwrite(CONFIG, other(CONFIG)))),
    "a file instead of the folder": (MODEL, lambda: (MODEL.rename("elsewhere"), move_there(MODEL, b"GGUF"))),
}


@pytest.mark.parametrize(("path", "change"), CHANGES.values(), ids=CHANGES.keys())
def test_other_content_is_found_whatever_its_time_is(records, counted, path, change):
    assert changed() == []
    written = path.stat().st_mtime_ns
    change()
    assert path.stat().st_mtime_ns <= written
    assert changed() == [f"./{path}"]
    assert changed() == [f"./{path}"], "a plan does not use it up"


def copy_anew(path: Path) -> None:
    path.rename("old")
    (shutil.copytree if path == MODEL else shutil.copyfile)("old", path)


def hide(name: str) -> None:
    (MODEL / name).parent.mkdir(exist_ok=True)
    (MODEL / name).write_text("of another program")


KEPT = {
    "touched": lambda: [os.utime(path) for path in (ROWS, WEIGHTS, MODEL)],
    "copied again": lambda: (copy_anew(MODEL), shutil.rmtree("old"), copy_anew(ROWS)),
    "a link to the rows": lambda: link(ROWS),
    "a link to the model": lambda: link(MODEL),
    "files that no rule reads": lambda: [hide(name) for name in (".DS_Store", ".git/index", ".cache/download")],
}


@pytest.mark.parametrize("change", KEPT.values(), ids=KEPT.keys())
def test_equal_content_is_not_new_however_late_it_came(records, change):
    change()
    assert changed() == []


def test_code_is_compared_by_content_too(records, finished):
    """An older version of the project, or one that was unpacked or copied with its times."""
    Path("scripts").mkdir()
    script = Path("scripts/split_data.py")
    for content, newer in ((finished / script).read_bytes(), False), (b"# another", True):
        move_there(script, content)
        changed()
        assert asyncio.run(IOFile(str(script)).is_newer(0)) == newer


def test_what_was_read_once_is_read_again_when_it_changes(records, counted):
    changed()
    counted.clear()
    assert changed() == []
    assert counted == []
    overwrite(WEIGHTS, other(WEIGHTS))
    assert changed() == GIVEN[1:]
    assert counted == [str(MODEL)]
    input_content._NOTE.write_text("{")
    assert changed() == GIVEN[1:], "a note that cannot be read is none"
    input_content._NOTE.unlink()
    input_content._NOTE.mkdir()
    assert changed() == GIVEN[1:], "nor one that cannot be written"


def test_a_file_that_may_still_change_within_one_tick_of_the_clock_is_not_noted(records, counted, monkeypatch):
    monkeypatch.setattr(input_content, "_TICK", 60.0)
    for _ in range(2):
        hashes = ContentHashes()
        hashes.find({GIVEN[0]})
        hashes.save()
    assert counted == [str(ROWS)] * 2


def test_a_job_is_recorded_with_the_bytes_of_the_plan(records):
    """What changes while jobs run is found by the next plan, and not taken for what they read."""
    changed()
    known = find_sha256(MODEL)
    overwrite(WEIGHTS, other(WEIGHTS))
    assert asyncio.run(IOFile(GIVEN[1]).checksum(0)) == f"sha256:{known}"
    assert asyncio.run(IOFile(GIVEN[1]).is_checksum_eligible(0)), "Snakemake compares it with the record of each job"
    assert open_metadata()._read_record("results/base").input_checksums[GIVEN[1]] == f"sha256:{known}"


@pytest.mark.parametrize("results", ["other", "az://container/project/results"])
def test_each_results_folder_knows_what_its_own_jobs_read(records, results):
    records = open_metadata()
    assert changed(results) == GIVEN, "nobody knows what they are made from"
    for output in ("data/rows.jsonl", "base"):
        records._write_record(f"{results}/{output}", records._read_record(f"results/{output}"))
    assert (changed("results"), changed(results)) == ([], [])
    move_there(ROWS, other(ROWS))
    record = records._read_record("results/data/rows.jsonl")
    record.input_checksums[GIVEN[0]] = f"sha256:{find_sha256(ROWS)}"
    records._write_record("results/data/rows.jsonl", record)  # as after a run of that configuration
    assert (changed("results"), changed(results)) == ([], GIVEN[:1])


def test_folders_that_older_versions_recorded_are_known_by_the_lineage(records):
    records = open_metadata()
    for output in ("results/base", "results/base.manifest.json"):
        record = records._read_record(output)
        known = record.input_checksums.pop(GIVEN[1])
        records._write_record(output, record)
    job = {"rule": "fetch_model", "outputs": {}, "record": {}, "sources": {GIVEN[1]: known.removeprefix("sha256:")}}
    lineage = Lineage({"results/base": job})
    assert changed(lineage=lineage) == []
    overwrite(WEIGHTS, other(WEIGHTS))
    assert changed(lineage=lineage) == GIVEN[1:]


def test_what_cannot_be_read_is_one_line(records, monkeypatch):
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(input_content, "find_sha256", refuse)
    with pytest.raises(UserError, match=rf"^{re.escape(str(MODEL))}: Permission denied; mend the permissions"):
        changed()


def test_a_run_that_failed_leaves_what_is_new_to_the_next_one(workspace):
    """Older rows of which one is broken, and a base model with a file more: nothing that comes after forgets them."""
    for name in (ROWS, MODEL / "chat_template.json"):
        path = workspace.root / name
        path.write_text("{")
        for place in (path, path.parent):
            os.utime(place, ns=LONG_AGO)
    assert f"error: {ROWS}, row" in workspace.snakemake("results/data/rows.jsonl").stderr
    workspace.run("--touch", "--forceall")
    (workspace.root / ".snakemake/locks").mkdir(exist_ok=True)
    (workspace.root / ".snakemake/locks/0.output.lock").write_text("results/elsewhere\n")  # as a killed run leaves it
    plan = workspace.run("-n").stdout
    assert sorted(re.findall(r"Updated input files: (.+)", plan)) == GIVEN[::-1]
    assert "rule train_adapter:" in plan
