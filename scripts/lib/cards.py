"""GPUs of this machine, each lent to one process at a time, whatever folder, workflow or user it comes from.

CUDA counts every card as everybody's: two trainings on one are slow, or die of too little memory. Snakemake's resource
`gpu` keeps the jobs of one run apart but names no card; the locks here say which card is whose.
"""

import fcntl
import os
import re
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from lib.cli import fail, progress

# Not $TMPDIR, which differs between users and jobs.
PLACE = Path("/tmp/slmflow-gpus")
VISIBLE = "CUDA_VISIBLE_DEVICES"


def claim(count: int, place: Path = PLACE, patience: float = 2.0) -> list[str]:
    """Take `count` free cards until this process ends, and let CUDA see no others; wait while all are taken.

    Only before CUDA is initialised, which imports alone can do (bitsandbytes). A program that takes this process's
    place by exec keeps the cards. A scheduler that gave this job just as many is believed: it may share cards.
    patience: seconds between two looks. Raises `UserError` when there are too few cards.
    """
    cards = visible_cards()
    if count > len(cards):
        fail(
            f"{count} GPUs are asked for, {len(cards)} are here",
            f"lower `gpu` in the profile, or let {VISIBLE} name more",
            at="nvidia-smi -L" if VISIBLE not in os.environ else VISIBLE,
        )
    mine = cards
    if "SLURM_JOB_ID" not in os.environ or len(cards) > count:
        mine = _lock(count, cards, place, patience)
    os.environ[VISIBLE] = ",".join(mine)
    return mine


def visible_cards() -> list[str]:
    """UUIDs of the cards that this process may use, those in CUDA_VISIBLE_DEVICES where it is set.

    Numbers there are nvidia-smi's. Without nvidia-smi its names stand for themselves. Raises `UserError` when it names
    a card that is not here.
    """
    listed = _listed_cards()
    wanted = os.environ.get(VISIBLE)
    if wanted is None:
        return listed
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    return [_uuid(name, listed) for name in names] if listed else names


def _listed_cards() -> list[str]:
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return re.findall(r"^GPU \d+: .*\(UUID: (GPU-[\w-]+)\)", done.stdout, flags=re.MULTILINE)


def _uuid(name: str, listed: Sequence[str]) -> str:
    if name.startswith("MIG-"):  # a part of a card, which only its owner can name
        return name
    found = [uuid for number, uuid in enumerate(listed) if name == str(number) or uuid.startswith(name)]
    if not found:
        fail(f"there is no GPU {name}", "see nvidia-smi -L", at=VISIBLE)
    return found[0]


def _lock(count: int, cards: Sequence[str], place: Path, patience: float) -> list[str]:
    """The first `count` cards that nobody holds: all at once, so that two who wait never hold half each."""
    waiting = False
    while True:
        held: dict[str, int] = {}
        for card in cards:
            if len(held) < count and (file := _locked(place / f"{card}.lock")) is not None:
                held[card] = file
        if len(held) == count:
            for file in held.values():
                os.set_inheritable(file, True)  # kept open, and so locked, over exec
            return list(held)
        for file in held.values():
            os.close(file)
        if not waiting:
            progress(f"all {len(cards)} GPUs are taken; waiting for {count} ({place})")
            waiting = True
        time.sleep(patience)


def _locked(path: Path) -> int | None:
    """A file descriptor that holds the lock of a file, or None where another process does."""
    file = _opened(path)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return None
    return file


def _opened(path: Path) -> int:
    """Open the lock file for reading, made if need be for users of every name.

    The kernel forbids to open a file of another user with O_CREAT in a folder like /tmp (fs.protected_regular).
    """
    try:
        return os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
    if os.stat(path.parent).st_uid == os.geteuid():
        path.parent.chmod(0o1777)
    try:
        file = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return os.open(path, os.O_RDONLY)
    os.fchmod(file, 0o644)  # whatever the umask
    return file
