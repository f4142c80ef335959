"""Run a rule's script in a fork of a process that has loaded the libraries: the same `main`, seconds of start-up less.

The child is a process of its own, with its own arguments, folder, environment, limits and output; it imports the
modules of the workspace that it runs in. What a test lets happen to it (`prepare`) is done in the child alone.
"""

import os
import resource
import runpy
import shlex
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import NamedTuple, NoReturn

AT_MOST = 90  # seconds for one script on a tiny workspace; more is a hang
TESTS = Path(__file__).resolve().parents[1]
LIBRARIES = (
    "numpy", "torch", "transformers", "transformers.trainer", "transformers.models.llama.modeling_llama", "peft",
    "tokenizers", "safetensors.torch", "accelerate", "onnxruntime", "onnxruntime_genai", "sklearn.linear_model",
    "sklearn.feature_extraction.text", "scipy.stats", "sacrebleu", "datasets", "pyarrow.parquet", "pydantic", "jinja2",
    "gguf", "transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto", "yaml",
)  # fmt: skip


class Ended(NamedTuple):
    """How a process ended. code: exit code, or the negative number of a signal. said: what it showed."""

    code: int
    said: str
    seconds: float
    hung: bool = False


class Running(NamedTuple):
    pid: int
    said: Path
    began: float


def load_libraries() -> None:
    """Import what the rules' scripts import, so that forks have it."""
    for name in LIBRARIES:
        import_module(name)


def arguments_of(command: str) -> list[str]:
    """Return the words of a rule's command from its script on: what stands before it sets up, and is done here."""
    words = shlex.split(command)
    return words[words.index("python") + 1 :]


def start(
    step: Sequence[str] | Callable[[], object],
    folder: Path,
    environment: Mapping[str, str],
    prepare: Callable[[], object] | None = None,
) -> Running:
    """Start a script, given by its words, or a function in `folder`."""
    handle, said = tempfile.mkstemp(prefix="said-")
    sys.stdout.flush()
    sys.stderr.flush()
    if pid := os.fork():
        os.close(handle)
        return Running(pid, Path(said), time.monotonic())
    try:
        words = [str(TESTS.parent / "scripts/call.py")] if callable(step) else step
        _leave(_end_of(step, words, folder, environment, handle, prepare))
    finally:  # nothing may go on with the work of the process that was forked
        os._exit(1)


def _end_of(
    step: Sequence[str] | Callable[[], object],
    words: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    output: int,
    prepare: Callable[[], object] | None,
) -> BaseException | None:
    """Run the script or function, and return what it raised."""
    try:
        _become(words, folder, environment, output)
        if prepare:
            prepare()
        step() if callable(step) else runpy.run_path(words[0], run_name="__main__")
    except BaseException as error:
        return error
    return None


def wait(running: Running, seconds: float = AT_MOST) -> Ended:
    """Wait for the end; kill it, and all that it started, when it does not come."""
    hung, deadline = False, running.began + seconds
    while True:
        pid, status = os.waitpid(running.pid, os.WNOHANG)
        if pid:
            break
        if time.monotonic() > deadline and not hung:
            hung = True
            kill_group(running.pid)
        time.sleep(0.005)
    kill_group(running.pid)
    said = running.said.read_text(encoding="utf-8", errors="replace")
    running.said.unlink()
    return Ended(os.waitstatus_to_exitcode(status), said, time.monotonic() - running.began, hung)


def run(
    step: Sequence[str] | Callable[[], object],
    folder: Path,
    environment: Mapping[str, str],
    prepare: Callable[[], object] | None = None,
    seconds: float = AT_MOST,
) -> Ended:
    return wait(start(step, folder, environment, prepare), seconds)


def kill_group(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def limit_memory(megabytes: float) -> None:
    """Let this process take so much more memory than it has."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    data = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmData"))
    most = data * 1024 + int(megabytes * 1e6)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def _become(words: Sequence[str], folder: Path, environment: Mapping[str, str], output: int) -> None:
    """Make this fork a process as Python starts one for a script."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    # Those of a test runner would keep what is written to them.
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False, buffering=1)
    os.chdir(folder)
    os.environ.update(environment)
    tempfile.tempdir = None
    if torch := sys.modules.get("torch"):
        # The first caller after a fork replaces PyTorch's thread pool, without a lock: threads that load weights would
        # race for it and find none ("Invalid thread pool!", caffe2/utils/threadpool/pthreadpool-cpp.cc).
        torch.set_num_threads(torch.get_num_threads())
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    own = {"lib", "faults", "support"}
    for name in [name for name in sys.modules if name.partition(".")[0] in own]:
        del sys.modules[name]
    project = str(TESTS.parent)
    sys.path[:] = [str(Path(words[0]).parent), *(path for path in sys.path if not _is_ours(path, project))]
    sys.argv[:] = list(words)


def _is_ours(path: str, project: str) -> bool:
    return path in ("", project, f"{project}/tests", f"{project}/scripts", f"{project}/tests/faults")


def _leave(error: BaseException | None) -> NoReturn:
    code = 0
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if isinstance(error, KeyboardInterrupt):  # as Python ends
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    elif error is not None:
        code = 1
        traceback.print_exception(error)
    with suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
