"""Run the workflow as `make run` does: one run at a time, the outcome as the last lines.

Arguments go to Snakemake as they are. A run that was killed left a lock behind: it is removed, since
this program's own lock tells that no other run is alive. When a rule fails, the error line of its
script is repeated last.
"""

import fcntl
import signal
import subprocess
import sys
from pathlib import Path

SNAKEMAKE = [sys.executable, "-m", "snakemake", "--cores", "all"]


def main(arguments: list[str]) -> int:
    Path(".snakemake").mkdir(exist_ok=True)
    with open(".snakemake/slmflow.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("error: another run is going on in this folder; wait for it to end", file=sys.stderr)
            return 1
        if any(Path(".snakemake/locks").glob("*")):
            subprocess.run([*SNAKEMAKE, *arguments, "--unlock"], stderr=subprocess.DEVNULL)
        code, lines = follow([*SNAKEMAKE, *arguments])
    if code != 0:
        for error in dict.fromkeys(line for line in lines if line.startswith("error: ")):
            print(f"\n{error}", file=sys.stderr)
        return code
    return 0


def follow(command: list[str]) -> tuple[int, list[str]]:
    """Run `command`, show its output as it comes, and return exit code and lines."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    assert process.stdout is not None
    lines = []
    try:
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.rstrip("\n"))
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        process.wait()
        return 130, lines
    return process.wait(), lines


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
