"""GPUs of this machine, each lent to one process at a time, whatever folder, workflow or user it comes from.

CUDA counts every GPU as everybody's: two trainings on one are slow, or die of too little memory. Snakemake's resource
`gpu` keeps the jobs of one run apart but names no GPU; the locks here say which GPU is whose.
"""

import errno
import os
import re
import socket
import stat
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from lib.core.cli import UserError, fail, report_progress
from lib.core.locks import is_still_there, open_lock, try_lock

# Not $TMPDIR, which differs between users and jobs.
PLACE = Path("/tmp/slmflow-gpus")
VISIBLE = "CUDA_VISIBLE_DEVICES"
# Numbers, UUIDs or their beginnings, and parts of GPUs; drivers before 470 name these MIG-GPU-UUID/INSTANCE/INSTANCE.
_NAME = re.compile(r"0|[1-9]\d{0,3}|GPU-[0-9A-Za-z-]{1,64}|MIG-[0-9A-Za-z-]{1,64}(/\d{1,4}/\d{1,4})?", re.ASCII)


def claim(count: int, place: Path = PLACE, patience: float = 2.0) -> list[str]:
    """Take `count` free GPUs until this process ends, and let CUDA see no others; wait while all are taken.

    Only before CUDA is initialized, which imports alone can do (bitsandbytes). A program that takes this process's
    place by exec keeps the GPUs. A scheduler that gave this job just as many is believed: it may share GPUs.
    patience: seconds between two looks. Raises `UserError` when there are too few GPUs.
    """
    gpus = list_visible_gpus()
    if count > len(gpus):
        fail(
            f"{count} GPUs are asked for, {len(gpus)} are here",
            f"lower `gpu` in the profile, or let {VISIBLE} name more",
            at="nvidia-smi -L" if VISIBLE not in os.environ else VISIBLE,
        )
    mine = gpus
    if "SLURM_JOB_ID" not in os.environ or len(gpus) > count:
        mine = _lock(count, gpus, place, patience)
    os.environ[VISIBLE] = ",".join(mine)
    return mine


def list_visible_gpus() -> list[str]:
    """Return UUIDs of the GPUs that this process may use, those in CUDA_VISIBLE_DEVICES where it is set.

    Numbers there are nvidia-smi's. Without nvidia-smi its names stand for themselves. Raises `UserError` when it names
    a GPU that is not here, or one twice, of which CUDA shows none.
    """
    listed = _list_gpus()
    wanted = os.environ.get(VISIBLE)
    if wanted is None:
        return listed
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    for name in names:
        if not _NAME.fullmatch(name):
            fail(f"there is no GPU {name!a:.80}", "see nvidia-smi -L", at=VISIBLE)
    gpus = [_uuid(name, listed) for name in names] if listed else names
    twice = next((gpu for gpu in gpus if gpus.count(gpu) > 1), None)
    return gpus if twice is None else fail(f"names GPU {twice} twice", "name it once", at=VISIBLE)


def _list_gpus() -> list[str]:
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return re.findall(r"^GPU \d+: .*\(UUID: (GPU-[\w-]+)\)", done.stdout, flags=re.MULTILINE)


def _uuid(name: str, listed: Sequence[str]) -> str:
    if name.startswith("MIG-"):  # a part of a GPU, which only its owner can name
        return name
    found = [uuid for number, uuid in enumerate(listed) if name == str(number) or uuid.startswith(name)]
    if not found:
        fail(f"there is no GPU {name}", "see nvidia-smi -L", at=VISIBLE)
    return found[0]


def _lock(count: int, gpus: Sequence[str], place: Path, patience: float) -> list[str]:
    """Hold the first `count` GPUs that are free, by locks in `place`, or in a folder of this user if that is unfit."""
    try:
        return _wait(count, gpus, place, patience, shared=True)
    except UserError as error:
        own = find_own_lock_folder()
        report_progress(f"{error} (the GPUs' locks now lie in {own}: jobs of other users are not seen)")
    return _wait(count, gpus, own, patience, shared=False)


def find_own_lock_folder() -> Path:
    """Return where locks lie when the folder of all users is unfit: below the home, which others cannot write to."""
    try:
        return Path.home() / ".cache" / "slmflow" / f"gpus-{socket.gethostname()}"  # homes are shared by machines
    except RuntimeError:
        fail("this user has no home folder for locks", "set HOME", at=PLACE)


def _wait(count: int, gpus: Sequence[str], place: Path, patience: float, *, shared: bool) -> list[str]:
    """Wait until `count` GPUs are free, and hold them all at once: two who wait never hold half each."""
    waiting = False
    while (held := _free_cards(count, gpus, place, shared=shared)) is None:
        if not waiting:
            report_progress(f"all {len(gpus)} GPUs are taken; waiting for {count} ({place})")
            waiting = True
        time.sleep(patience)
    return held


def _free_cards(count: int, gpus: Sequence[str], place: Path, *, shared: bool) -> list[str] | None:
    """Lock `count` GPUs until this process ends, or none. Raises `UserError` when `place` is unfit for locks."""
    held: dict[str, int] = {}
    folder = _open_folder(place, shared=shared)
    try:
        for gpu in gpus:
            if len(held) < count and (file := _lock_file(place / _lock_name(gpu), folder, shared=shared)) is not None:
                held[gpu] = file
        if len(held) < count:
            return None
        for file in held.values():
            os.set_inheritable(file, True)  # kept open, and so locked, over exec
        taken = list(held)
        held.clear()
        return taken
    finally:
        os.close(folder)
        for file in held.values():
            os.close(file)


def _lock_name(gpu: str) -> str:
    return f"{gpu.replace('/', '_')}.lock"  # MIG-GPU-…/1/0, as drivers before 470 name them


def _lock_file(path: Path, folder: int, *, shared: bool) -> int | None:
    """Return a file descriptor that holds the lock of a file, or None where another process does."""
    file = open_lock(path, folder=folder, shared=shared)
    held = False
    try:
        held = try_lock(file, path) and is_still_there(path, file, folder=folder)
    finally:
        if not held:
            os.close(file)
    return file if held else None


def _open_folder(place: Path, *, shared: bool) -> int:
    """Return a descriptor of the folder of locks, made if need be. Raises `UserError` when it is unfit.

    Nobody's modes are changed: a folder is made with its own.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        try:
            folder = os.open(place, flags)
        except FileNotFoundError:
            _make_folder(place, shared=shared)
            folder = os.open(place, flags)
    except OSError as error:
        no_folder = error.errno in (errno.ENOTDIR, errno.ELOOP)
        what = "is not a folder of its own" if no_folder else error.strerror or str(error)
        fail(what, "remove it" if no_folder else "mend the permissions", at=place)
    found = os.fstat(folder)
    if shared:
        fit = not found.st_mode & stat.S_IWOTH or found.st_mode & stat.S_ISVTX
    else:
        fit = found.st_uid == os.geteuid() and not found.st_mode & 0o022
    if not fit:
        os.close(folder)
        fail("others may remove files in it", "remove it" if shared else "chmod 700", at=place)
    return folder


def _make_folder(place: Path, *, shared: bool) -> None:
    if not shared:
        place.parent.mkdir(parents=True, exist_ok=True)
    umask = os.umask(0)  # a mode that is set afterwards could meet what somebody put in the folder's place
    try:
        place.mkdir(mode=0o1777 if shared else 0o700, exist_ok=True)
    finally:
        os.umask(umask)
