"""What is done inside a fork: to a script before its `main` begins, or in place of one."""

import ctypes
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from faults.scripts_in_forks import limit_memory

__all__ = [
    "drop_privileges",
    "jump_clock",
    "kill_at_rename",
    "limit_memory",
    "list_undurable",
    "load_address",
    "load_configuration",
    "shorten_limits",
]
_CAPABILITIES = 0x20080522  # _LINUX_CAPABILITY_VERSION_3


def drop_privileges() -> None:
    """Let modes of files count for root, too: without CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH and CAP_FOWNER."""
    if os.geteuid() != 0:
        return
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES, 0)
    sets = (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.capget(header, sets):
        raise OSError(ctypes.get_errno(), "capget")
    for place in range(3):
        sets[place] &= ~(1 << 1 | 1 << 2 | 1 << 3)
    if libc.capset(header, sets):
        raise OSError(ctypes.get_errno(), "capset")


def kill_at_rename(number: int, after: bool) -> None:
    """End this process by SIGKILL at the rename of that number, before or after it."""
    counted = 0

    def around(rename: Callable[..., None]) -> Callable[..., None]:
        def counting(*args: Any, **options: Any) -> None:
            nonlocal counted
            counted += 1
            if counted == number and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            rename(*args, **options)
            if counted == number:
                os.kill(os.getpid(), signal.SIGKILL)

        return counting

    os.replace, os.rename = around(os.replace), around(os.rename)


def jump_clock(calls: int, seconds: float) -> None:
    """Have the clock jump at that call of `time.time`."""
    real, counted = time.time, 0

    def jumping() -> float:
        nonlocal counted
        counted += 1
        return real() + (seconds if counted > calls else 0)

    time.time = jumping


def list_undurable(note: Path) -> None:
    """Write to `note` the files that are renamed into place in `results` or `work` without an fsync after the last write.

    On a loss of power, such a file is there by its name, and empty.
    """
    durable: dict[tuple[int, int], int] = {}
    sync, replace, rename = os.fsync, os.replace, os.rename

    def fsync(file: Any) -> None:
        sync(file)
        stat = os.fstat(file if isinstance(file, int) else file.fileno())
        durable[stat.st_dev, stat.st_ino] = stat.st_mtime_ns

    def watched(move: Callable[..., None]) -> Callable[..., None]:
        def moving(source: Any, target: Any, **options: Any) -> None:
            found = _undurable(Path(source), durable) if _is_kept(Path(target)) else []
            move(source, target, **options)
            with open(note, "a", encoding="utf-8") as file:
                file.writelines(f"{Path(target).name}{name}\n" for name in found)

        return moving

    os.fsync, os.replace, os.rename = fsync, watched(replace), watched(rename)
    sys.modules["posix"].fsync = fsync  # type: ignore[attr-defined]


def shorten_limits(seconds: float) -> None:
    """Have the children that slmflow starts end sooner: where one hangs, the outcome is the same and comes earlier."""
    limits = importlib.import_module("lib.core.limits")
    call = limits._call_child

    def calling(module: str, request: str, given: Any) -> str:
        return call(module, request, given._replace(seconds=min(given.seconds, seconds)))

    limits._call_child = calling


def _is_kept(path: Path) -> bool:
    if ".partial." in path.as_posix():  # not published yet
        return False
    return bool({"results", "work"} & set(path.absolute().relative_to(Path.cwd()).parts[:1])) if _below(path) else False


def _below(path: Path) -> bool:
    return path.absolute().is_relative_to(Path.cwd())


def _undurable(path: Path, durable: dict[tuple[int, int], int]) -> list[str]:
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    found = []
    for file in files:
        stat = file.stat()
        # Of several names, each has the bytes that the first one was published with.
        if stat.st_size and stat.st_nlink == 1 and durable.get((stat.st_dev, stat.st_ino)) != stat.st_mtime_ns:
            found.append("" if file == path else f"/{file.relative_to(path)}")
    return found


def load_configuration() -> None:
    """Do what the Snakefile does with its configuration."""
    from snakemake.common.configfile import load_configfile

    from lib.config.loader import check_yaml, load_config
    from lib.core.cli import call_or_exit
    from lib.core.files import dump_canonical_json, hash_text

    path = Path("config.yaml")
    call_or_exit(check_yaml, path)
    config = call_or_exit(load_config, load_configfile(path), [path])
    text = dump_canonical_json([config.model_dump(mode="json"), list(config.runs), list(config.every_variant)])
    print(hash_text(text))  # the configuration may hold a planted secret


def load_address() -> None:
    """Do what the Snakefile does with addresses, and what a job does with that of a secret."""
    from lib.azure.identity import read_vault_secret
    from lib.azure.machine_learning import build_job_address, choose_job_type
    from lib.core.cli import call_or_exit

    load_configuration()
    values = json.loads(Path("config.yaml").read_text(encoding="utf-8"))
    if "source" in values["base_model"]:
        call_or_exit(choose_job_type, values["base_model"]["source"], "mlflow_model")
    for section in ("data", "base_model"):
        if "source" in values[section]:
            call_or_exit(build_job_address, values[section]["source"])
    if "vault" in values:
        call_or_exit(read_vault_secret, values["vault"])
