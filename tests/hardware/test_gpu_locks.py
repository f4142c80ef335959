"""Which process gets which GPU. The cards are made up, by a stand-in for nvidia-smi; processes and locks are real."""

import multiprocessing
import os
import shutil
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from lib.core.cli import UserError
from lib.hardware import gpu_locks
from lib.hardware.resources import count_gpus
from support.paths import SCRIPTS

SHOW = "import os, sys; print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True); sys.stdin.read()"


class Machine:
    """A folder with an nvidia-smi that lists cards of fresh names; programs run with it first on PATH."""

    def __init__(self, folder: Path, count: int) -> None:
        self.cards = [f"GPU-{uuid.uuid4()}" for _ in range(count)]
        lines = [f"GPU {number}: NVIDIA Made-up (UUID: {card})" for number, card in enumerate(self.cards)]
        program = folder / "nvidia-smi"
        program.write_text("#!/bin/sh\ncat <<END\n" + "\n".join(lines) + "\nEND\n")
        program.chmod(0o755)
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "CUDA_"))},
            "PATH": f"{folder}:{os.environ['PATH']}",
        }
        self.started: list[subprocess.Popen] = []

    def start(self, count: int, env: dict[str, str] | None = None) -> subprocess.Popen:
        """A program on `count` cards: says which, then goes on until its input ends."""
        command = [sys.executable, SCRIPTS / "with_gpus.py", str(count), sys.executable, "-c", SHOW]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(command, env=self.env | (env or {}), text=True, **pipes)
        self.started.append(process)
        return process


@pytest.fixture
def machine(tmp_path):
    made = Machine(tmp_path, 2)
    yield made
    for process in made.started:
        process.kill()
        process.communicate()
    for card in made.cards:
        (gpu_locks.PLACE / f"{card}.lock").unlink(missing_ok=True)


def held(process: subprocess.Popen) -> list[str]:
    return process.stdout.readline().strip().split(",")


def test_two_programs_get_two_cards_and_a_third_waits_until_one_ends(machine):
    first, second = (machine.start(1) for _ in range(2))
    taken = held(first) + held(second)
    assert sorted(taken) == sorted(machine.cards)

    third = machine.start(1)
    assert "all 2 GPUs are taken; waiting for 1" in third.stderr.readline()
    time.sleep(0.5)
    assert third.poll() is None
    first.kill()  # and not asked to end: the kernel frees the card
    assert held(third) == taken[:1]


def test_who_wants_two_waits_for_both_and_holds_none_meanwhile(machine):
    first = machine.start(1)
    (card,) = held(first)
    both = machine.start(2)
    assert "waiting for 2" in both.stderr.readline()
    time.sleep(0.5)
    other = machine.start(1)
    assert held(other) == [one for one in machine.cards if one != card]
    first.kill()
    other.kill()
    assert held(both) == machine.cards


def test_more_cards_than_there_are_is_one_line(machine):
    process = machine.start(3)
    _, stderr = process.communicate()
    assert process.returncode == 1
    assert stderr == (
        "error: nvidia-smi -L: 3 GPUs are asked for, 2 are here;"
        " lower `gpu` in the profile, or let CUDA_VISIBLE_DEVICES name more\n"
    )


@pytest.mark.parametrize("how", ["number", "uuid", "beginning"])
def test_only_cards_that_the_user_left_visible_are_taken(machine, how):
    name = {"number": "1", "uuid": machine.cards[1], "beginning": machine.cards[1][:12]}[how]
    only = {"CUDA_VISIBLE_DEVICES": name}
    first = machine.start(1, env=only)
    assert held(first) == machine.cards[1:]
    assert "all 1 GPUs are taken" in machine.start(1, env=only).stderr.readline()


def test_a_card_that_is_not_here_is_named(machine):
    process = machine.start(1, env={"CUDA_VISIBLE_DEVICES": "7"})
    assert process.communicate()[1] == "error: CUDA_VISIBLE_DEVICES: there is no GPU 7; see nvidia-smi -L\n"


def test_a_scheduler_that_gave_just_as_many_is_believed(machine):
    given = {"SLURM_JOB_ID": "5", "CUDA_VISIBLE_DEVICES": "0"}
    first, second = (machine.start(1, env=given) for _ in range(2))  # two jobs that share a card, as Slurm's shards do
    assert held(first) == held(second) == machine.cards[:1]


def test_jobs_inside_one_allocation_of_several_cards_do_not_share_them(machine):
    given = {"SLURM_JOB_ID": "5", "CUDA_VISIBLE_DEVICES": "0,1"}
    assert held(machine.start(1, env=given)) != held(machine.start(1, env=given))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_users_of_other_names_see_each_others_cards(machine):
    """A fork that becomes nobody, whose modules are loaded already: another user need not read this checkout."""
    reader, writer = multiprocessing.Pipe()
    (mine,) = held(machine.start(1))

    def as_nobody():
        os.setgid(65534)
        os.setuid(65534)
        os.environ.update(PATH="", CUDA_VISIBLE_DEVICES=",".join(machine.cards))
        writer.send(gpu_locks.claim(1))
        time.sleep(60)

    theirs = multiprocessing.get_context("fork").Process(target=as_nobody)
    theirs.start()
    try:
        assert reader.poll(30)
        assert sorted([mine, *reader.recv()]) == sorted(machine.cards)
        assert "taken" in machine.start(1).stderr.readline(), "and the other way round"
    finally:
        theirs.kill()
        theirs.join()


def make_hostile(place: Path, kind: str) -> None:
    """What another user may have put in the place of the folder of locks, or of one lock in it."""
    other = place.with_name("other")
    other.mkdir(mode=0o700)
    if kind == "link to a folder":
        place.symlink_to(other)
    elif kind == "dangling link":
        place.symlink_to(other / "gone")
    elif kind == "plain file":
        place.touch()
    elif kind == "pipe":
        os.mkfifo(place)
    else:
        place.mkdir()
        place.chmod(0o777 if kind == "removable by all" else 0o1777)
        lock = place / "GPU-1.lock"
        {
            "removable by all": lambda: None,
            "lock is a pipe": lambda: os.mkfifo(lock),
            "lock is a link": lambda: lock.symlink_to(other),
            "lock is a dangling link": lambda: lock.symlink_to(other / "made"),
            "lock is a folder": lock.mkdir,
        }[kind]()


KINDS = ["link to a folder", "dangling link", "plain file", "pipe", "removable by all"]
KINDS += [f"lock is a {what}" for what in ("pipe", "link", "dangling link", "folder")]


@pytest.fixture
def one_card(tmp_path, monkeypatch) -> Path:
    """A machine of one card, GPU-1; returns the place of the locks."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    return tmp_path / "locks"


@pytest.mark.parametrize("kind", KINDS)
def test_a_hostile_folder_of_locks_is_left_for_one_of_the_users_own(one_card, tmp_path, capfd, kind):
    make_hostile(one_card, kind)
    assert gpu_locks.claim(1, one_card) == ["GPU-1"]
    (said,) = capfd.readouterr().err.splitlines()
    assert str(one_card) in said
    assert f"(the GPUs' locks now lie in {gpu_locks.find_own_lock_folder()}: jobs of other users are not seen)" in said
    assert gpu_locks._free_cards(1, ["GPU-1"], gpu_locks.find_own_lock_folder(), shared=False) is None, (
        "the lock is held there"
    )
    assert (tmp_path / "other").stat().st_mode & 0o7777 == 0o700, "what is not ours keeps its mode"
    assert not list((tmp_path / "other").iterdir())


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_the_folder_of_locks_is_for_all_and_an_old_one_keeps_its_mode(one_card, umask, capfd):
    before = os.umask(umask)
    try:
        assert gpu_locks.claim(1, one_card) == ["GPU-1"]
    finally:
        os.umask(before)
    assert one_card.stat().st_mode & 0o7777 == 0o1777
    assert (one_card / "GPU-1.lock").stat().st_mode & 0o7777 == 0o644
    one_card.chmod(0o755)
    assert gpu_locks._free_cards(1, ["GPU-1"], one_card, shared=True) is None
    assert one_card.stat().st_mode & 0o7777 == 0o755
    assert capfd.readouterr().err == ""


def test_a_home_that_cannot_hold_locks_either_is_one_line(one_card, tmp_path):
    one_card.touch()
    (tmp_path / "home").touch()
    with pytest.raises(UserError, match=r"home/\.cache/slmflow/gpus-.*: .*; "):
        gpu_locks.claim(1, one_card)


NAMES = [
    "../../x",
    "/x",
    "GPU-1/../../x",
    "MIG-1/../2",
    "-1",
    "NoDevFiles",
    "0 1",
    "GPU-",
    "a\nb",
    "٣",
    "0x1",
    "9" * 500,
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_no_card_has_never_becomes_a_path(one_card, monkeypatch, name):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", name)
    with pytest.raises(UserError, match="^CUDA_VISIBLE_DEVICES: there is no GPU '") as told:
        gpu_locks.claim(1, one_card)
    assert len(str(told.value).splitlines()) == 1
    assert not one_card.exists()


@pytest.mark.parametrize("name", ["0", "17", "GPU-8f1", "MIG-41b5", "MIG-GPU-8f1c-22/1/0"])
def test_a_card_by_any_name_of_cuda_is_locked(one_card, monkeypatch, name):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", f" {name} ,")
    assert gpu_locks.claim(1, one_card) == [name]
    assert [file.name for file in one_card.iterdir()] == [f"{name.replace('/', '_')}.lock"]


def test_a_card_named_twice_is_told_and_not_waited_for(one_card, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,0")
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES: names GPU 0 twice; name it once"):
        gpu_locks.claim(2, one_card)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
@pytest.mark.parametrize("mode", [0o700, 0o755, 0o1777])
def test_a_folder_or_lock_that_another_user_keeps_closed_is_told(tmp_path, mode):
    """A fork that becomes nobody; the folder, and where it is open to all the lock, belong to root."""
    place, home = Path(f"/tmp/slmflow-test-{uuid.uuid4()}"), Path(f"/tmp/slmflow-test-{uuid.uuid4()}")
    place.mkdir()
    place.chmod(mode)
    if mode == 0o1777:
        (place / "GPU-1.lock").touch(mode=0o600)
    home.mkdir()
    os.chown(home, 65534, 65534)
    reader, writer = multiprocessing.Pipe()

    def as_nobody():
        os.setgid(65534)
        os.setuid(65534)
        os.environ.update(PATH="", HOME=str(home), CUDA_VISIBLE_DEVICES="GPU-1")
        os.environ.pop("SLURM_JOB_ID", None)
        said: list[str] = []
        gpu_locks.report_progress = said.append
        writer.send((gpu_locks.claim(1, place), said))

    theirs = multiprocessing.get_context("fork").Process(target=as_nobody)
    theirs.start()
    try:
        assert reader.poll(30)
        taken, (said,) = reader.recv()
        assert taken == ["GPU-1"]
        assert said.startswith(str(place))
        assert "Permission denied; " in said
        assert (os.stat(place).st_uid, os.stat(place).st_mode & 0o7777) == (0, mode)
    finally:
        theirs.join(10)
        shutil.rmtree(place)
        shutil.rmtree(home)


def test_without_any_card_a_job_that_needs_one_ends(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(UserError, match="1 GPUs are asked for, 0 are here"):
        gpu_locks.claim(1, tmp_path)


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        ({}, 0),
        ({"gpu": 0}, 0),
        ({"gpu": 2}, 2),
        ({"gpu": 4, "nodes": 2}, 2),
        ({"gres": "gpu"}, 1),
        ({"gres": "gpu:2"}, 2),
        ({"gres": "gpu:a100"}, 1),
        ({"gres": "gpu:a100:2"}, 2),
        ({"gpu": 0, "gres": "gpu:h100_80gb:4"}, 4),
        ({"gres": "shard:2"}, 0),
    ],
)
def test_gpus_of_a_job_by_its_resources(resources, expected):
    assert count_gpus(resources) == expected
