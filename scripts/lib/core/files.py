"""Files that are either whole or absent, and canonical JSON."""

import errno
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from lib.core.cli import Stopped, UserError, fail
from lib.core.failures import NO_ROOM, find_failure, find_failure_behind

# What file systems say that cannot sync what they are asked to, network mounts above all, or folders that one may write
# to and not read.
_NO_SYNC = (errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.ENOSYS, errno.EACCES, errno.EPERM)
_CUT = "the file is cut or was edited: make it again"
SAFETENSORS_INDEX = "model.safetensors.index.json"  # which file holds which tensor, by transformers' name


# Made once: `json.dumps` makes an encoder in every call that asks for anything but its defaults.
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)
_LINE = json.JSONEncoder(ensure_ascii=False)


def dump_canonical_json(value: Any) -> str:
    """Return JSON that is equal exactly when the values are equal: sorted keys, no white space."""
    return _CANONICAL.encode(value)


def dump_jsonl_line(value: Any) -> str:
    """Return a value as a line of a JSON Lines file, with its end."""
    return _LINE.encode(value) + "\n"


def hash_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_once() -> Callable[[Path], str]:
    """Return what hashes files, and reads one with several names (hard links, links into DVC's cache) once."""
    known: dict[tuple[int, ...], str] = {}

    def hash_known(path: Path) -> str:
        facts = path.stat()
        key = (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns)
        if key not in known:
            known[key] = hash_file(path)
        return known[key]

    return hash_known


def hash_text(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


@contextmanager
def publish_file(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write a file to; rename it into place when all went well.

    Nothing half-written stays: on an error the partial file is removed. The bytes are on the disk before the name is,
    so a loss of power leaves the old file or the new one. Raises `OSError` with the name of `path` when an error came
    of a full disk, whatever library reported it in whatever way, and `UserError` when a folder lies there.
    """
    if path.is_dir() and not path.is_symlink():
        fail("a folder lies where this file is written", "move it away", at=path)
    partial = _partial(path)
    try:
        with explain_full_disk(path):
            yield partial
            sync(partial)
            os.replace(partial, path)
            sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def publish_directory(path: Path, mode: int = 0o644) -> Iterator[Path]:
    """Yield an empty directory beside `path`; rename it to `path` when all went well.

    mode: of the files, since libraries save weights as 0600, which another user or container cannot read. Read-only
    files stay so: they are links to the base model, which several results folders share. All are on the disk before the
    directory has its name. Raises `OSError` as `publish_file` does.
    """
    partial = _partial(path)
    partial.mkdir()
    try:
        with explain_full_disk(path):
            yield partial
            for file in partial.rglob("*"):
                if file.is_file() and file.stat().st_mode & 0o777 != 0o444:
                    file.chmod(mode)
            sync(partial)
            # An old manifest does not describe what comes now.
            _remove(path.with_name(f"{path.name}.manifest.json"))
            _remove(path)
            os.replace(partial, path)
            sync_folder(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def explain_full_disk(path: Path) -> Iterator[None]:
    """Raise `OSError` with the name of `path` for an error that came of a full disk, in whatever form."""
    try:
        yield
    except Exception as error:  # every library has its own
        find = find_failure_behind if isinstance(error, (UserError, Stopped)) else find_failure
        found = find(error, [path.parent])  # now: what was written so far is about to be removed
        if found is None or found.errno not in NO_ROOM or (found is error and found.filename):
            raise
        raise OSError(found.errno, os.strerror(found.errno), str(path)) from error


def sync(path: Path) -> None:
    """Wait until a file, or a folder with all that is in it, is on the disk."""
    for place, _, names in os.walk(path):
        for name in names:
            _sync_file(Path(place) / name)
        sync_folder(Path(place))
    _sync_file(path)


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    _sync(path)


def _sync_file(path: Path) -> None:
    if path.is_file() and not path.is_symlink():
        _sync(path)


def _sync(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def _partial(path: Path) -> Path:
    """Return where `path` is written first; what a killed process left there is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f"{glob.escape(path.name)}.partial.*"):
        _remove(left)
    return path.with_name(f"{path.name}.partial.{os.getpid()}")


def _remove(path: Path) -> None:
    """Remove a file, a folder with all that is in it, or a link and not what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def is_lfs_pointer(path: Path) -> bool:
    """Return whether a file holds only the address of its content, as a clone without Git LFS leaves it."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(40).startswith(b"version https://git-lfs.github.com/spec/")


def link_or_copy(source: Path, target: Path) -> None:
    """Make a hard link where the file system can: weights are large and nothing edits them in place."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as readable JSON with a stable order of keys, atomically."""
    with publish_file(path) as partial, open(partial, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, ensure_ascii=False)  # piece by piece: split.json names every row
        file.write("\n")


def read_json(path: Path, *, hint: str = "mend or remove the file", strict: bool = False) -> Any:
    """Read JSON. Raises `UserError` with file and line when it is missing, broken or, if `strict`, ambiguous.

    So does an object of it that is asked for a key which it lacks.
    """
    try:
        options: dict[str, Any] = {} if strict else {"object_hook": lambda values: _Stated(path, values)}
        value = parse_json(path.read_text(encoding="utf-8"), strict=strict, **options)
    except FileNotFoundError:
        fail("no such file", "check the path", at=path)
    except IsADirectoryError:
        fail("not a file", "check the path", at=path)
    except json.JSONDecodeError as error:
        fail(f"not JSON: {error.msg}", hint, at=path, line=error.lineno)
    except UnicodeDecodeError:
        fail("not UTF-8 text", hint, at=path)
    except ValueError as error:
        fail(f"not JSON: {error}", hint, at=path)
    return value if strict else _state(path, value)


class _AmbiguousError(ValueError):
    """JSON that other programs read in another way, or not at all."""


class _Stated(dict[str, Any]):
    """An object in a JSON file. Asked for a key that it lacks, it names the file: another file lies in its place."""

    __slots__ = ("at",)

    def __init__(self, at: Path, values: dict[str, Any]) -> None:
        super().__init__(values)
        self.at = at

    def __missing__(self, key: str) -> NoReturn:
        fail(f"it has no {key!r}, which such a file has", "remove it and run the workflow again", at=self.at)

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)  # for copies and other processes


class _StatedList(list[Any]):
    """A list that a JSON file holds. Asked for what only an object has, it names the file, as `_Stated` does."""

    def __init__(self, at: Path, values: list[Any]) -> None:
        super().__init__(values)
        self._at = at

    def __getitem__(self, place: Any) -> Any:
        return super().__getitem__(place) if not isinstance(place, str) else self._refuse_list()

    def __getattr__(self, name: str) -> Any:
        if name in ("get", "items", "keys", "values"):
            return self._refuse_list
        raise AttributeError(name)

    def _refuse_list(self, *_: Any) -> NoReturn:
        fail("it holds a list, not an object", "remove it and run the workflow again", at=self._at)

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)


def _state(path: Path, value: Any, line: int | None = None) -> Any:
    """Return what a JSON file holds so that it names the file where somebody takes it for another one."""
    if isinstance(value, dict):
        return value if isinstance(value, _Stated) else _Stated(path, value)
    if isinstance(value, list) and line is None:
        return _StatedList(path, value)
    what = "neither an object nor a list" if line is None else "no object"
    fail(f"it holds {what}: {str(value)[:40]!a}", "remove it and run the workflow again", at=path, line=line)


def parse_json(text: str, *, strict: bool = False, **options: Any) -> Any:
    """Return the value of a JSON text. Raises `ValueError`, also for what `json` reads and no later reader can bear.

    That is nesting without end, whole numbers of thousands of digits, and halves of surrogate pairs. NaN and Infinity
    are read: configurations of models have them, as Python writes them.

    strict: refuse them, and a key that occurs twice in an object, of which each parser takes the one that it likes.
    options: those of `json.loads`.
    """
    hooks: dict[str, Any] = {"object_pairs_hook": _make_object, "parse_constant": _refuse} if strict else {}
    try:
        value = json.loads(text, **hooks, **options)
        if "\\u" in text:  # only escapes can write half a pair
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError("text with half of a surrogate pair") from None
    except (json.JSONDecodeError, _AmbiguousError):
        raise
    except ValueError:
        raise ValueError("a number with too many digits") from None
    return value


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise _AmbiguousError(f"the key {key[:80]!a} is listed twice")
        result[key] = value
    return result


def _refuse(constant: str) -> Any:
    raise _AmbiguousError(f"{constant} is not a number")


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object a line, atomically; `rows` may be a generator."""
    with publish_file(path) as partial, open(partial, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(dump_jsonl_line(row))


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON Lines file. Raises `UserError` with the line of a broken one.

    A key that one lacks raises it, too, when it is asked for.
    """
    return (parse_jsonl_line(path, line, number) for number, line in read_lines(path))


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a file that this program wrote, with their numbers from 1. Raises `UserError` where one is
    no UTF-8 text.
    """
    try:
        file = open(path, encoding="utf-8")  # noqa: SIM115 (closed below; only the opening may raise)
    except FileNotFoundError:
        fail("no such file", "check the path", at=path)
    with file:
        number = 0
        try:
            for number, line in enumerate(file, start=1):
                yield number, line
        except UnicodeDecodeError:
            fail("not UTF-8 text", _CUT, at=path, line=number + 1)


def parse_jsonl_line(path: Path, line: str, number: int) -> dict[str, Any]:
    """Return the object of a line of a JSON Lines file. Raises `UserError` with the line when it holds none."""
    try:
        return _state(path, parse_json(line), number)
    except json.JSONDecodeError as error:
        fail(f"not JSON: {error.msg}", _CUT, at=path, line=number)
    except ValueError as error:
        fail(f"not JSON: {error}", _CUT, at=path, line=number)
