"""Nothing leaves the machine: a whole run and an answer, watched by the kernel in a network namespace of their own.

Every file that is opened for writing lies in the workspace, HOME stays empty, and no program tries to reach anything but
this machine. CI is unset, since ONNX Runtime reports nothing where it is set.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.paths import ROOT
from support.workspaces import Workspace, make_workspace

pytestmark = [
    pytest.mark.workflow,
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("strace") and shutil.which("unshare"))
        or subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode != 0,
        reason="needs strace, and unshare to make a network namespace",
    ),
]

# What writes nothing that stays: devices, the kernel's own files, memory that processes share.
HARMLESS = re.compile(r"/dev/(null|tty|pts/.*|shm/.*)|/proc/.*|/sys/.*|/memfd:.*|pipe:.*|socket:.*")
WRITTEN = re.compile(
    r'(?:openat|open|creat)\((?:AT_FDCWD(?:<(?P<cwd>[^>]*)>)?, |\d+<(?P<at>[^>]*)>, )?"(?P<path>[^"]*)", '
    r"(?:[^)]*O_(?:WRONLY|RDWR|CREAT)[^)]*|0[0-7]+)\)\s*=\s*\d+(?:<(?P<real>[^>]*)>)?"
)
ADDRESS = re.compile(r'sa_family=AF_INET6?,.*?(?:inet_addr\("([^"]+)"\)|"([0-9a-f:.]+)")')


def hide_slurm(folder: Path) -> None:
    """Where Slurm is installed, Snakemake's plugin asks its scontrol for the cluster, and that asks for the controller."""
    folder.mkdir(exist_ok=True)
    (folder / "scontrol").unlink(missing_ok=True)
    (folder / "scontrol").symlink_to(shutil.which("false"))


def watch(root: Path, *command: str, **more: str) -> tuple[subprocess.CompletedProcess, set[str], set[str]]:
    """Run a command without a network; returns files that were written elsewhere, and addresses that were asked for."""
    home, trace = root / "home", root / "trace.txt"
    for folder in (home, root / "tmp"):
        folder.mkdir(exist_ok=True)
    hide_slurm(root / "bin")
    kept = {name: os.environ[name] for name in ("LANG", "LD_LIBRARY_PATH") if name in os.environ}
    path = f"{root / 'bin'}:{os.environ['PATH']}"
    env = kept | more | {"PATH": path, "HOME": str(home), "TMPDIR": str(root / "tmp"), "PYTHONDONTWRITEBYTECODE": "1"}
    watched = ["strace", "-f", "-y", "--seccomp-bpf", "-e", "trace=open,openat,creat,connect,sendto,sendmsg"]
    done = subprocess.run(
        ["unshare", "-n", *watched, "-o", str(trace), *command], cwd=root, env=env, capture_output=True, text=True
    )
    lines = trace.read_text(errors="replace").splitlines()
    trace.unlink()
    written = {found["real"] or found["path"] for line in lines if (found := WRITTEN.search(line))}
    elsewhere = {path for path in written if not HARMLESS.fullmatch(path) and not path.startswith(str(root))}
    asked = {found[1] or found[2] for line in lines if (found := ADDRESS.search(line))}
    return done, elsewhere, {address for address in asked if not address.startswith("127.") and address != "::1"}


@pytest.fixture(scope="module")
def ran(tiny_llama, tmp_path_factory):
    """A workspace after its whole run, trackers told, and what was seen of that."""
    root = tmp_path_factory.mktemp("private") / "workspace"
    base = tmp_path_factory.mktemp("base") / "base"
    shutil.copytree(tiny_llama, base)
    workspace = make_workspace(root, base, tracking=["tensorboard", "mlflow"])
    snakemake = (sys.executable, "-m", "snakemake", "--cores", "2")
    return workspace, *watch(root, *snakemake)


def test_a_whole_run_writes_nothing_elsewhere_and_asks_nobody(ran):
    workspace, done, elsewhere, asked = ran
    assert done.returncode == 0, done.stderr[-3000:]
    assert elsewhere == set()
    assert asked == set()
    assert files_of(workspace) == []


def files_of(workspace: Workspace) -> list[str]:
    home = workspace.root / "home"
    return [path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()]


def test_neither_does_an_answer(ran):
    workspace = ran[0]
    command = (sys.executable, "scripts/predict.py", "--model", "results/model", "She hid behind the door.")
    done, elsewhere, asked = watch(workspace.root, *command)
    assert done.returncode == 0, done.stderr
    assert (elsewhere, asked, files_of(workspace)) == (set(), set(), [])


def test_neither_does_the_server(ran):
    workspace = ran[0]
    command = (sys.executable, str(ROOT / "tests/support/ask_served.py"), "results/model", "She hid behind the door.")
    paths = {"PYTHONPATH": f"{ROOT / 'tests'}:{ROOT / 'scripts'}"}
    done, elsewhere, asked = watch(workspace.root, *command, **paths)
    assert done.returncode == 0, done.stderr
    assert (elsewhere, asked, files_of(workspace)) == (set(), set(), [])


def test_without_the_switch_it_is_seen(ran, tmp_path):
    """ONNX Runtime then keeps an id of the machine and a queue of events in HOME."""
    root = Path(shutil.copytree(ran[0].root, tmp_path / "copy", symlinks=True))
    workspace = Workspace(root)
    workspace.edit(
        "scripts/lib/core/cli.py", "os.environ.update(dict.fromkeys(NO_TELEMETRY", "dict(dict.fromkeys(NO_TELEMETRY"
    )
    command = (sys.executable, "scripts/predict.py", "--model", "results/model", "She hid behind the door.")
    done, _, asked = watch(root, *command)
    assert done.returncode == 0, done.stderr
    assert files_of(workspace) or asked
