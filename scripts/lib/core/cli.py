"""How every script starts, speaks and fails.

A script is `def main(args)` plus `run(parser, main)`: errors a person can mend are `UserError` and
end as one line on stderr and in the log, exit code 1, no traceback. Anything else that goes wrong
is a fault of ours: its traceback goes to the log, one line to the terminal.
"""

import argparse
import ctypes
import gc
import json
import logging
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from lib.core.changed_inputs import describe_changed_input
from lib.core.escaping import escape_controls, hide_secrets
from lib.core.failures import describe_failure, find_failure, find_failure_behind, find_temporary_folder

# Libraries load a million objects that all stay. Looking for garbage among them after every 700 new ones, as Python
# does, takes a tenth to a sixth of the start-up of a script with PyTorch. Most garbage needs no looking: it goes when
# nothing refers to it any more.
gc.set_threshold(100_000, 20, 20)

# Libraries report to their makers unless told otherwise: ONNX Runtime and ONNX Runtime GenAI on Linux since 1.29 (its
# Privacy.md), the hub's clients, DVC, MLflow. They read these variables when they are imported, and every script, the
# Snakefile and the benchmarks import this module first. Azure's clients take an argument instead (enable_telemetry).
NO_TELEMETRY = (
    *("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY", "DVC_NO_ANALYTICS", "DO_NOT_TRACK"),
    "MLFLOW_DISABLE_TELEMETRY",
)
os.environ.update(dict.fromkeys(NO_TELEMETRY, "1"))

_PR_SET_PDEATHSIG = 1  # prctl(2)
_LONGEST_LINE = 500  # characters of an error: more fills a terminal and is not read
_LONGEST_HINT = 200

# Its import, which comes with the Trainer's, says on some processors that it lacks a kernel which nothing here calls.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


class UserError(Exception):
    """Input or configuration is wrong; the message says what, where and what to do."""


class Stopped(Exception):  # noqa: N818 (no error)
    """The time is up; progress is saved, and the next start goes on from there. The message says where it stands."""


def fail(what: str, hint: str = "", *, at: str | Path | None = None, line: int | None = None) -> NoReturn:
    """Raise `UserError` in the one form that people see: `FILE:LINE: what is wrong; what to do`."""
    place = "" if at is None else f"{at}: " if line is None else f"{at}:{line}: "
    raise UserError(f"{place}{what}" + (f"; {hint}" if hint else ""))


@contextmanager
def tell_by_name(path: Path, name: str | Path) -> Iterator[None]:
    """Name a file in errors as people know it, not by the path where a copy of it was read."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace(str(path), str(name))) from None


@contextmanager
def explain_errors(what: str, hint: str, *, at: str | Path | None = None) -> Iterator[None]:
    """Turn whatever libraries raise into `UserError`, for code that runs what somebody else made.

    What is a `UserError` already passes, and so does the lack of memory.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        kind = "" if type(error) is RuntimeError else f"{type(error).__name__}: "
        fail(f"{what}: {kind}{extract_first_line(error)}", hint, at=at)


def format_error(error: object) -> str:
    """Return `error: …`, one line of at most 500 characters; of a longer one the middle goes, not place and hint.

    Control characters, which a name or a label may bring, are written out: no error acts on the terminal. Secrets in
    addresses are left out: an error is copied into tickets.
    """
    line = hide_secrets(escape_controls(" ".join(f"error: {error}".splitlines())))
    if len(line) <= _LONGEST_LINE:
        return line
    hint = line[-_LONGEST_HINT:].partition(" ")[2]  # begins with a whole word
    return f"{line[: _LONGEST_LINE - len(hint) - 3]} … {hint}"


def call_or_exit(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call `function`; a `UserError` or a failure of the machine ends the program with its line (for the Snakefile)."""
    try:
        return function(*args, **options)
    except UserError as error:
        sys.exit(format_error(error))
    except OSError as error:
        if (failure := find_failure(error)) is None:
            raise
        sys.exit(format_error(describe_failure(failure, "the machine", [Path()])))


def build_parser(description: str | None) -> argparse.ArgumentParser:
    """Return an argument parser with what every script takes: `--log`."""
    result = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--log", type=Path, help="write everything that libraries print to this file")
    return result


def parse_settings(text: str) -> dict[str, Any]:
    """Parse `--settings`: a JSON object, or `@FILE` that holds one.

    Raises `argparse.ArgumentTypeError` when it is neither.
    """
    try:
        value = json.loads(Path(text[1:]).read_text(encoding="utf-8") if text.startswith("@") else text)
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("must be a JSON object")
    return value


def extract_first_line(error: BaseException) -> str:
    """Return what an error of a library says, cut to one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


_terminal = sys.stderr


def report_progress(message: str) -> None:
    """Print a line for the person who waits, on the terminal and in the log; of several processes the first speaks."""
    if os.environ.get("RANK", "0") == "0":
        _say(message)


def _say(message: str) -> None:
    message = escape_controls(message)
    print(message, file=_terminal, flush=True)
    if _terminal is not sys.stderr:
        print(message, file=sys.stderr, flush=True)


def _say_last(message: str) -> None:
    """Say it where that is still possible: the log may lie on the disk that is full."""
    with suppress(OSError):
        _say(format_error(message))


_loaded_at = 0.0
_reserve = [bytes(4_000_000)]  # given back when memory runs out, so that the line which says so can be written


def report_loaded() -> None:
    """Say that libraries, model and inputs are there: what follows is work, not start-up.

    A script that never says so is loaded when `main` begins.
    """
    global _loaded_at
    _loaded_at = _even_clock()


def run(arguments: argparse.ArgumentParser, main: Callable[[argparse.Namespace], None]) -> NoReturn:
    """Parse the command line, call `main`, and exit as the contract says (0, 1 or 75).

    The last line of the log of a run that went well is `time: started S start_up S work S`, in seconds:
    when the process began (Unix time), from there until `report_loaded`, and from there to the end.
    """
    die_with_parent()
    args = arguments.parse_args()
    if args.log:
        _redirect_output(args.log)
    name = Path(sys.argv[0]).stem
    report_loaded()
    try:
        main(args)
        if args.log and os.environ.get("RANK", "0") == "0":
            _log_times()
    except UserError as error:
        failure = find_failure_behind(error, list_written_paths(args))
        _log_traceback(failure)
        _say_last(describe_failure(failure, name, list_written_paths(args)) if failure else str(error))
        _exit(1)
    except Stopped as stopped:
        with suppress(OSError):
            report_progress(f"{name}: {stopped}; start again to go on")
        _exit(75)
    except KeyboardInterrupt:
        _say_last(f"{name}: interrupted")
        _exit(130)
    except MemoryError as error:
        _reserve.clear()
        with suppress(MemoryError):
            _log_traceback(error)
        _say_last(f"{name}: out of memory ({error}); use a smaller batch or a machine with more memory")
        _exit(1)
    except SystemExit:
        raise
    except BaseException as error:  # a panic of a library in Rust is no Exception
        if isinstance(error, BrokenPipeError) and _is_reader_gone():
            _exit(141)
        failure = find_failure(error, list_written_paths(args))
        _log_traceback(error)
        _say_last(
            describe_failure(failure, name, list_written_paths(args))
            if failure
            else describe_changed_input(args) or _describe_unexpected(name, error, args.log)
        )
        _exit(1)
    _exit(0)


def list_written_paths(args: argparse.Namespace) -> list[Path]:
    """Return where a script writes beside what `lib.core.files` publishes, which tells of its folder itself."""
    places = [vars(args).get(name) for name in ("work", "output", "log")]
    return [*(place for place in places if isinstance(place, Path)), find_temporary_folder()]


def _log_times() -> None:
    sys.stdout.flush()
    seconds, work = _process_age(), _even_clock() - _loaded_at
    line = f"time: started {time.time() - seconds:.2f} start_up {max(0.0, seconds - work):.2f} work {work:.2f}"
    print(line, file=sys.stderr, flush=True)


def _even_clock() -> float:
    """Return the seconds of a clock that nobody sets; on Linux it goes on while the machine sleeps."""
    if sys.platform == "linux":
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


_imported_at = _even_clock()  # where the system does not tell when a process began, that is as early as can be known


def _process_age() -> float:
    """Return the seconds since this process began: on Linux to the kernel's tick (10 ms), else since this import."""
    if sys.platform != "linux":
        return _even_clock() - _imported_at
    # The 22nd field, counted behind the program's name, which may hold spaces (proc(5)).
    ticks = int(Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
    return _even_clock() - ticks / os.sysconf("SC_CLK_TCK")


def _describe_unexpected(name: str, error: BaseException, log: Path | None) -> str:
    summary = str(error).strip().splitlines() or [""]
    return f"{name}: unexpected {type(error).__name__}: {summary[0][:300]}" + (f"; see {log}" if log else "")


def _log_traceback(error: BaseException | None) -> None:
    if error is not None:
        with suppress(OSError):
            for line in traceback.format_exc().splitlines():  # to the terminal where a person gave no --log
                print(escape_controls(line), file=sys.stderr)


def _is_reader_gone() -> bool:
    """Return whether nobody reads standard output any more: `| head` has seen enough."""
    poll = select.poll()
    poll.register(1, 0)  # errors are told unasked
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _exit(code: int) -> NoReturn:
    # Threads of native libraries (tokenizers, ONNX Runtime) sometimes abort in the interpreter's own
    # exit, after all work is published; so leave without it.
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:  # who read it has gone
        code = code or 141
    except OSError as error:
        if code == 0:  # what was printed is not all there
            _say_last(describe_failure(find_failure(error) or error, "standard output"))
            code = 1
    os._exit(code)


def _redirect_output(log: Path) -> None:
    """Send file descriptors 1 and 2 to `log` and keep the terminal for `report_progress`."""
    global _terminal
    log.parent.mkdir(parents=True, exist_ok=True)
    _terminal = os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8", errors="replace")
    # Of several processes none empties what the others wrote: who started them did.
    how = os.O_APPEND if "RANK" in os.environ else os.O_TRUNC
    target = os.open(log, os.O_WRONLY | os.O_CREAT | how, 0o644)
    os.dup2(target, 1)
    os.dup2(target, 2)
    os.close(target)


def die_with_parent() -> None:
    """Ask the kernel to end this process when Snakemake dies, so that no orphan holds locks."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
