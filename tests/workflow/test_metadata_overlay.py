"""Corrections of Snakemake's metadata: seen at once, written when a run locks the folder, gone when a job was run."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from snakemake.persistence import MetadataRecord
from snakemake.persistence.file import FilePersistence

from lib.core.cli import UserError
from lib.workflow.metadata_overlay import (
    build_metadata,
    correct_metadata,
    find_recorded_outputs,
    open_metadata,
    write_corrections,
)

NOTHING = SimpleNamespace(
    needrun_jobs=lambda: [], jobs=[], workflow=SimpleNamespace(dag_settings=SimpleNamespace(max_checksum_file_size=0))
)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("_read_record", "_write_record", "_delete_record", "lock"):
        monkeypatch.setattr(FilePersistence, name, getattr(FilePersistence, name))
    yield tmp_path
    correct_metadata({})


def test_reading_makes_no_folder(folder):
    records = open_metadata()
    assert records._read_record("results/a") is None
    assert records._filter_incomplete_keys(["results/a"]) == set()
    assert list(find_recorded_outputs()) == []
    assert list(folder.iterdir()) == []


def test_what_snakemake_wrote_is_read(folder):
    snakemake = FilePersistence(path=folder / ".snakemake")
    name = "results/" + "long/" * 60 + "ä"
    snakemake._write_record(name, MetadataRecord(rule="fetch", params=["1"]))
    snakemake._mark_incomplete("results/cut", None)
    assert list(find_recorded_outputs()) == [name]
    assert open_metadata()._read_record(name).rule == "fetch"
    assert open_metadata()._filter_incomplete_keys(["results/cut", name]) == {"results/cut"}


def test_snakemake_reads_a_correction_and_the_disk_stays(folder):
    snakemake = FilePersistence(path=folder / ".snakemake")
    snakemake._write_record("a", MetadataRecord(rule="old"))
    snakemake._write_record("b", MetadataRecord(rule="other"))
    correct_metadata({"a": build_metadata({"rule": "new", "shellcmd": "of one process"}, 7.0)})
    assert snakemake._read_record("a").rule == "new"
    assert snakemake._read_record("a").endtime == 7.0
    assert snakemake._read_record("a").shellcmd is None
    assert snakemake._read_record("b").rule == "other"
    assert open_metadata()._read_record("a").rule == "old"


@pytest.mark.parametrize("change", ["_write_record", "_delete_record"])
def test_a_job_that_was_run_ends_the_correction(folder, change):
    snakemake = FilePersistence(path=folder / ".snakemake")
    correct_metadata({"a": MetadataRecord(rule="new")})
    getattr(snakemake, change)("a", *([MetadataRecord(rule="made")] if change == "_write_record" else []))
    snakemake._clear_cache()
    left = snakemake._read_record("a")
    assert (left and left.rule) == ("made" if change == "_write_record" else None)


def test_a_run_writes_once_when_it_locks_the_folder_and_a_plan_never(folder):
    written = []
    correct_metadata(
        {"a": MetadataRecord(rule="new")}, lambda: written.append(bool(list(Path(".snakemake/locks").iterdir())))
    )
    with FilePersistence(dag=NOTHING, warn_only=True).lock():  # as a dry run
        assert written == []
    with FilePersistence(dag=NOTHING, nolock=True).lock():
        assert written == []
    snakemake = FilePersistence(dag=NOTHING)
    for _ in range(2):
        with snakemake.lock():
            assert written == [False]
    assert snakemake._read_record("a") is None, "what counts now is what was written"


def test_a_disk_that_takes_nothing_is_one_line_and_no_lock_stays(folder):
    def refuse() -> None:
        raise UserError("results: No space left on device")

    correct_metadata({}, refuse)
    with (
        pytest.raises(SystemExit, match="error: results: No space left on device"),
        FilePersistence(dag=NOTHING).lock(),
    ):
        raise AssertionError("the run would have started")
    assert not Path(".snakemake/locks").exists()
    correct_metadata({}, refuse)
    with pytest.raises(UserError, match="No space left"):
        write_corrections()
