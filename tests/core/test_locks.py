"""Locks of a workspace, of a training's progress and of cards, in folders that somebody else may have prepared."""

import json
import os
import socket
import time
from pathlib import Path

import pytest
import run

from lib.core import progress_lock
from lib.core.cli import Stopped, UserError
from lib.core.files import read_json
from lib.core.locks import is_still_there, open_lock, try_lock

HERE = socket.gethostname()
DAY = 86400


@pytest.fixture
def quick(monkeypatch):
    """Signs of life every 0.15 s; a holder without one for 0.6 s is dead."""
    for name, seconds in {"_BEAT": 0.15, "_DEAD": 0.6, "_POLL": 0.02}.items():
        monkeypatch.setattr(progress_lock, name, seconds)


def hold_elsewhere(folder: Path, touched: float, **other: object) -> Path:
    path = folder / "holder.json"
    path.write_text(json.dumps({"host": "n7", "process": 1, "job": "12"} | other))
    os.utime(path, (touched, touched))
    return path


def seconds_until_held(folder: Path, patience: float) -> float:
    begin = time.monotonic()
    with progress_lock.hold_progress(folder, deadline=begin + patience):
        took = time.monotonic() - begin
        assert read_json(folder / "holder.json")["host"] == HERE
    assert not (folder / "holder.json").exists()
    return took


@pytest.mark.parametrize("ahead", [-40 * 365 * DAY, -3600, 0, 3600, 40 * 365 * DAY])
def test_a_dead_holder_is_taken_over_whatever_its_clock_said(tmp_path, quick, ahead):
    hold_elsewhere(tmp_path, time.time() + ahead)
    assert 0.25 < seconds_until_held(tmp_path, 5) < 2


@pytest.mark.parametrize("ahead", [-40 * 365 * DAY, -3600, 0, 3600, 40 * 365 * DAY])
def test_a_living_holder_is_waited_for_whatever_its_clock_says(tmp_path, monkeypatch, ahead):
    now, touched, watch = 0.0, time.time() + ahead, progress_lock._Watch()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    for beat in range(20):
        hold_elsewhere(tmp_path, touched + (-1) ** beat)  # it jumps to and fro
        (tmp_path / "lock").touch()
        for _ in range(15):
            assert watch.sees_life(tmp_path)
            now += 1
    now += progress_lock._DEAD
    assert not watch.sees_life(tmp_path)


def test_two_never_hold_the_same_while_signs_of_life_come(tmp_path, quick):
    path = hold_elsewhere(tmp_path, 0)
    with (
        progress_lock.repeat_meanwhile(path.touch, 0.05),
        pytest.raises(Stopped),
        progress_lock.hold_progress(tmp_path, deadline=time.monotonic() + 0.8),
    ):
        pytest.fail("two hold it")


def test_the_clock_of_this_machine_may_jump(tmp_path, quick, monkeypatch):
    hold_elsewhere(tmp_path, time.time())
    times = iter(range(0, 10**9, 10**5))
    monkeypatch.setattr(time, "time", lambda: next(times))
    assert seconds_until_held(tmp_path, 5) > 0.5


MALFORMED = ["[]", "3", "null", "{}", '{"host": ["n7"]}', '{"host": null}', '{"host": {}}', "[" * 99999, "", '{"host":']
MALFORMED += [
    "\0",
    '{"host": "n7", "process": ' + "9" * 5000,
    "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
]


@pytest.mark.parametrize("text", MALFORMED)
def test_what_no_holder_writes_holds_nothing(tmp_path, text):
    (tmp_path / "holder.json").write_text(text)
    assert seconds_until_held(tmp_path, 1) < 0.5


@pytest.mark.parametrize("other", [{"process": [1]}, {"job": {}}, {"host": "\x1b[31m\n"}, {"process": "x", "job": 3}])
def test_a_holder_is_named_in_one_plain_line(tmp_path, capfd, other):
    hold_elsewhere(tmp_path, time.time(), **other)
    with pytest.raises(Stopped), progress_lock.hold_progress(tmp_path, deadline=time.monotonic() - 1):
        pytest.fail("two hold it")
    (line,) = capfd.readouterr().err.splitlines()
    assert line.isprintable()


def test_a_holder_that_died_here_is_taken_over_at_once(tmp_path):
    hold_elsewhere(tmp_path, time.time(), host=HERE)
    assert seconds_until_held(tmp_path, 1) < 0.5


def test_a_holder_gives_signs_of_life(tmp_path, quick):
    with progress_lock.hold_progress(tmp_path):
        os.utime(tmp_path / "holder.json", (0, 0))
        time.sleep(0.5)
        assert (tmp_path / "holder.json").stat().st_mtime > 0


HOSTILE = {
    "pipe": os.mkfifo,
    "folder": Path.mkdir,
    "link": lambda path: path.symlink_to(path.with_name("precious")),
    "dangling link": lambda path: path.symlink_to(path.with_name("gone")),
}


@pytest.fixture(params=HOSTILE)
def hostile(request, tmp_path):
    """Makes something else of a lock; checks afterwards that no file behind it was touched."""
    (tmp_path / ".snakemake").mkdir()
    (tmp_path / ".snakemake/precious").write_text("mine")
    yield HOSTILE[request.param]
    assert (tmp_path / ".snakemake/precious").read_text() == "mine"
    assert not (tmp_path / ".snakemake/gone").exists()


def test_a_lock_that_is_no_file_is_refused_and_never_waited_for(tmp_path, hostile):
    for shared in (False, True):
        path = tmp_path / ".snakemake" / f"lock{shared}"
        hostile(path)
        with pytest.raises(UserError, match=r"lock(False|True): is not a file of its own; remove it"):
            open_lock(path, shared=shared)


def test_a_run_refuses_such_a_lock_of_its_folder(tmp_path, hostile, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    hostile(Path(".snakemake/slmflow.lock"))
    assert run.main([]) == 1
    assert capfd.readouterr().err == "error: .snakemake/slmflow.lock: is not a file of its own; remove it\n"


@pytest.mark.parametrize("kind", ["pipe", "link", "dangling link"])
def test_a_training_takes_no_such_thing_for_a_holder(tmp_path, kind):
    (tmp_path / "precious").write_text('{"host": "n7"}')
    HOSTILE[kind](tmp_path / "holder.json")
    seconds_until_held(tmp_path, 1)
    assert (tmp_path / "precious").read_text() == '{"host": "n7"}'


def test_a_folder_in_the_place_of_a_holder_is_one_line(tmp_path):
    (tmp_path / "holder.json").mkdir()
    with (
        pytest.raises(UserError, match=r"holder.json: is not a file of its own; remove it"),
        progress_lock.hold_progress(tmp_path),
    ):
        pytest.fail("held without a sign of it")


def test_a_lock_keeps_what_is_in_it_and_ends_with_its_name(tmp_path):
    path = tmp_path / "lock"
    path.write_text("of an earlier version")
    first, second = open_lock(path), open_lock(path)
    assert try_lock(first, path)
    assert not try_lock(second, path)
    assert is_still_there(path, first)
    path.unlink()
    assert not is_still_there(path, first), "who removed its name frees it"
    path.touch()
    assert not is_still_there(path, first)
    os.close(first)
    os.close(second)
