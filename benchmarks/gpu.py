"""Check and measure slmflow on this machine's GPUs in one command, on random models that it makes itself.

    python benchmarks/gpu.py --output gpu.md

Needs Python 3.11 to 3.13 with torch, transformers, peft, accelerate, tokenizers, safetensors and onnx, and no network;
bitsandbytes for QLoRA. Within 8 minutes it says whether losses and gradients of packed and padded rows agree with each
other and with the CPU's, whether a resumed training leaves the same bytes, whether several cards train what one does,
whether merged models and their scores are right, and how fast LoRA and QLoRA train, with the Trainer beside them.
Without a GPU the same code runs on the CPU with small shapes. Exits with 1 when a comparison fails.
"""

import argparse
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench import SCRIPTS, machine, markdown_table

PACKAGES = ("torch", "transformers", "peft", "accelerate", "tokenizers", "safetensors", "onnx")
OPTIONAL = {"bitsandbytes": "QLoRA", "onnxruntime_genai": "ONNX builds, which nothing here runs,"}
HEAD = ["model", "r", "tokens", "tokens/s", "of the peak", "GB", "Trainer: tokens/s", "of the peak", "GB", "faster by"]
INTRODUCTION = """Steps of LoRA on all linear layers in bfloat16, with random weights; rows of a quarter to the whole of
`tokens` tokens, the last quarter of each supervised. Only a row's own tokens count, never padding. The share is that of
the best bfloat16 matmul measured, with 4 operations for each real token and weight of the linear layers, and for each
supervised token and weight of the vocabulary head. GB: the most memory of the card in use."""
RESERVE = 10.0  # seconds for the report


class DeadlineError(BaseException):
    """The time is up. No `Exception`, which libraries on the way might catch."""


def main(args: argparse.Namespace) -> int:
    """Run everything that fits into the time, print and write the report, and return the exit code."""
    started = time.monotonic()
    check_requirements()
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")  # before transformers reads them
    sys.path.insert(0, str(SCRIPTS.parent / "tests"))
    report = Report(started + args.seconds - RESERVE)
    signal.signal(signal.SIGALRM, stop_at_deadline)
    signal.setitimer(signal.ITIMER_REAL, max(1.0, args.seconds - RESERVE))
    with tempfile.TemporaryDirectory() as folder:
        report.hidden = folder
        try:
            run_all(report, Path(folder))
        except DeadlineError:  # between two checks, or before the first
            print("not run   the rest: time", flush=True)
    signal.setitimer(signal.ITIMER_REAL, 0)
    text = report.render(args, time.monotonic() - started)
    print(f"\n{text}")
    if args.output:
        try:
            args.output.write_text(text, encoding="utf-8")
        except OSError as error:
            sys.exit(f"error: {args.output}: {error.strerror}; give --output another place")
    return int(any(result.outcome == "FAIL" for result in report.results))


def check_requirements() -> None:
    """Exit with one line when Python or a package is not what this needs; say which optional ones are absent."""
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        sys.exit(f"error: Python {platform.python_version()}: this needs 3.11, 3.12 or 3.13")
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        sys.exit(f"error: {', '.join(missing)} not installed; this needs {', '.join(PACKAGES)}")
    for name in list_absent():
        print(f"{name} is not installed: {OPTIONAL[name]} will not run", flush=True)


def list_absent() -> list[str]:
    """Return the optional packages that are not installed."""
    return [name for name in OPTIONAL if find_spec(name) is None]


def stop_at_deadline(*_: Any) -> None:
    """Raise `DeadlineError` in whatever runs."""
    raise DeadlineError


class Report:
    """The results so far, each printed when it is there. hidden: a folder whose path is left out."""

    def __init__(self, deadline: float) -> None:
        self.deadline, self.hidden = deadline, ""
        self.results: list[Any] = []
        self.speeds: list[Any] = []
        self.traces: list[str] = []
        self.peak = 0.0

    def run(self, name: str, check: Callable[[], Iterator[Any]]) -> None:
        """Run a check to its end or its first error; each ends as a line of the table."""
        import torch
        from gpu_checks import FAIL, NOT_RUN, Result

        try:
            if time.monotonic() > self.deadline:
                raise DeadlineError
            for found in check():
                self.add(found)
        except (DeadlineError, subprocess.TimeoutExpired):
            self.deadline = 0.0
            self.add(Result(name, NOT_RUN, "time"))
        except torch.cuda.OutOfMemoryError:
            self.add(Result(name, NOT_RUN, "out of GPU memory"))
        except Exception as error:  # whatever goes wrong on a card, the other checks still run
            lines = str(error).strip().splitlines() or [""]
            self.add(Result(name, FAIL, self.hide(f"{type(error).__name__}: {lines[0][:300]}")))
            frames = traceback.extract_tb(error.__traceback__)
            self.traces.append("\n".join([name, *(f"  {Path(f.filename).name}:{f.lineno} {f.name}" for f in frames)]))

    def add(self, found: Any) -> None:
        """Keep a result or a line of the speed table, and print it."""
        if hasattr(found, "outcome"):
            self.results.append(found)
            print(f"{found.outcome:8}  {found.name}: {found.detail}", flush=True)
        else:
            self.speeds.append(found)
            print(f"measured  {describe_speeds(found)}", flush=True)

    def hide(self, text: str) -> str:
        """Return a text without paths of this machine, as far as they are known."""
        for path, name in ((self.hidden, "…"), (str(SCRIPTS.parent), "."), (str(Path.home()), "~")):
            text = text.replace(path, name) if path not in ("", "/") else text
        return text

    def render(self, args: argparse.Namespace, seconds: float) -> str:
        """Return the whole report in Markdown."""
        rows = [[result.outcome, result.name, result.detail] for result in self.results]
        varlen = [[line.model, str(line.length), show_varlen(line)] for line in self.speeds if line.varlen]
        counts = Counter(result.outcome for result in self.results)
        verdict = f"PASS: {counts['PASS']}, FAIL: {counts['FAIL']}, not run: {counts['not run']}."
        parts = [
            "# slmflow on a GPU",
            f"    python benchmarks/gpu.py --seconds {args.seconds:g}",
            describe_machine(),
            *[f"{name} is not installed: {OPTIONAL[name]} did not run." for name in list_absent()],
            f"{verdict} It took {seconds:.0f} s.",
            "## Comparisons",
            markdown_table(["outcome", "what", "numbers"], rows),
            "## Training speed",
            f"{INTRODUCTION} The peak here: {self.peak / 1e12:.3g} TFLOP/s.",
            markdown_table(HEAD, [format_speeds(line) for line in self.speeds]),
            "slmflow with torch's attention of variable length instead of the padded table:",
            markdown_table(["model", "tokens", "tokens/s"], varlen),
        ]
        if self.traces:
            parts += ["## Where the errors came from", "```text\n" + "\n".join(self.traces) + "\n```"]
        return "\n\n".join(parts) + "\n"


def run_all(report: Report, folder: Path) -> None:
    """Run the checks, then the measurements, the most important first: what does not fit into the time is the rest."""
    import torch
    from gpu_attention import check_attention
    from gpu_checks import check_ddp, check_losses_and_gradients, check_resume, check_stages, open_workshop
    from gpu_models import LLAMA, make_plan, write_model
    from gpu_speed import check_merge_of_shape, judge_goal, measure_qlora, measure_speeds

    device = "cuda" if torch.cuda.is_available() else "cpu"
    shop = open_workshop(folder, report.deadline)
    plan = make_plan(device, report.deadline)
    report.peak = plan.peak
    report.run("losses and gradients", lambda: check_losses_and_gradients(shop, device))
    report.run("merge and scores", lambda: check_stages(shop, device))
    report.run("resume", lambda: check_resume(shop))
    report.run("DDP", lambda: check_ddp(shop))
    report.run("attention", lambda: check_attention(plan))
    tokenizer = shop.models["tiny Llama"]
    shape = folder / "shape"
    rows = shop.corpora["tiny Llama"] / "train.jsonl"
    report.run(f"{LLAMA}: write", lambda: write_model(LLAMA, device, tokenizer, shape / "base"))
    report.run("QLoRA", lambda: measure_qlora(plan, shape / "base", shop))
    report.run("training speed", lambda: measure_speeds(plan, shop))
    report.run("goal", lambda: judge_goal(report.speeds, device))
    report.run(f"{LLAMA}: merge", lambda: check_merge_of_shape(plan, shape / "base", rows, shape))


def describe_machine() -> str:
    """Return processor, memory, versions, and each GPU with its driver."""
    import torch

    text = machine(*PACKAGES)
    if not torch.cuda.is_available():
        return f"{text} No GPU that torch can use: CPU, small shapes."
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return f"{text} GPUs: {', '.join(names)}; CUDA {torch.version.cuda}, driver {find_driver()}."


def find_driver() -> str:
    """Return the version of NVIDIA's driver, or `unknown`."""
    try:
        words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return (done.stdout.split() or ["unknown"])[0]


def describe_speeds(line: Any) -> str:
    """Return a line of the speed table as a sentence."""
    ways = {"slmflow": line.ours, "Trainer": line.trainer, "slmflow with varlen": line.varlen}
    said = [f"{way} {describe_speed(speed)}" for way, speed in ways.items() if speed]
    return f"{line.model}, r {line.rank}, {line.length:,} tokens: {', '.join(said)}"


def describe_speed(speed: Any) -> str:
    """Return a speed with its units, or why there is none."""
    if isinstance(speed, str):
        return speed
    memory = "" if speed.peak_gb is None else f", {speed.peak_gb:.1f} GB"
    return f"{speed.tokens_per_second:,.0f} tokens/s ({speed.share:.1%} of the peak{memory})"


def format_speeds(line: Any) -> list[str]:
    """Return the cells of a line of the speed table."""
    from gpu_speed import compute_ratio

    found = [cell for speed in (line.ours, line.trainer) for cell in format_speed(speed)]
    ratio = compute_ratio(line.ours, line.trainer)
    times = "–" if ratio is None else f"{ratio:.2f}"
    return [line.model, str(line.rank), f"{line.length:,}", *found, times]


def format_speed(speed: Any) -> list[str]:
    """Return tokens/s, share of the peak and memory, or why there are none."""
    if isinstance(speed, str):
        return [speed, "–", "–"]
    memory = "–" if speed.peak_gb is None else f"{speed.peak_gb:.1f}"
    return [f"{speed.tokens_per_second:,.0f}", f"{speed.share:.1%}", memory]


def show_varlen(line: Any) -> str:
    """Return the speed with attention of variable length, and by how much it is faster than the padded table."""
    from gpu_speed import compute_ratio

    ratio = compute_ratio(line.varlen, line.ours)
    speed = format_speed(line.varlen)[0]
    return speed if ratio is None else f"{speed}, faster by {ratio:.2f}"


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--output", type=Path, metavar="gpu.md", help="file to write the report to, in Markdown")
    arguments.add_argument("--seconds", type=float, default=480.0, help="time for everything (480)")
    sys.exit(main(arguments.parse_args()))
