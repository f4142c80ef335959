"""Foreign code-like data in a process of its own, with limits of time and memory.

A chat template, a tokenizer, a regular expression or a model's configuration computes whatever its maker wrote, so it
can run without end, eat the machine, or take the interpreter down. What others made is therefore handled by a child
first: `run_limited` calls a function there and brings back its result, or says in one line what became of it.

The child is a fresh interpreter: a fork of a process with threads may hang, and libraries that the parent has loaded
count towards no limit. It imports the function's module alone, so that module should be lean. Arguments and results
are JSON: nothing that comes back can be more than plain data. Memory is limited on Linux, time everywhere.
"""

import hashlib
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from lib.cli import UserError, die_with_parent, fail, first_line

_START_SECONDS = 600  # to load libraries, which may lie on a slow disk; counted apart from the function's own time
_LONGEST_REPLY = 64 << 20  # characters of a result
_KEPT_REPLIES = 64
_LONGEST_KEPT = 1 << 20
# The libraries of the child compute on one thread: each more costs memory, and limits must mean the same everywhere.
_ONE_THREAD = {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
# No PYTHONPATH: a folder's name may hold the sign that separates its entries. With -P nothing comes from the working
# folder.
_BOOTSTRAP = "import json, sys; sys.path[:] = json.loads(sys.stdin.readline()); import lib.core.limits as l; l.serve()"


class Limits(NamedTuple):
    """What a child may use: seconds of wall-clock time, and megabytes beside those that its libraries take."""

    seconds: float
    megabytes: int


class FaultError(Exception):
    """What is wrong with the data that a child handled: the end of the sentence that `what` of `run_limited` begins."""


_replies: dict[str, str] = {}


def run_limited(
    function: Callable[..., Any],
    *arguments: Any,
    limits: Limits,
    what: str,
    hint: str = "",
    at: str | Path | None = None,
) -> Any:
    """Return `function(*arguments)`, called in a child process within `limits`.

    function: one of a module's top level, whose result follows from its arguments alone; a path among them needs the
    hash of its content beside it. The same call with the same limits is made once in a process.
    arguments: JSON values; so is the result. what, hint, at: the words of the message.

    Raises `UserError` where the function raises anything, crashes, or needs more: its own `UserError` as it is, of a
    `FaultError` the message behind `what`.
    """
    call = json.dumps([function.__module__, function.__qualname__, arguments])
    key = hashlib.sha256(f"{limits} {call}".encode()).hexdigest()
    if (reply := _replies.get(key)) is None:
        try:
            reply = _call_child(call, limits)
        except FaultError as fault:
            fail(f"{what} {fault}", hint, at=at)
        if len(reply) <= _LONGEST_KEPT:
            if len(_replies) == _KEPT_REPLIES:
                _replies.pop(next(iter(_replies)))
            _replies[key] = reply
    return json.loads(reply)


def limit_memory(megabytes: int) -> None:
    """Let this process take so much more memory than it has now, where the system knows such a limit (Linux).

    RLIMIT_DATA counts what a process may write to, not the address space that libraries reserve and never use.
    """
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        used = next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmData:"))
        most = used + (megabytes << 20)
        _, allowed = resource.getrlimit(resource.RLIMIT_DATA)
        if allowed == resource.RLIM_INFINITY or most < allowed:
            resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def describe_signal(number: int) -> str:
    """Return the name of a signal, also of one that Python has no name for."""
    with suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"


def _call_child(call: str, limits: Limits) -> str:
    """Return the reply of a child as JSON. Raises the `UserError` of its function, or `FaultError`."""
    path = [os.path.abspath(entry) for entry in sys.path if entry]
    request = "\n".join([json.dumps(path), json.dumps([os.getpid(), *limits]), call])
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _BOOTSTRAP],
            input=request,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # what a crash prints there is no help: the line says what happened
            env={**os.environ, **_ONE_THREAD, "HF_HUB_OFFLINE": "1"},
            encoding="utf-8",
            timeout=_START_SECONDS + limits.seconds,  # should the child's own alarm not reach it
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise FaultError(f"needs more than {limits.seconds:g} s") from None
    if done.returncode == -signal.SIGALRM:
        raise FaultError(f"needs more than {limits.seconds:g} s")
    if done.returncode < 0:
        name = describe_signal(-done.returncode)
        raise FaultError(f"crashes ({name}), or needs more than {limits.megabytes} MB of memory")
    if done.returncode:
        raise RuntimeError(f"the child process for {call[:100]} ended with {done.returncode}")
    kind, _, reply = done.stdout.partition(" ")
    if kind == "error":
        raise UserError(json.loads(reply))
    if kind == "fault":
        raise FaultError(json.loads(reply))
    return reply


def serve() -> NoReturn:
    """Be the child: carry out the one request that stands on standard input, write the reply, and exit."""
    die_with_parent()
    # Libraries print to standard output, which is the parent's.
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    parent, seconds, megabytes = json.loads(sys.stdin.readline())
    module, name, arguments = json.loads(sys.stdin.read())
    function = getattr(importlib.import_module(module), name)
    if os.getppid() != parent:  # it died before the kernel was asked to tell
        os._exit(1)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process also within native code, and when it is an orphan
    signal.setitimer(signal.ITIMER_REAL, seconds)
    limit_memory(megabytes)
    kind, reply = _reply(function, arguments, megabytes)
    output.write(f"{kind} {reply}")
    output.flush()
    os._exit(0)


def _reply(function: Callable[..., Any], arguments: Sequence[Any], megabytes: int) -> tuple[str, str]:
    """Return what to answer: `result`, `error` (a `UserError`) or `fault`, and its JSON."""
    try:
        text = json.dumps(function(*arguments))
        if len(text) > _LONGEST_REPLY:
            return "fault", json.dumps(f"makes more than {_LONGEST_REPLY >> 20} MB of text")
        return "result", text
    except UserError as error:
        return "error", json.dumps(str(error))
    except FaultError as fault:
        return "fault", json.dumps(str(fault))
    except MemoryError:
        return "fault", json.dumps(f"needs more than {megabytes} MB of memory")
    except BaseException as error:  # pyo3's PanicException is no Exception
        return "fault", json.dumps(f"fails: {type(error).__name__}: {first_line(error)}")
