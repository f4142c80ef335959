"""What the machine refuses is one line, whichever library met it, and what was published is on the disk."""

import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lib.core import failures
from lib.core.checksums import write_checksums
from lib.core.cli import UserError, fail
from lib.core.failures import describe_failure, find_failure, find_failure_behind, is_full
from lib.core.files import publish_directory, publish_file, write_json
from support.paths import SCRIPTS
from support.python_code import script_with

FULL = "No space left on device; the disk is full: free some space there, then start again"


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of 2 MB; torch keeps a file open when it fails."""
    with tempfile.TemporaryDirectory() as folder:
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True).returncode:
            pytest.skip("only root may mount")
        yield Path(folder)
        subprocess.run(["umount", "-l", folder], check=True)


WRITERS: dict[str, Callable[[Path], object]] = {
    "torch": lambda path: torch.save(torch.rand(1_000_000), path),
    "torch, the older format": lambda path: torch.save(
        torch.rand(1_000_000), path, _use_new_zipfile_serialization=False
    ),
    "safetensors": lambda path: save_file({"a": torch.rand(1_000_000)}, path),
    "numpy": lambda path: np.ones(1_000_000).tofile(path),
    "python": lambda path: path.write_bytes(bytes(4_000_000)),
    "blamed on the input": lambda path: blame(path),
}


def blame(path: Path) -> None:
    try:
        WRITERS["torch"](path)
    except RuntimeError as error:
        fail(f"the builder refuses it: {error}", "change the options of this variant")


@pytest.mark.parametrize("publish", [publish_file, publish_directory])
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_full_disk_is_told_for_every_library_and_nothing_is_left(small_disk, write, publish):
    path = small_disk / "weights"
    with pytest.raises(OSError, match="No space left on device") as caught, publish(path) as partial:
        write(partial / "file" if partial.is_dir() else partial)
    assert describe_failure(caught.value, "script") == f"{path}: {FULL}"
    assert list(small_disk.iterdir()) == []


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_full_disk_is_told_where_nothing_is_published(small_disk, write):
    """As for the Trainer's checkpoints: what was written so far is still there."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 (each library has its own)
        write(small_disk / "weights")
    find = find_failure_behind if isinstance(caught.value, UserError) else find_failure
    try:
        found = find(caught.value, [small_disk / "a/b"])
        assert found is not None
        assert describe_failure(found, "script", [small_disk]).endswith(FULL)
    finally:
        (small_disk / "weights").unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (OSError(errno.EMFILE, "Too many open files", "a"), errno.EMFILE),
        (OSError(errno.EROFS, "Read-only file system", "a"), errno.EROFS),
        (OSError(errno.EIO, "Input/output error", "a"), errno.EIO),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "a"), errno.EDQUOT),
        (OSError(errno.EFBIG, "File too large", "a"), errno.EFBIG),
        (Exception("Disk quota exceeded (os error 122)"), errno.EDQUOT),
        (Exception("I/O error: Permission denied (os error 13)"), errno.EACCES),
        (RuntimeError("unable to open file: Too many open files (24)"), errno.EMFILE),
        (RuntimeError("DefaultCPUAllocator: ... Error code 12 (Cannot allocate memory)"), errno.ENOMEM),
        (RuntimeError("MemoryError"), errno.ENOMEM),
        (RuntimeError("OpenBLAS error: Memory allocation still failed after 10 retries, giving up."), errno.ENOMEM),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598"), errno.ENOSPC),
        (FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/a']"), errno.EACCES),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a"), None),
        (KeyError("os error 280"), None),
    ],
    ids=str,
)
def test_what_the_machine_refuses_is_known_by_number_and_by_text(error, number):
    found = find_failure(error, [Path()])
    assert (found and found.errno) == number
    if found:
        line = describe_failure(found, "script")
        assert os.strerror(number) in line
        assert "; " in line


def test_a_fault_of_ours_is_not_blamed_on_a_disk_that_happens_to_be_full(small_disk):
    filler = small_disk / "filler"
    filler.write_bytes(bytes(1 << 20))
    (small_disk / "more").write_bytes(bytes((1 << 20) - 4096))
    assert is_full(small_disk / "folder/that/is/not/there")
    assert find_failure(KeyError("key"), [small_disk]) is None
    assert find_failure_behind(UserError("rows.json:3: not JSON"), [small_disk]) is None
    assert find_failure(RuntimeError("pos"), [small_disk]).errno == errno.ENOSPC
    (small_disk / "more").unlink()
    (small_disk / "filler").unlink()
    assert find_failure(RuntimeError("pos"), [small_disk]) is None


def test_what_a_script_blames_on_its_input_is_told_as_what_it_is():
    done = script_with(
        "def main(args):\n"
        "    try: raise Exception('No space left on device (os error 28)')\n"
        "    except Exception as error: fail(f'the builder refuses it: {error}', 'change the options of this variant')"
    )
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, f"error: -c: {FULL}")


def test_a_log_on_a_full_disk_does_not_swallow_the_error():
    done = script_with("def main(args):\n    report_progress('begun'); raise KeyError('x')", "--log", "/dev/full")
    assert (done.returncode, done.stderr) == (1, f"begun\nerror: -c: {FULL}\n")
    done = script_with("def main(args):\n    raise KeyError('x')", "--log", "/dev/full")
    assert (done.returncode, done.stderr) == (1, "error: -c: unexpected KeyError: 'x'; see /dev/full\n")


def test_output_that_was_not_wholly_written_is_no_success():
    code = f"import sys; sys.path.insert(0, {str(SCRIPTS)!r})\nfrom lib.core.cli import *\n"
    code += "run(build_parser('x'), lambda args: sys.stdout.write('label'))"  # which stays in the buffer
    buffered = {**os.environ, "PYTHONUNBUFFERED": ""}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, env=buffered
        )
    assert (done.returncode, done.stderr) == (1, f"error: standard output: {FULL}\n")


def test_without_a_temporary_folder_one_is_asked_for(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc/none"])
    monkeypatch.setenv("TMPDIR", "/proc/none")
    with pytest.raises(FileNotFoundError) as caught, tempfile.TemporaryDirectory():
        pass
    assert failures.find_temporary_folder() == Path("/proc/none")
    assert describe_failure(find_failure(caught.value), "script") == (
        "/proc/none: Permission denied; mend the permissions, then start again"
    )


# On the disk before it counts


@pytest.fixture
def order(monkeypatch) -> list[tuple[str, str]]:
    """Every fsync and rename of this process, with the name that it is about."""
    calls: list[tuple[str, str]] = []
    real_sync, real_replace = os.fsync, os.replace

    def sync(descriptor: int) -> None:
        calls.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}")))
        real_sync(descriptor)

    def replace(source: Path, target: Path) -> None:
        calls.append(("rename", str(source)))
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    return calls


def test_a_published_file_is_on_the_disk_before_its_name_is(tmp_path, order):
    write_json(tmp_path / "a.json", {})
    partial = f"{tmp_path}/a.json.partial.{os.getpid()}"
    assert order == [("sync", partial), ("rename", partial), ("sync", str(tmp_path))]


def test_a_published_folder_is_on_the_disk_before_its_name_is(tmp_path, order):
    """Each file and each folder that names it, then the rename, then the folder that names the whole."""
    with publish_directory(tmp_path / "model") as partial:
        (partial / "onnx").mkdir()
        for name in ("config.json", "onnx/weights"):
            (partial / name).write_text("bytes")
    inside = [str(partial / name) for name in ("config.json", "onnx/weights", "onnx")] + [str(partial)]
    assert sorted(order[:4]) == sorted(("sync", path) for path in inside)
    assert order[4:] == [("rename", str(partial)), ("sync", str(tmp_path))]


def test_progress_is_on_the_disk_before_it_counts_as_whole(tmp_path, order):
    (tmp_path / "optimizer.pt").write_text("bytes")
    write_checksums(tmp_path)
    names = [(call, Path(path).name.partition(".partial")[0]) for call, path in order]
    assert names.index(("sync", "optimizer.pt")) < names.index(("rename", "complete.json"))
    assert names[-1] == ("sync", tmp_path.name)
