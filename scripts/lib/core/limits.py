"""Foreign code-like data in a process of its own, with limits of time and memory.

A chat template, a tokenizer, a regular expression or a model's configuration computes whatever its maker wrote, so it
can run without end, eat the machine, or take the interpreter down. What others made is therefore handled by a child
first: `run_limited` calls a function there and brings back its result, or says in one line what became of it.

A fork of this process could hang, since it has threads. So a fresh interpreter, the server, imports the function's
module, which should be lean, and nothing else; it has one thread and forks the child of each call. Arguments and
results are JSON: nothing that comes back can be more than plain data. Memory is limited on Linux, time everywhere.
"""

import hashlib
import importlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from lib.core.cli import UserError, die_with_parent, extract_first_line, fail

_IDLE_SECONDS = 20  # a server without work ends: its libraries take memory that the work here needs
_LONGEST_REPLY = 64 << 20  # characters of a result
_KEPT_REPLIES = 64
_LONGEST_KEPT = 1 << 20
# On macOS a fork may crash once libraries are loaded: there a server makes one call itself and ends.
_SERVES_ONCE = sys.platform != "linux"
# Libraries compute on one thread: a fork has no other, and limits mean the same on every machine.
_ONE_THREAD = dict.fromkeys(("RAYON_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
_ENVIRONMENT = {**_ONE_THREAD, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
# No PYTHONPATH: a folder's name may hold the sign that separates its entries. With -P nothing comes from the working
# folder.
_BOOTSTRAP = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); import lib.core.limits as l; l.serve()"


class Limits(NamedTuple):
    """What a child may use: seconds of wall-clock time, and megabytes beside those that its libraries take."""

    seconds: float
    megabytes: int


class FaultError(Exception):
    """What is wrong with the data that a child handled: the end of the sentence that `what` of `run_limited` begins."""


_replies: dict[str, str] = {}
# By the process that started them, whose forks must not speak to them, and the module that each has imported.
_servers: dict[tuple[int, str], subprocess.Popen[bytes]] = {}


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
            reply = _call_child(function.__module__, call, limits)
        except FaultError as fault:
            fail(f"{what} {fault}", hint, at=at)
        if len(reply) <= _LONGEST_KEPT:
            if len(_replies) == _KEPT_REPLIES:
                _replies.pop(next(iter(_replies)))
            _replies[key] = reply
    return json.loads(reply)


def limit_memory(megabytes: int) -> None:
    """Let this process take so much more memory than it has now, for good, where the system knows such a limit (Linux).

    What asks for more gets a `MemoryError`. RLIMIT_DATA counts what a process may write to, not the address space that
    libraries reserve and never use.
    """
    if sys.platform == "linux":
        most = _most_memory(megabytes)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))


@contextmanager
def limit_memory_within(megabytes: int) -> Iterator[None]:
    """Limit the memory of this process, as `limit_memory` does, until the block ends."""
    if sys.platform != "linux":
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (_most_memory(megabytes), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _most_memory(megabytes: int) -> int:
    """Return how many bytes this process has with so many megabytes more, but no more than are allowed now."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    used = next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmData:"))
    soft, _ = resource.getrlimit(resource.RLIMIT_DATA)
    most = used + (megabytes << 20)
    return most if soft == resource.RLIM_INFINITY else min(most, soft)


def describe_signal(number: int) -> str:
    """Return the name of a signal, also of one that Python has no name for."""
    with suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"


def _call_child(module: str, call: str, limits: Limits) -> str:
    """Return the result of a call as JSON. Raises the `UserError` of its function, or `FaultError`."""
    status, answer = _ask_server(module, json.dumps(limits) + "\t" + call)
    if status == -signal.SIGALRM:
        raise FaultError(f"needs more than {limits.seconds:g} s")
    if status < 0:
        raise FaultError(f"crashes ({describe_signal(-status)}), or needs more than {limits.megabytes} MB of memory")
    if status:
        raise RuntimeError(f"the child process for {call[:100]} ended with {status}")
    kind, _, reply = answer.partition(" ")
    if kind == "error":
        raise UserError(json.loads(reply))
    if kind == "fault":
        raise FaultError(json.loads(reply))
    return reply


def _ask_server(module: str, request: str) -> tuple[int, str]:
    """Return the exit status of the child that a server forked for a request (-signal if killed), and its answer."""
    key = os.getpid(), module
    server = _servers.pop(key, None)
    if server and (reply := _exchange(server, request)):
        _servers[key] = server
        return reply
    if server is None or server.wait() == 0:  # it was idle, and ended as the request came
        server = _start_server(module)
        if reply := _exchange(server, request):
            if not _SERVES_ONCE:
                _servers[key] = server
            return reply
    status = server.wait()
    return (status, "") if status < 0 else (1, "")


def _exchange(server: "subprocess.Popen[bytes]", request: str) -> tuple[int, str] | None:
    """Send a request and return what `_ask_server` does, or None where the server has ended without an answer."""
    assert server.stdin
    assert server.stdout
    try:
        server.stdin.write(request.encode("ascii") + b"\n")
        server.stdin.flush()
        if _SERVES_ONCE:
            answer = server.stdout.read()
            return server.wait(), answer.decode("ascii", "replace")
        head = server.stdout.readline().split()
        if len(head) < 2:
            return None
        status, size = map(int, head)
        return status, server.stdout.read(size).decode("ascii", "replace")
    except BrokenPipeError:
        return None
    except BaseException:  # such as Ctrl-C: what comes next on the pipe answers no later request
        server.kill()
        server.wait()
        raise


def _start_server(module: str) -> "subprocess.Popen[bytes]":
    path = [os.path.abspath(entry) for entry in sys.path if entry]
    arguments = [json.dumps(path), str(os.getpid()), module, *(["once"] if _SERVES_ONCE else [])]
    return subprocess.Popen(
        [sys.executable, "-P", "-c", _BOOTSTRAP, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # what a crash prints there is no help: the line says what happened
        env={**os.environ, **_ENVIRONMENT},
    )


def serve() -> NoReturn:
    """Be the server: import a module, and for each request on standard input fork a child that carries it out."""
    die_with_parent()
    output = os.dup(1)
    os.dup2(2, 1)  # libraries print there
    module = importlib.import_module(sys.argv[3])
    if os.getppid() != int(sys.argv[2]):  # the parent died before the kernel was asked to tell
        os._exit(1)
    while select.select([sys.stdin], [], [], _IDLE_SECONDS)[0] and (request := sys.stdin.buffer.readline()):
        if sys.argv[4:]:
            _carry_out(module, request, output, parent=int(sys.argv[2]))
        reading, writing = os.pipe()
        server = os.getpid()
        child = os.fork()
        if child == 0:
            _carry_out(module, request, writing, parent=server)
        os.close(writing)
        with open(reading, "rb") as pipe:
            answer = pipe.read()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        _write(output, f"{status} {len(answer)}\n".encode() + answer)
    os._exit(0)


def _carry_out(module: Any, request: bytes, output: int, parent: int) -> NoReturn:
    """Be the child: call the function within the limits, write what it gives, and exit."""
    die_with_parent()
    if os.getppid() != parent:
        os._exit(1)
    limits, call = request.split(b"\t", 1)
    seconds, megabytes = json.loads(limits)
    _, name, arguments = json.loads(call)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process also within native code
    signal.setitimer(signal.ITIMER_REAL, seconds)
    limit_memory(megabytes)
    kind, reply = _reply(getattr(module, name), arguments, megabytes)
    _write(output, f"{kind} {reply}".encode("ascii"))
    os._exit(0)


def _write(output: int, text: bytes) -> None:
    view = memoryview(text)
    while view:
        view = view[os.write(output, view) :]


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
        return "fault", json.dumps(f"fails: {type(error).__name__}: {extract_first_line(error)}")
